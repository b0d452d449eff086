"""The files of a request's images: what they say of how they were made, and the mark that says that they were generated."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Sequence
from time import monotonic

from torch import Tensor

from engine.prompt_syntax import PLAIN
from server import VERSION
from server.batching.image_task import ImageSpec
from server.marking.marker import Marker
from server.requests.plan import Plan
from server.requests.warnings import of_the_image
from server.telemetry import metrics, tracing


class ImageFiles:
    """Made beside the event loop: compressing takes a while for large images, and so does asking for a timestamp."""

    def __init__(self, commit: str = "", marker: Marker | None = None, *, shows_prompt: bool = False) -> None:
        """commit: of this build; it is in every file, where it is known. marker: without it, files are not marked.

        shows_prompt: whether marks say the prompts; files' own parameters always do.
        """
        self._software = f"flexiffusion-serve {VERSION}" + (f" ({commit})" if commit else "")
        self._marker, self._shows_prompt = marker, shows_prompt

    @property
    def marked(self) -> bool:
        """Whether the files of finished images are."""
        return self._marker is not None

    def check(self) -> None:
        """Raise `MarkingFailed` where files cannot be marked, before anybody spends MACs on what nobody may get."""
        if self._marker:
            self._marker.check()

    async def of(self, plan: Plan, images: Sequence[tuple[ImageSpec, Tensor]]) -> list[str]:
        """A file in base64 for each finished image: its spec and its levels (height, width, 3). Raises `MarkingFailed`."""
        return await self._files(plan, images, self._marker)

    async def of_preview(self, plan: Plan, spec: ImageSpec, pixels: Tensor) -> str:
        """A file in base64 of an image that is not finished: it is not marked."""
        (file,) = await self._files(plan, [(spec, pixels)], None)
        return file

    async def _files(self, plan: Plan, images: Sequence[tuple[ImageSpec, Tensor]], marker: Marker | None) -> list[str]:
        start = monotonic()
        files = []
        for spec, pixels in images:
            with tracing.span("file"):
                files.append(await asyncio.to_thread(self._file, plan, spec, pixels, marker))
        metrics.stage_seconds.labels("file").observe(monotonic() - start)
        return files

    def _file(self, plan: Plan, spec: ImageSpec, pixels: Tensor, marker: Marker | None) -> str:
        parameters, wanted = self._parameters(plan, spec), plan.image_format
        file = wanted.file(pixels.numpy(), parameters)
        if marker:
            file = marker.mark(file, wanted.name, self._facts(plan, parameters), edited=spec.edit is not None)
        return b64encode(file).decode()

    def _parameters(self, plan: Plan, spec: ImageSpec) -> dict[str, str]:
        """What a file itself says, for people and programs that want the image again."""
        parameters = {
            "prompt": spec.prompt,
            "negative_prompt": spec.negative,
            "seed": str(spec.seed),
            "guidance_scale": str(spec.guidance),
            "size": str(plan.size),
            **_read_as(spec),
            **spec.adapters.parameters,
            "model": plan.entry.schedule.model.name,
            "tier": plan.entry.tier or "",
            "schedule": plan.entry.digest,
            "software": self._software,
        }
        if edit := spec.edit:
            parameters |= {"strength": str(edit.strength), "image": edit.image} | ({"mask": edit.mask} if edit.mask else {})
        if unmet := of_the_image(plan.warnings):
            parameters["warnings"] = ",".join(unmet)
        return parameters

    def _facts(self, plan: Plan, parameters: dict[str, str]) -> dict[str, str]:
        """What a mark says: the same, and the model's fingerprint; prompts only where the operator wants them there."""
        hidden = () if self._shows_prompt else ("prompt", "negative_prompt")
        return {name: value for name, value in parameters.items() if name not in hidden and value} | {
            "model_fingerprint": plan.entry.schedule.model.fingerprint
        }


def _read_as(spec: ImageSpec) -> dict[str, str]:
    """How its prompts were read, where that is not as plain texts that one chunk has room for."""
    read = {"prompt_syntax": spec.syntax if spec.syntax != PLAIN else "", "prompt_chunks": str(spec.chunks)}
    return {name: value for name, value in read.items() if value not in ("", "1")}

"""What happens to an image before its first wave and after its last: text encoding and VAE decoding, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

import torch
from torch import Tensor

from engine.condition import Condition
from engine.models import Model
from engine.waves import DenoisingTask
from server.batching.image_task import ImageTask
from server.telemetry import metrics

WEIGHT = 0.1  # of the newest batch in the moving average
KEPT = 64  # encoded prompts; 64 of Stable Diffusion v1.5 take 15 MB


class TextAndVae:
    """The model's text encoder and VAE, timed. `seconds_per_image` is what both take for one image, on the average."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._seconds: dict[str, float] = {}
        self._wanted, self._unwanted = PromptCache(model.encode), PromptCache(model.negative)

    @property
    def seconds_per_image(self) -> float:
        """0 before the first image."""
        return sum(self._seconds.values())

    def decoding(self, images: int) -> float:
        """Seconds that so many images should take to decode."""
        return images * self._seconds.get("decode", 0.0)

    def encode(self, tasks: Sequence[ImageTask]) -> list[DenoisingTask]:
        """A row for each ticket, ready for its first wave."""
        start, specs = monotonic(), [task.spec for task in tasks]
        wanted = self._wanted.of([spec.prompt for spec in specs])
        unwanted = self._unwanted.of([spec.negative for spec in specs if spec.unet_rows == 2])
        rows = [
            DenoisingTask(
                spec.program,
                self._model.noise(spec.seed),
                wanted[spec.prompt],
                spec.guidance,
                unwanted[spec.negative] if spec.unet_rows == 2 else None,
                spec.deadline,
                idle=spec.idle,
            )
            for spec in specs
        ]
        self.took("encode", monotonic() - start, len(tasks))  # of a GPU only the host's part
        return rows

    def decode(self, latents: Sequence[Tensor]) -> Tensor:
        """Pixels (n, 3, height, width) of latents (c, h, w), once a fence behind this call is passed: who waits for it tells
        what it `took`."""
        return self._model.decode_later(torch.stack(list(latents)))

    def took(self, stage: str, seconds: float, images: int) -> None:
        """Learn from a batch."""
        metrics.stage_seconds.labels(stage).observe(seconds)
        each = seconds / images
        known = self._seconds.setdefault(stage, each)
        self._seconds[stage] = known + WEIGHT * (each - known)


class PromptCache:
    """Conditions by prompt, one row each. The last used ones are kept: many requests bring the same, and nearly all the same
    negative one."""

    def __init__(self, encode: Callable[[Sequence[str]], Condition]) -> None:
        self._encode = encode
        self._kept: dict[str, Condition] = {}  # the one used last is the last

    def of(self, prompts: Sequence[str]) -> dict[str, Condition]:
        """Encodes those that are not kept, in one batch. Raises what the encoder raises, and keeps nothing then."""
        found = {prompt: self._kept.pop(prompt) for prompt in dict.fromkeys(prompts) if prompt in self._kept}
        self._kept |= found
        if missing := [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]:
            encoded = self._encode(missing)
            new = {prompt: encoded[i : i + 1] for i, prompt in enumerate(missing)}
            self._kept |= new
            found |= new
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return found

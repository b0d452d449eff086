"""One generate request from its validated fields to its answer."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Coroutine, Sequence
from time import monotonic
from typing import Any, Protocol

from registry.errors import FlexiError, InvalidInput, Overloaded
from registry.schedule import ModelRef
from server import VERSION, metrics
from server.api import GenerateRequest, GenerateResponse, Steps
from server.config import Settings
from server.errors import ClientGone, DeadlineExceeded
from server.order import Order, Picture
from server.pictures import png
from server.schedules import InForce, Schedules

OUTCOMES: dict[type[FlexiError], str] = {ClientGone: "cancelled", DeadlineExceeded: "deadline", Overloaded: "rejected"}


class Renderer(Protocol):
    """What this needs of the dispatcher."""

    async def render(self, orders: Sequence[Order]) -> list[Picture]:
        """Pictures in the order of `orders`."""


class Generation:
    """Resolve, order, wait, answer."""

    def __init__(
        self, model: ModelRef, schedules: Schedules, renderer: Renderer, settings: Settings, guides: bool = True
    ) -> None:
        """`guides`: whether the model knows classifier-free guidance; one that does not gets the scale 1 by default."""
        self._model = model
        self._schedules = schedules
        self._renderer = renderer
        self._settings = settings
        self._guidance = settings.default_guidance if guides else 1.0

    async def answer(self, request: GenerateRequest, request_id: str, gone: Coroutine[Any, Any, None]) -> GenerateResponse:
        """Work until done, `gone` ends (the client left) or time is over. Raises members of `FlexiError`."""
        try:
            if request.num_images > self._settings.max_images:
                raise InvalidInput(f"num_images: the limit is {self._settings.max_images}", param="num_images")
            entry = await self._entry(request)
        except FlexiError:
            gone.close()
            raise
        tier, start, outcome = entry.tier or metrics.CUSTOM, monotonic(), "error"
        seconds = self._settings.request_seconds
        if request.deadline_ms is not None:
            seconds = min(seconds, request.deadline_ms / 1000)
        try:
            response = await while_wanted(self._make(request, request_id, entry), gone, seconds)
            outcome = "ok"
            return response
        except FlexiError as error:
            outcome = OUTCOMES.get(type(error), "error")
            raise
        finally:
            metrics.request_seconds.labels(tier, metrics.NO_ARM, outcome).observe(monotonic() - start)

    async def _entry(self, request: GenerateRequest) -> InForce:
        if request.schedule is not None:
            return await self._schedules.find(request.schedule)
        return self._schedules.tier(request.tier or self._schedules.default(self._settings.default_tier))

    async def _make(self, request: GenerateRequest, request_id: str, entry: InForce) -> GenerateResponse:
        seed = secrets.randbelow(2**32) if request.seed is None else request.seed
        deadline = math.inf if request.deadline_ms is None else monotonic() + request.deadline_ms / 1000
        guidance = request.guidance_scale or self._guidance
        orders = [
            Order(
                program=entry.program,
                prompt=request.prompt,
                negative=request.negative_prompt,
                guidance=guidance,
                seed=seed + i,
                tier=entry.tier or metrics.CUSTOM,
                deadline=deadline,
            )
            for i in range(request.num_images)
        ]
        pictures = await self._renderer.render(orders)
        start = monotonic()
        images = await asyncio.to_thread(self._files, orders, pictures, entry)
        metrics.stage_seconds.labels("png").observe(monotonic() - start)
        macs = sum(picture.macs for picture in pictures)
        return GenerateResponse(
            images=images,
            request_id=request_id,
            model=self._model.name,
            tier=entry.tier,
            schedule=entry.digest,
            version=entry.version,
            seed=seed,
            macs=macs,
            macs_per_image=macs // len(pictures),
            relative_cost=entry.relative_cost,
            steps=Steps(**{kind: pictures[0].steps[kind] for kind in Steps.model_fields}),
            queue_ms=round(1000 * max(picture.queue_seconds for picture in pictures), 3),
            denoise_ms=round(1000 * max(picture.denoise_seconds for picture in pictures), 3),
        )

    def _files(self, orders: Sequence[Order], pictures: Sequence[Picture], entry: InForce) -> list[str]:
        """The PNG files. Compressing takes a while for large images: it runs beside the event loop."""
        return [
            png(
                picture.pixels,
                {
                    "prompt": order.prompt,
                    "negative_prompt": order.negative,
                    "seed": order.seed,
                    "guidance_scale": order.guidance,
                    "model": self._model.name,
                    "tier": entry.tier or "",
                    "schedule": entry.digest,
                    "software": f"flexiffusion-serve {VERSION}",
                },
            )
            for order, picture in zip(orders, pictures, strict=True)
        ]


async def while_wanted(
    work: Coroutine[Any, Any, GenerateResponse], gone: Coroutine[Any, Any, None], seconds: float
) -> GenerateResponse:
    """The result of `work`, unless `gone` ends first (`ClientGone`) or time is over (`DeadlineExceeded`).

    A plain API method of BentoML keeps running when the client goes away, so somebody has to look.
    """
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(gone)
    try:
        await asyncio.wait({task, watcher}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if watcher.done():
            raise ClientGone("the client closed the connection")
        raise DeadlineExceeded(f"not done after {seconds * 1000:.0f} ms", param="deadline_ms")
    finally:
        task.cancel()
        watcher.cancel()

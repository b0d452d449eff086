"""The events of a stream of images, as OpenAI's clients read them, and two kinds that this server has beside them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Literal, get_args

from registry.errors import FlexiError
from server.errors import fault
from server.http.openai import ImageAttributes, quality_of
from server.http.sse import event
from server.requests.made import ImageMade, Made, PreviewMade, RequestPlanned, StepMade
from server.requests.plan import Plan
from server.requests.response import response
from server.requests.usage import milliseconds
from server.requests.warnings import said

Kind = Literal["image_generation", "image_edit"]  # of the events of a stream
KINDS: tuple[Kind, ...] = get_args(Kind)
EVENTS = ("planned", "step", "partial_image", "completed")
NO_TOKENS = {  # the official client's type wants them; a diffusion model has none
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
EVENT: dict[str, Any] = {  # JSON Schema of a server-sent event
    "type": "object",
    "properties": {
        "event": {"enum": [*(f"{kind}.{what}" for kind in KINDS for what in EVENTS), "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}


async def events(first: Made, rest: AsyncGenerator[Made], kind: Kind) -> AsyncGenerator[bytes]:
    """Server-sent events: `image_generation.partial_image`, `image_generation.completed` for each image, or an error; before
    them, of a request that wants progress, `image_generation.planned`, and among them `image_generation.step`.

    Each says what the request's wishes come to, from the first on; the last image's event holds what the whole request took.
    """
    plan, finished = first.plan, list[ImageMade]()
    about: dict[str, Any] = ImageAttributes(
        output_format=plan.image_format.name, quality=quality_of(plan.entry.tier), size=str(plan.size)
    ).model_dump()
    about["warnings"] = [warning.model_dump() for warning in said(plan.warnings)]
    try:
        async with aclosing(rest):
            async for made in _chain(first, rest):
                if isinstance(made, RequestPlanned):
                    yield event(f"{kind}.planned", about | _planned(plan))
                    continue
                if isinstance(made, StepMade):
                    of = len(plan.specs[made.image].program.steps)
                    yield event(f"{kind}.step", {"image_index": made.image, "step": made.step, "steps": of})
                    continue
                body = {**about, "created_at": int(time.time()), "b64_json": made.file, "image_index": made.image}
                if isinstance(made, PreviewMade):
                    yield event(f"{kind}.partial_image", body | {"partial_image_index": made.index})
                    continue
                finished.append(made)
                macs = 0 if made.is_repeat else made.result.macs
                body |= {"seed": plan.seed + made.image, "macs": macs, "repeat": made.is_repeat, "usage": NO_TOKENS}
                if len(finished) == len(plan.specs):
                    body |= {"request": _summary(plan, finished)}
                yield event(f"{kind}.completed", body)
    except FlexiError as error:
        yield event("error", {"error": fault(error) | {"request_id": plan.request_id}})


async def _chain(first: Made, rest: AsyncIterator[Made]) -> AsyncIterator[Made]:
    yield first
    async for made in rest:
        yield made


def _summary(plan: Plan, finished: Sequence[ImageMade]) -> dict[str, Any]:
    in_order = sorted(finished, key=lambda made: made.image)
    results = [made.result for made in in_order if not made.is_repeat]
    summary = response(plan, results, [], marked=finished[0].marked)
    return summary.model_dump(mode="json", exclude={"images"})


def _planned(plan: Plan) -> dict[str, Any]:
    """What is known of a request before anything is made; in the words of the answer."""
    return {
        "request_id": plan.request_id,
        "model": plan.entry.schedule.model.name,
        "tier": plan.entry.tier,
        "schedule": plan.entry.digest,
        "version": plan.entry.version,
        "seed": plan.seed,
        "guidance_scale": plan.specs[0].guidance,
        "macs": plan.macs,
        "relative_cost": plan.relative_cost,
        "steps": len(plan.specs[0].program.steps),
        "predicted_ms": milliseconds(plan.predicted),
    }

"""What a request is answered, as it was planned and as it ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from server.api import GenerateResponse, LoraView, Steps
from server.batching.image_task import ImageResult
from server.requests.plan import Plan
from server.requests.usage import Usage, milliseconds
from server.requests.warnings import said


def response(plan: Plan, results: Collection[ImageResult], files: list[str], *, marked: bool = False) -> GenerateResponse:
    """The answer to a plan all of whose images are done. results: of those that were made. marked: whether the files are."""
    entry, usage = plan.entry, Usage.of(results)
    steps = next(iter(results)).steps if results else Counter[str]()  # the same of each image
    return GenerateResponse(
        images=files,
        output_format=plan.image_format.name,
        size=str(plan.size),
        prompt_chunks=plan.specs[0].chunks,
        loras=[LoraView(name=use.name, scale=use.scale, digest=use.digest) for use in plan.adapters.uses],
        request_id=plan.request_id,
        model=entry.schedule.model.name,
        tier=entry.tier,
        schedule=entry.digest,
        version=entry.version,
        arm=plan.arm,
        experiment=plan.assignment.experiment.name if plan.assignment and plan.arm else None,
        seed=plan.seed,
        macs=usage.macs,
        macs_per_image=usage.macs // len(plan.specs),
        relative_cost=plan.relative_cost,
        steps=Steps(**{kind: steps[kind] for kind in Steps.model_fields}),
        predicted_ms=milliseconds(plan.predicted),
        queue_ms=milliseconds(usage.queue_seconds),
        denoise_ms=milliseconds(usage.denoise_seconds),
        strength=plan.edit.strength if plan.edit else None,
        repeats=sorted(plan.repeats),
        marked=marked,
        warnings=said(plan.warnings),
    )

"""Wishes of a request that are not met although its images are made: a stable code and a sentence for each.

docs/api.md lists the codes for clients. A model's own notices (`Model.notices`) are said beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.guidance import OFF
from engine.image_size import ImageSize
from engine.notice import Notice
from server.api import RequestWarning
from server.requests.image_file import ImageFormat

PROMPT_CUT = "prompt_cut"
PROMPT_IGNORED = "prompt_ignored"
NEGATIVE_PROMPT_CUT = "negative_prompt_cut"
NEGATIVE_PROMPT_IGNORED = "negative_prompt_ignored"
GUIDANCE_NOT_VALIDATED = "guidance_not_validated"
GUIDANCE_ON_DISTILLED_MODEL = "guidance_on_distilled_model"
SIZE_NOT_VALIDATED = "size_not_validated"
DEFAULT_TIER_NOT_SERVED = "default_tier_not_served"
DEADLINE_AT_RISK = "deadline_at_risk"
ARM_NOT_SERVED = "arm_not_served"
FEWER_PREVIEWS = "fewer_previews"
COMPRESSION_IGNORED = "compression_ignored"
LOSSLESS_IGNORED = "lossless_ignored"
FILE_NOT_KEPT = "file_not_kept"
ASPECT_CHANGED = "aspect_changed"
ONE_STEP_RUNS = "one_step_runs"
LORA_NOT_VALIDATED = "lora_not_validated"

# What tells of a request and not of its pixels: it is in the answer, and not in the files.
NOT_OF_THE_IMAGE = {
    DEFAULT_TIER_NOT_SERVED,
    DEADLINE_AT_RISK,
    ARM_NOT_SERVED,
    FEWER_PREVIEWS,
    COMPRESSION_IGNORED,
    LOSSLESS_IGNORED,
    FILE_NOT_KEPT,
}
SHOWN = 200  # characters of a cut text


def prompt_cut(field: str, text: str, tokens: int, chunks: int = 1, reader: str = "the model") -> Notice:
    """field: `prompt` or `negative_prompt`. text: what lies past so many chunks of so many tokens, which this reader reads."""
    code = PROMPT_CUT if field == "prompt" else NEGATIVE_PROMPT_CUT
    shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    read = f"{tokens} tokens" if chunks == 1 else f"{chunks} chunks of {tokens} tokens"
    what = f"{reader} reads {read}, special tokens included, and ignored the last {len(text)} characters"
    return Notice(code, f"{field}: {what}: {shown}")


def prompt_ignored() -> Notice:
    """A request has to have a prompt, and the model reads none."""
    return Notice(PROMPT_IGNORED, "prompt: it has no effect: this model is unconditional and draws what it likes")


def negative_prompt_ignored(embedded: bool = False) -> Notice:
    """A negative prompt, and no guidance away from it. embedded: the model takes the scale as an input."""
    why = "it has no effect at guidance_scale 1, which switches guidance off"
    if embedded:
        why = "it has no effect: this model takes guidance_scale as an input, and guides away from nothing"
    return Notice(NEGATIVE_PROMPT_IGNORED, f"negative_prompt: {why}")


def guidance_not_validated(scale: float, validated: Sequence[float], fitted: Sequence[float] = ()) -> Notice:
    """validated: the scales of the schedule's document. fitted: those that it has corrections for. Both the smallest first."""
    known = ", ".join(f"{known:g}" for known in validated)
    if validated[0] < scale < validated[-1]:
        what = f"{scale:g} lies between scales at which the schedule was validated ({known}), and is not one of them"
    else:
        where = "below" if scale < validated[0] else "above"
        off = ", no guidance," if scale == OFF else ""
        place = f"{scale:g}{off} is {where} what the schedule was validated at ({known})"
        what = f"{place}: its images may be worse than its figures say{_beyond(scale, fitted)}"
    return Notice(GUIDANCE_NOT_VALIDATED, f"guidance_scale: {what}")


def _beyond(scale: float, fitted: Sequence[float]) -> str:
    """What past the last of its fits a schedule runs with: that fit. Between two nothing has to be said."""
    if not fitted or fitted[0] <= scale <= fitted[-1]:
        return ""
    return f"; it runs with the corrections of {fitted[0] if scale < fitted[0] else fitted[-1]:g}"


def guidance_on_distilled_model(scale: float, steps: int) -> Notice:
    """Guidance was asked of a model that was distilled to so many steps."""
    what = (
        f"the model was distilled to {steps} step{'s' * (steps > 1)} without guidance; {scale:g} doubles the cost of its images"
    )
    return Notice(GUIDANCE_ON_DISTILLED_MODEL, f"guidance_scale: {what}, and may spoil them")


def lora_not_validated(names: str) -> Notice:
    """names: the LoRAs, which the schedule was not searched with."""
    what = f"the schedule was searched on the model without {names}: how near its images are to the full model's with it is not"
    return Notice(LORA_NOT_VALIDATED, f"loras: {what} known")


def size_not_validated(size: ImageSize, validated: Sequence[ImageSize]) -> Notice:
    """validated: the sizes at which the schedule was measured."""
    known = ", ".join(map(str, validated))
    what = f"the schedule was measured at {known} and not at {size}: its images may be worse than its figures say"
    return Notice(SIZE_NOT_VALIDATED, f"size: {what}")


def default_tier_not_served(tier: str) -> Notice:
    """No tier was named, and the one that is meant then is not in force."""
    return Notice(
        DEFAULT_TIER_NOT_SERVED, f"tier: {tier}, the default, is not served now: the teacher serves, at its full cost"
    )


def no_tier_served() -> Notice:
    """The same of `auto` with a deadline, which chooses among all tiers."""
    return Notice(DEFAULT_TIER_NOT_SERVED, "tier: none below the teacher is served now: the teacher serves, at its full cost")


def deadline_at_risk(tier: str, deadline_ms: int) -> Notice:
    """`auto` found no tier that should keep the deadline."""
    what = f"no tier is predicted to be done in {deadline_ms} ms under the present load: {tier}, the cheapest, serves"
    return Notice(DEADLINE_AT_RISK, f"deadline_ms: {what}")


def arm_not_served(experiment: str, arm: str) -> Notice:
    """The request is in an arm whose schedule this server could not load."""
    what = f"its schedule cannot be loaded here: the tier's own serves in the experiment {experiment}"
    return Notice(ARM_NOT_SERVED, f"arm {arm}: {what}")


def fewer_previews(asked: int, made: int, steps: int) -> Notice:
    """There are fewer moments for a preview than were asked for."""
    taken = f"the schedule computes {steps} step{'s' * (steps > 1)}"
    return Notice(FEWER_PREVIEWS, f"partial_images: {asked} were asked for; {taken}, so there are {made} of each image")


def no_previews_of_repeats(images: int) -> Notice:
    """Previews were asked for, and so many of the images were made before."""
    what = f"{images} of the images {'is a repeat' if images == 1 else 'are repeats'}, of which there are none"
    return Notice(FEWER_PREVIEWS, f"partial_images: {what}")


def of_the_format(wanted: ImageFormat) -> list[Notice]:
    """What a format cannot do of what was asked of its files: lose something, or nothing."""
    unmet = list[Notice]()
    if wanted.lossless and not wanted.keeps_all:
        what = "a jpeg file always loses something: png and webp files need not"
        unmet.append(Notice(LOSSLESS_IGNORED, f"lossless: {what}"))
    elif wanted.keeps_all and wanted.quality < 100:
        what = f"lossless {wanted.name}" if wanted.lossless else wanted.name
        what = f"it has no effect: {what} files lose nothing, jpeg files and other webp files are smaller"
        unmet.append(Notice(COMPRESSION_IGNORED, f"output_compression: {what}"))
    return unmet


def file_not_kept() -> Notice:
    """The images are made, and the store does not take them any more."""
    return Notice(FILE_NOT_KEPT, "response_format: the store did not take the files: the URLs are data: URLs, which hold them")


def aspect_changed(came: ImageSize, size: ImageSize) -> Notice:
    """The image to start from has other proportions than what is made of it."""
    what = f"it is {came} and was stretched to {size}: send it in these proportions, or name a size that has its own"
    return Notice(ASPECT_CHANGED, f"image: {what}")


def one_step_runs(strength: float, steps: int) -> Notice:
    """The strength is less than one of the schedule's steps."""
    what = f"{strength:g} is less than one of the schedule's {steps} steps, of which the last runs"
    return Notice(ONE_STEP_RUNS, f"strength: {what}")


def of_the_image(warnings: Sequence[Notice]) -> list[str]:
    """The codes that a file itself should carry."""
    return [warning.code for warning in warnings if warning.code not in NOT_OF_THE_IMAGE]


def said(warnings: Sequence[Notice]) -> list[RequestWarning]:
    """As answers have them."""
    return [RequestWarning(code=warning.code, message=warning.message) for warning in warnings]

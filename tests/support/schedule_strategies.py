"""Schedules for property tests, and one by hand."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from registry.corrections import Correction, ScaledCorrections
from registry.schedule import Cost, Fidelity, ModelRef, Schedule, Segment, Solver, Validated

MODEL = ModelRef(name="emoji64", family="unet2d-condition", fingerprint="sha256:" + "0" * 64)
finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=4,
)
models = st.builds(
    ModelRef,
    name=st.sampled_from(["emoji64", "sd-1.5", "a", "0_0"]),
    family=st.sampled_from(["unet2d-condition", "unet2d"]),
    fingerprint=st.integers(0, 2**256 - 1).map("sha256:{:064x}".format),
)
descriptions = st.fixed_dictionaries(
    {
        "validated": st.none() | st.builds(Validated, sizes=st.just(((64, 64),)), guidance=st.tuples(finite)),
        "cost": st.none() | st.builds(Cost, macs=st.integers(0, 2**60), rows=st.sampled_from([1, 2]), relative=st.just(0.2)),
        "fidelity": st.none()
        | st.builds(Fidelity, rfid=finite, psnr=finite, images=st.integers(1, 9999), clip_score=st.none() | finite),
        "provenance": st.none() | st.dictionaries(text, json_values, max_size=2),
    }
)


small = st.integers(-100, 100).map(lambda hundredths: hundredths / 1000)
small_corrections = st.builds(Correction, guidance=small.map(lambda x: 1 + x), latent=small, output=small, before=small)


@st.composite
def step_corrections(draw: st.DrawFn, plain: Schedule) -> tuple[Correction, ...]:
    """Any corrections of a schedule's steps, with extrapolations where there may be some."""
    corrections = draw(st.lists(small_corrections, min_size=plain.computed, max_size=plain.computed))
    for step in plain.extrapolating:
        weight = draw(st.sampled_from([0.0, 1.0, -0.5, 0.75]))
        corrections[step] = corrections[step].model_copy(update={"extrapolation": weight})
    return tuple(corrections)


@st.composite
def some_corrections(draw: st.DrawFn, plain: Schedule) -> dict[str, Any]:
    """Any corrections of a schedule, as its fields: none, of all guidance scales, or by scale."""
    steps = step_corrections(plain)
    kind = draw(st.sampled_from(["none", "corrections", "scaled_corrections"]))
    if kind == "scaled_corrections":
        scales = sorted(draw(st.sets(st.sampled_from([1.0, 1.5, 3.0, 7.5]), min_size=1, max_size=3)))
        return {kind: tuple(ScaledCorrections(guidance=scale, corrections=draw(steps)) for scale in scales)}
    return {} if kind == "none" else {kind: draw(steps)}


@st.composite
def segments(draw: st.DrawFn, length: int) -> Segment:
    """Any valid segment of this length."""
    offsets = draw(st.sets(st.integers(1, length - 1))) if length > 1 else set()
    return Segment(partial=tuple(sorted(offsets)), branch=draw(st.integers(1, 12)) if offsets else 1)


@st.composite
def schedules(draw: st.DrawFn, model: st.SearchStrategy[ModelRef] = models) -> Schedule:
    """Any valid schedule."""
    count, length = draw(st.integers(1, 6)), draw(st.integers(1, 10))
    name = draw(st.sampled_from(["ddim", "dpmsolver++", "euler"]))
    solver = Solver(
        name=name,
        teacher_steps=count * length,
        spacing=draw(st.sampled_from(["leading", "trailing", "linspace"])),
        karras=name != "ddim" and draw(st.booleans()),
        clip=name == "dpmsolver++" and draw(st.booleans()),
    )
    pieces = draw(st.lists(segments(length), min_size=count, max_size=count))
    plain, timesteps = Schedule(model=draw(model), solver=solver, segments=tuple(pieces)), None
    computed = plain.computed
    if not solver.karras and draw(st.booleans()):
        chosen = draw(st.sets(st.integers(0, 999), min_size=computed, max_size=computed))
        timesteps = tuple(sorted(chosen, reverse=True))
    return Schedule(**dict(plain) | {"timesteps": timesteps} | draw(some_corrections(plain)) | draw(descriptions))


def schedule(*partial: int, branch: int = 3, steps: int = 50, count: int = 5, **description: Any) -> Schedule:
    """A schedule with the same partial offsets in every segment."""
    segment = Segment(partial=partial, branch=branch if partial else 1)
    solver = Solver(name="dpmsolver++", teacher_steps=steps, spacing="leading")
    return Schedule(model=MODEL, solver=solver, segments=(segment,) * count, **description)

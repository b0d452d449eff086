"""What a schedule document promises: one behaviour has one digest, and nothing invalid gets in."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from schedule_strategies import MODEL, descriptions, models, schedule, schedules

from registry.corrections import Correction, ScaledCorrections
from registry.errors import InvalidInput, Unsupported
from registry.schedule import IDENTITY, Blocks, Branch, ModelRef, Schedule, Segment, Solver, parse_branch, said, teacher

MODELS = st.just(MODEL)
FEW = settings(max_examples=40, deadline=None)


def shuffled(value: Any, dice: random.Random) -> Any:
    """The value with the keys of every object in another order: JSON that means the same."""
    if isinstance(value, dict):
        items = [(key, shuffled(inner, dice)) for key, inner in value.items()]
        dice.shuffle(items)
        return dict(items)
    return [shuffled(inner, dice) for inner in value] if isinstance(value, list) else value


@FEW
@given(schedules())
def test_round_trip(one: Schedule) -> None:
    again = Schedule.parse(one.document())
    assert again == one
    assert again.document() == one.document()


@FEW
@given(schedules(), st.randoms(use_true_random=False), st.sampled_from([None, 2]))
def test_digest_ignores_how_the_json_is_written(one: Schedule, dice: random.Random, indent: int | None) -> None:
    text = json.dumps(shuffled(json.loads(one.document()), dice), indent=indent)
    assert Schedule.parse(text).digest == one.digest


@FEW
@given(schedules(), descriptions)
def test_digest_ignores_what_only_describes(one: Schedule, description: dict[str, Any]) -> None:
    other = Schedule(**({name: getattr(one, name) for name in IDENTITY} | description))
    assert other.digest == one.digest
    assert one.model_copy(update=description).digest == one.digest


@FEW
@given(schedules(MODELS), schedules(MODELS))
def test_digest_is_the_identity(one: Schedule, other: Schedule) -> None:
    fields = ("model", "solver", "segments", "timesteps", "corrections", "scaled_corrections")
    same = all(getattr(one, field) == getattr(other, field) for field in fields)
    assert (one.digest == other.digest) is same


CHANGES = {
    "model.name": {"model": MODEL.model_copy(update={"name": "other"})},
    "model.family": {"model": MODEL.model_copy(update={"family": "unet2d"})},
    "model.fingerprint": {"model": MODEL.model_copy(update={"fingerprint": "sha256:" + "1" * 64})},
    "solver.name": {"solver": Solver(name="ddim", teacher_steps=50, spacing="leading")},
    "solver.teacher_steps": {"solver": Solver(name="dpmsolver++", teacher_steps=100, spacing="leading")},
    "solver.spacing": {"solver": Solver(name="dpmsolver++", teacher_steps=50, spacing="trailing")},
    "solver.karras": {"solver": Solver(name="dpmsolver++", teacher_steps=50, spacing="leading", karras=True)},
    "solver.clip": {"solver": Solver(name="dpmsolver++", teacher_steps=50, spacing="leading", clip=True)},
    "timesteps": {"timesteps": tuple(range(900, 0, -90))},
    "corrections": {"corrections": (Correction(output=0.25),) + (Correction(),) * 9},
    "corrections.extrapolation": {"corrections": (Correction(),) * 2 + (Correction(extrapolation=0.5),) + (Correction(),) * 7},
    "scaled_corrections": {"scaled_corrections": (ScaledCorrections(guidance=3, corrections=(Correction(),) * 10),)},
    "segments.partial": {"segments": (Segment(partial=(6,), branch=3),) + (Segment(partial=(5,), branch=3),) * 4},
    "segments.branch": {"segments": (Segment(partial=(5,), branch=3),) * 4 + (Segment(partial=(5,), branch=2),)},
    "segments, fewer": {"segments": (Segment(partial=(5,), branch=3),) * 2},
}


def test_a_document_from_before_karras_clipping_timesteps_and_corrections_keeps_its_digest() -> None:
    solver = Solver(name="ddim", teacher_steps=10, spacing="trailing")
    old = Schedule(model=MODEL, solver=solver, segments=(Segment(partial=(2,), branch=3), Segment()))
    assert old.digest == "f64778b2676780306d72bf21972cf9c5a8a3a0c9d3219e5d96a56747f49e3287"
    assert b"karras" not in old.document()
    assert b"clip" not in old.document()
    assert b"timesteps" not in old.document()
    assert b"corrections" not in old.document()


@pytest.mark.parametrize(
    ("timesteps", "complaint"),
    [
        ((900, 500), "each of the 3 computed steps, got 2"),
        ((900, 500, 500), "descend"),
        ((500, 900, 100), "descend"),
        ((900, 500, -1), "below 0"),
    ],
)
def test_timesteps_that_are_none_are_refused_by_name(timesteps: tuple[int, ...], complaint: str) -> None:
    solver = Solver(name="euler", teacher_steps=10, spacing="trailing")
    raw = {"model": dict(MODEL), "solver": dict(solver), "segments": [{"partial": [2], "branch": 3}, {}]}
    with pytest.raises(InvalidInput, match=complaint) as caught:
        Schedule.parse(json.dumps({**raw, "timesteps": timesteps}))
    assert caught.value.param == "timesteps"


def test_corrections_from_before_extrapolations_keep_their_digest() -> None:
    by = Correction(guidance=0.75, latent=0.5)
    old = schedule(5, corrections=(by,) * 10)
    assert old.digest == "de8934825ee66b702511ffcfd63785ca66105a468f8f71fac9eb4826f68aa6a5"
    assert b"extrapolation" not in old.document()
    assert old.model_copy(update={"corrections": (by.model_copy(update={"extrapolation": 0.0}),) * 10}).digest == old.digest


REUSING = [{"partial": [1], "branch": 2}, {}, {"partial": [2], "branch": 2}, {"partial": [1], "branch": 3}]


@pytest.mark.parametrize(
    ("step", "allowed"),
    [(0, False), (1, False), (2, False), (3, True), (4, False), (5, False), (6, False)],
    ids=[
        "nothing before",
        "partial",
        "nothing after",
        "one branch before and after",
        "partial",
        "another branch before",
        "partial",
    ],
)
def test_only_a_feature_of_the_branch_that_was_reused_before_is_extrapolated(step: int, allowed: bool) -> None:
    raw = {"model": dict(MODEL), "solver": {"name": "ddim", "teacher_steps": 12, "spacing": "trailing"}, "segments": REUSING}
    corrections = [{"extrapolation": 0.5} if i == step else {} for i in range(7)]
    for place, fields in (
        ("corrections", {"corrections": corrections}),
        ("scaled_corrections.0.corrections", {"scaled_corrections": [{"guidance": 3, "corrections": corrections}]}),
    ):
        if allowed:
            assert Schedule.parse(json.dumps({**raw, **fields})).extrapolating == {step}
            continue
        with pytest.raises(InvalidInput, match=r"of one branch, got 0\.5") as caught:
            Schedule.parse(json.dumps({**raw, **fields}))
        assert caught.value.param == f"{place}.{step}.extrapolation"


def test_corrections_are_one_for_each_computed_step() -> None:
    raw = json.loads(schedule(5).document())
    with pytest.raises(InvalidInput, match="each of the 10 computed steps, got 3") as caught:
        Schedule.parse(json.dumps({**raw, "corrections": [{}] * 3}))
    assert caught.value.param == "corrections"


def scaled(*fits: tuple[float, float], computed: int = 10) -> dict[str, Any]:
    """The field of corrections by scale: at each scale, this latent number in every step."""
    corrections = [{"guidance": scale, "corrections": [{"latent": number}] * computed} for scale, number in fits]
    return {"scaled_corrections": corrections}


@pytest.mark.parametrize(
    ("change", "param", "complaint"),
    [
        (scaled((3, 0.1), (1, 0.2)), "scaled_corrections", "ascend"),
        (scaled((3, 0.1), (3, 0.2)), "scaled_corrections", "ascend"),
        (scaled((3, 0.1), computed=9), "scaled_corrections.0.corrections", "each of the 10 computed steps, got 9"),
        (scaled((0.5, 0.1)), "scaled_corrections.0.guidance", "greater than or equal to 1"),
        (scaled(), "scaled_corrections", "at least 1"),
        ({**scaled((3, 0.1)), "corrections": [{}] * 10}, "scaled_corrections", "take one of the two away"),
    ],
)
def test_corrections_by_scale_are_refused_by_name(change: dict[str, Any], param: str, complaint: str) -> None:
    raw = json.loads(schedule(5).document())
    with pytest.raises(InvalidInput, match=complaint) as caught:
        Schedule.parse(json.dumps({**raw, **change}))
    assert caught.value.param == param


def test_corrections_lie_linearly_between_the_scales_that_they_were_fitted_at_and_end_with_the_last() -> None:
    one = Schedule.parse(json.dumps(json.loads(schedule(5).document()) | scaled((1, 0.0), (3, 0.2), (7, 0.4))))
    for scale, number in ((0.5, 0.0), (1, 0.0), (2, 0.1), (3, 0.2), (4, 0.25), (7, 0.4), (30, 0.4)):
        corrections = one.corrections_at(scale)
        assert corrections is not None
        assert [correction.latent for correction in corrections] == pytest.approx([number] * 10)
        assert {correction.guidance for correction in corrections} == {1.0}


def test_corrections_without_scales_are_the_same_at_all() -> None:
    one = schedule(5, corrections=(Correction(output=0.25),) * 10)
    assert one.corrections_at(1) == one.corrections_at(20) == one.corrections
    assert schedule(5).corrections_at(3) is None


def test_timesteps_and_karras_levels_exclude_each_other() -> None:
    solver = Solver(name="euler", teacher_steps=2, spacing="trailing", karras=True)
    with pytest.raises(ValidationError, match="karras"):
        Schedule(model=MODEL, solver=solver, segments=(Segment(), Segment()), timesteps=(900, 1))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_digest_changes_with_each_field_of_the_identity(change: dict[str, Any]) -> None:
    one = schedule(5)
    before = one.digest
    assert one.model_copy(update=change).digest != before
    assert Schedule(**(dict(one) | change)).digest != before
    assert one.digest == before


def test_digest_is_what_the_design_says() -> None:
    """A golden value: changing how the digest is made would orphan every published schedule."""
    canonical = (
        '{"format":1,"model":{"family":"unet2d-condition","fingerprint":"sha256:' + "0" * 64 + '","name":"emoji64"},'
        '"segments":[{"branch":3,"partial":[5]},{"branch":1,"partial":[]}],'
        '"solver":{"name":"ddim","spacing":"leading","teacher_steps":20}}'
    )
    solver = Solver(name="ddim", teacher_steps=20, spacing="leading")
    one = Schedule(model=MODEL, solver=solver, segments=(Segment(partial=(5,), branch=3), Segment()))
    assert one.digest == hashlib.sha256(canonical.encode()).hexdigest()


@FEW
@given(schedules())
def test_steps_follow_the_segments(one: Schedule) -> None:
    steps, counts = list(one.steps()), one.counts()
    assert [step.index for step in steps] == list(range(one.solver.teacher_steps))
    assert sum(counts.values()) == one.solver.teacher_steps
    assert counts["full"] == len(one.segments)
    assert counts["partial"] == sum(len(segment.partial) for segment in one.segments)
    assert steps[0].kind == "full"
    for step in steps:
        segment, offset = one.segments[step.index // one.length], step.index % one.length
        expected = "full" if offset == 0 else "partial" if offset in segment.partial else "null"
        assert step[1:] == (expected, segment.branch if expected == "partial" else 0)


@FEW
@given(models, st.integers(1, 1000))
def test_the_teacher_computes_every_step(model: Any, steps: int) -> None:
    all_full = teacher(model, Solver(name="ddim", teacher_steps=steps, spacing="leading"))
    assert all_full.counts() == {"full": steps, "partial": 0, "null": 0}


INVALID: dict[str, tuple[list[str | int], Any]] = {
    "segments.0.partial": (["segments", 0, "partial"], [3, 2]),
    "segments.1.partial": (["segments", 1, "partial"], [2, 2]),
    "segments.2.partial": (["segments", 2, "partial"], [0, 1]),
    "segments.3.partial": (["segments", 3, "partial"], [10]),
    "segments.4.partial.0": (["segments", 4, "partial"], ["x"]),
    "segments.0.branch": (["segments", 0], {"partial": [], "branch": 2}),
    "segments.1.branch": (["segments", 1, "branch"], 0),
    "segments.2.color": (["segments", 2, "color"], "red"),
    "segments": (["solver", "teacher_steps"], 49),
    "solver.teacher_steps": (["solver", "teacher_steps"], 1001),
    "solver.name": (["solver", "name"], "heun"),
    "solver.spacing": (["solver", "spacing"], "karras"),
    "model.name": (["model", "name"], "../etc"),
    "model.fingerprint": (["model", "fingerprint"], "md5:0"),
    "model.family": (["model", "family"], "dit"),
    "cost.relative": (["cost", "relative"], -0.1),
    "cost.rows": (["cost", "rows"], 3),
    "fidelity.images": (["fidelity", "images"], 0),
    "price": (["price"], 1),
}


@pytest.mark.parametrize("field", INVALID)
def test_an_invalid_document_names_the_field(field: str) -> None:
    document = json.loads(
        schedule(
            5,
            cost={"macs": 1, "rows": 2, "relative": 0.2},
            fidelity={"rfid": 1.0, "psnr": 20.0, "images": 8},
        ).document()
    )
    path, value = INVALID[field]
    target = document
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    with pytest.raises(InvalidInput) as caught:
        Schedule.parse(json.dumps(document))
    assert caught.value.param == field
    assert caught.value.message.startswith(f"{field}: ")


@pytest.mark.parametrize("field", ["model", "solver", "segments"])
def test_the_identity_must_be_whole(field: str) -> None:
    document = json.loads(schedule(5).document())
    del document[field]
    with pytest.raises(InvalidInput, match=f"^{field}: Field required"):
        Schedule.parse(json.dumps(document))


NOT_JSON = [
    b"",
    b"{",
    b"\xff",
    b"[" * 100_000,
    b'{"provenance": {"a": NaN}}',
    b'{"provenance": {"a": 1e999}}',
    rb'{"a": "\ud800"}',
]


@pytest.mark.parametrize("data", NOT_JSON, ids=range(len(NOT_JSON)))
def test_what_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="not valid JSON"):
        Schedule.parse(data)


@pytest.mark.parametrize("data", ["null", "[]", "1", '"schedule"'])
def test_what_is_not_an_object_is_refused(data: str) -> None:
    with pytest.raises(InvalidInput, match="must be a JSON object"):
        Schedule.parse(data)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_is_unsupported(version: Any) -> None:
    document = json.loads(schedule(5).document()) | {"format": version, "field of the future": 1}
    with pytest.raises(Unsupported, match="format"):
        Schedule.parse(json.dumps(document))


def test_a_schedule_is_frozen() -> None:
    with pytest.raises(ValidationError):
        schedule(5).solver = Solver(name="ddim", teacher_steps=50, spacing="leading")  # type: ignore[misc]


TRANSFORMER = ModelRef(name="glyphs-dit", family="dit-transformer2d", fingerprint="sha256:" + "0" * 64)
PAIRED = Solver(name="euler", teacher_steps=4, spacing="linspace")


def test_a_transformers_branch_is_the_blocks_at_both_ends_of_which_either_may_be_0() -> None:
    segments = (Segment(partial=(1,), branch=0, back=8), Segment.reusing(Blocks(1, 0), (1,)))
    schedule = Schedule(model=TRANSFORMER, solver=PAIRED, segments=segments)
    assert [step.branch for step in schedule.steps()] == [0, Blocks(0, 8), 0, Blocks(1, 0)]
    assert schedule.branches == {Blocks(0, 8), Blocks(1, 0)}
    assert [f"{segment.computes}" for segment in segments] == ["0+8", "1+0"]
    again = Schedule.parse(schedule.document())
    assert (again, again.digest) == (schedule, schedule.digest)
    assert schedule.digest != schedule.model_copy(update={"segments": segments[::-1]}).digest
    assert b'{"back":8,"branch":0,"partial":[1]}' in schedule.document()


def test_an_extrapolation_needs_the_same_blocks_before_it() -> None:
    one, other = Segment.reusing(Blocks(1, 0), (1,)), Segment.reusing(Blocks(1, 1), (1,))
    assert Schedule(model=TRANSFORMER, solver=PAIRED, segments=(one, one)).extrapolating == {2}
    assert Schedule(model=TRANSFORMER, solver=PAIRED, segments=(one, other)).extrapolating == set()


@pytest.mark.parametrize(
    ("model", "segment", "param", "text"),
    [
        (MODEL, {"partial": [1], "branch": 2, "back": 0}, "segments.0.back", "must be left out, where the model is a unet2d"),
        (TRANSFORMER, {"partial": [1], "branch": 2}, "segments.0.back", "is missing, the number of the last blocks"),
        (TRANSFORMER, {"partial": [1], "branch": 0}, "segments.0.branch", "must be at least 1, or say back"),
        (TRANSFORMER, {"partial": [1], "branch": 1, "back": -1}, "segments.0.back", "greater than or equal to 0"),
        (TRANSFORMER, {"back": 2}, "segments.0.back", "must be left out in a segment without partial steps"),
    ],
    ids=str,
)
def test_a_branch_that_is_not_of_the_family_is_refused(model: ModelRef, segment: dict[str, Any], param: str, text: str) -> None:
    raw = {"model": dict(model), "solver": dict(PAIRED), "segments": [segment, {}]}
    with pytest.raises(InvalidInput, match=text) as caught:
        Schedule.parse(json.dumps(raw))
    assert caught.value.param == param


@pytest.mark.parametrize("branch", [3, Blocks(0, 2), Blocks(4, 0)], ids=str)
def test_a_branch_is_read_as_it_is_said(branch: Branch) -> None:
    assert parse_branch(str(said(branch))) == branch


@pytest.mark.parametrize("text", ["", "+", "1+", "+1", "-1", "1+2+3", "two"])
def test_what_says_no_branch_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="two \\(2\\+1\\) for a transformer") as caught:
        parse_branch(text)
    assert caught.value.param == "branch"

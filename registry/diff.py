"""What differs between two schedules: steps, segments, other parts of the identity, and what is known of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from registry.schedule import IDENTITY, Schedule, Segment

Figures = dict[str, float | None]


class SegmentChange(NamedTuple):
    """A segment that differs; `first` and `last` are its steps, counted from 0."""

    segment: int
    first: int
    last: int
    a: Segment
    b: Segment


class Difference:
    """Two schedules held against each other. Steps and segments are compared where both have as many of them."""

    def __init__(self, a: Schedule, b: Schedule) -> None:
        self.a = a
        self.b = b

    @property
    def steps(self) -> list[int] | None:
        """The steps that are of another kind or branch; None where the teachers take different numbers of steps."""
        if self.a.solver.teacher_steps != self.b.solver.teacher_steps:
            return None
        return [one.index for one, other in zip(self.a.steps(), self.b.steps(), strict=True) if one != other]

    @property
    def segments(self) -> list[SegmentChange] | None:
        """The segments that differ; None where they do not line up."""
        if self.steps is None or len(self.a.segments) != len(self.b.segments):
            return None
        length = self.a.length
        return [
            SegmentChange(i, i * length, (i + 1) * length - 1, one, other)
            for i, (one, other) in enumerate(zip(self.a.segments, self.b.segments, strict=True))
            if one != other
        ]

    @property
    def fields(self) -> dict[str, tuple[Any, Any]]:
        """The other parts of the identity that differ, by dotted name."""
        sides = [_flat(side.model_dump(mode="json", include=IDENTITY - {"segments"})) for side in (self.a, self.b)]
        names = sorted(sides[0].keys() | sides[1].keys())
        pairs = {name: (sides[0].get(name), sides[1].get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def document(self) -> dict[str, Any]:
        """All that differs, as JSON values."""
        changes = self.segments
        segments = None if changes is None else [_plain(change) for change in changes]
        return {"steps": self.steps, "segments": segments, "fields": self.fields, "figures": self.figures}

    @property
    def figures(self) -> dict[str, tuple[float | None, float | None]]:
        """(a, b) of each figure: counts of steps, cost, fidelity; None for what was never measured."""
        a, b = _figures(self.a), _figures(self.b)
        return {name: (a.get(name), b.get(name)) for name in {**a, **b}}


def _plain(change: SegmentChange) -> dict[str, Any]:
    return change._asdict() | {"a": change.a.model_dump(), "b": change.b.model_dump()}


def _figures(schedule: Schedule) -> Figures:
    figures: Figures = {f"{kind} steps": count for kind, count in schedule.counts().items()}
    if schedule.cost:
        figures |= {"relative cost": schedule.cost.relative, "MACs": schedule.cost.macs}
    if schedule.fidelity:
        figures |= {"rFID": schedule.fidelity.rfid, "PSNR": schedule.fidelity.psnr, "images": schedule.fidelity.images}
        figures |= {"CLIP score": schedule.fidelity.clip_score} if schedule.fidelity.clip_score is not None else {}
        figures |= {"accuracy": schedule.fidelity.accuracy} if schedule.fidelity.accuracy is not None else {}
    return figures


def _flat(fields: dict[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return flat

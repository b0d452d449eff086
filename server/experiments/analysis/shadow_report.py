"""What is known of a tier's candidate: a table for people, JSON for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from registry.catalog import Catalog
from registry.errors import InvalidInput, NotFound
from registry.experiments.candidates import CandidateState, CandidateStatus
from registry.records import Target
from server.experiments.analysis.archive import stored_pairs
from server.experiments.analysis.comparison import Interval
from server.experiments.analysis.pairs import ALPHA, FEW, FigureComparison, PairSummary, summarise_pairs

NAMES = {
    "psnr": "PSNR, dB",
    "feature_distance": "feature distance",
    "macs": "MACs of an image",
    "seconds": "seconds of an image",
}


@dataclass(frozen=True)
class ShadowReport:
    """A tier's newest candidate beside what the tier means now; `pairs` of earlier meanings of the tier come after that."""

    state: CandidateState
    status: CandidateStatus
    meant: Target | None
    pairs: Sequence[PairSummary]
    damaged: Sequence[str]
    time: datetime

    @property
    def current(self) -> PairSummary | None:
        """Of what the tier means now, if there is any pair of it."""
        return next((pair for pair in self.pairs if self.meant and pair.digest == self.meant.digest), None)

    @property
    def sentence(self) -> str:
        """What it says in words."""
        newest = self.state.newest
        called = f"version {newest.version} ({newest.digest[:8]})"
        if self.status == "promoted":
            return f"Tier {newest.tier} means {called} now: it is made again no longer."
        if self.current is None:
            return f"No image of what tier {newest.tier} means now was made again by {called} yet."
        return _said(self.current)


def shadow_report(catalog: Catalog, state: CandidateState, now: datetime, most: int | None = None) -> ShadowReport:
    """Everything that is known of a tier's newest candidate. Reads all of its events.

    Raises `StoreUnavailable`, and `InvalidInput` where there are more than `most` of them.
    """
    damaged = list[str]()
    events = list(islice(stored_pairs(catalog.store, catalog.model, state, damaged), most and most + 1))
    if most is not None and len(events) > most:
        command = f"python -m server.experiments shadow report {state.tier}"
        message = f"has more than {most:,} events, too many to be analysed beside requests: {command} reads them all"
        raise InvalidInput(message, param=f"the candidate of tier {state.tier}")
    pairs = summarise_pairs(event for event in events if event.candidate == state.newest.digest)
    try:
        alias = catalog.alias(state.tier)
        meant = Target(digest=alias.digest, version=alias.version)
    except NotFound:
        meant = None
    ordered = sorted(pairs, key=lambda pair: meant is None or pair.digest != meant.digest)
    return ShadowReport(state, state.status(meant.digest if meant else None, now), meant, ordered, damaged, now)


def as_json(report: ShadowReport) -> dict[str, Any]:
    """Plain values; an interval is {estimate, low, high}."""
    return {
        "tier": report.state.tier,
        "status": report.status,
        "candidate": report.state.newest.model_dump(mode="json"),
        "meant": report.meant and report.meant.model_dump(mode="json"),
        "said": report.sentence,
        "alpha": ALPHA,
        "pairs": [
            {
                "digest": pair.digest, "candidate": pair.candidate, "requests": pair.requests, "images": pair.images,
                "failed": pair.failed, "first": pair.first.isoformat(), "last": pair.last.isoformat(),
                "rfid": pair.rfids and {"active": pair.rfids[0], "candidate": pair.rfids[1]},
                "figures": [
                    {"figure": one.figure, "active": one.active, "candidate": one.candidate,
                     "by": "difference" if one.figure == "psnr" else "ratio",
                     "effect": one.effect and one.effect._asdict()}
                    for one in pair.figures
                ],
            }
            for pair in report.pairs
        ],
        "damaged": list(report.damaged),
        "time": report.time.isoformat(),
    }  # fmt: skip


def as_tables(report: ShadowReport) -> Group:
    """One table for each pair of schedules, and the sentence, for a terminal."""
    newest, parts = report.state.newest, list[Any]()
    head = f"tier {newest.tier}, candidate version {newest.version} ({newest.digest[:8]}), {report.status}"
    parts.append(Text(f"{head}, {newest.share:.0%} of the images until {newest.until:%Y-%m-%d %H:%M %Z}"))
    for pair in report.pairs:
        now = report.meant and pair.digest == report.meant.digest
        active = f"version {report.meant.version} ({pair.digest[:8]})" if report.meant and now else pair.digest[:8]
        title = (
            f"{'now' if now else 'earlier'}: {active}, {pair.images} images of {pair.requests} requests, {pair.failed} failed"
        )
        table = Table("", "active", "candidate", "difference or ratio", title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for one in pair.figures:
            table.add_row(
                NAMES[one.figure], *(_shown(one.figure, value) for value in (one.active, one.candidate)), _effect(one)
            )
        if pair.rfids:
            table.add_row("running rFID", *(f"{rfid:.4g}" for rfid in pair.rfids), f"{pair.rfids[1] - pair.rfids[0]:+.3g}")
        parts.append(table)
    parts += [Text(f"left out: {line}", style="red") for line in report.damaged]
    return Group(*parts, Text(report.sentence, style="bold"))


def _shown(figure: str, value: float) -> str:
    return f"{value / 1e9:.4g} G" if figure == "macs" else f"{value:.4g}"


def _effect(one: FigureComparison) -> str:
    if one.effect is None:
        return f"– (intervals from {FEW} requests on)"
    if one.figure == "psnr":
        return f"{one.effect.estimate:+.2f} [{one.effect.low:+.2f}, {one.effect.high:+.2f}]"
    return f"× {_times(one.effect)}"


def _times(effect: Interval) -> str:
    return f"{effect.estimate:.3f} [{effect.low:.3f}, {effect.high:.3f}]"


def _said(pair: PairSummary) -> str:
    known = {one.figure: one for one in pair.figures}
    if pair.requests < FEW or "psnr" not in known:
        return f"{pair.images} images of {pair.requests} requests were made by both: intervals begin at {FEW} requests."
    effects = [known[name].effect for name in ("psnr", "macs", "seconds")]
    assert all(effects), "there are as many of each as of pairs"
    quality, macs, seconds = (effect for effect in effects if effect)
    nearer = "nearer to" if quality.estimate > 0 else "further from"
    sure = "" if quality.low > 0 or quality.high < 0 else ", which may be chance"
    failed = f" {pair.failed} images it could not make." if pair.failed else ""
    return (
        f"The candidate's images are {abs(quality.estimate):.2f} dB {nearer} the teacher's "
        f"({quality.low:+.2f} to {quality.high:+.2f}{sure}), at {macs.estimate:.2f} of the MACs and "
        f"{seconds.estimate:.2f} of the time ({seconds.low:.2f} to {seconds.high:.2f}).{failed}"
    )

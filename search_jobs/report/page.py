"""report.html: one page that needs nothing beside itself. Its pictures also stand alone as PNGs in the run folder."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from search_jobs.report.compare import EqualCostComparison, compare
from search_jobs.report.figures import count, figure, macs, power
from search_jobs.report.front import front
from search_jobs.report.progress import progress
from search_jobs.report.run import FinishedRun
from search_jobs.report.samples import all_targets, one_target
from search_jobs.report.strips import strips
from search_jobs.report.style import DPI, save
from search_jobs.report.table import elsewhere, lines, scales_lost
from search_jobs.report.verdict import sentence, summary

PAGE = "report.html"
ELSEWHERE = {"size": "by_size", "guidance scale": "by_guidance"}
# autoescape: prompts, paths and names are other people's text
TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
TEMPLATES.trim_blocks = TEMPLATES.lstrip_blocks = True


def write(run: FinishedRun) -> list[Path]:
    """Write the page and its pictures into the run folder. Returns their paths, the page first."""
    pictures = [save(draw(), run.folder / name) for name, draw in _pictures(run)]
    page = run.folder / PAGE
    page.write_text(_html(run, {path.name: path for path in pictures}), encoding="utf-8")
    return [page, *pictures]


def _pictures(run: FinishedRun) -> Iterator[tuple[str, Callable[[], Figure]]]:
    yield "pareto.png", lambda: front(run)
    yield "strips.png", lambda: strips(run)
    yield "samples.png", lambda: all_targets(run)
    for target in run.shown:
        yield f"samples-{target.stem}.png", lambda target=target: one_target(run, target)  # type: ignore[misc]
    yield "progress.png", lambda: progress(run)
    if run.compared:
        comparison = EqualCostComparison.of(run.compared)
        yield "compare.png", lambda: compare(comparison)


def _html(run: FinishedRun, pictures: Mapping[str, Path]) -> str:
    report = run.report
    return TEMPLATES.get_template("page.html.j2").render(
        run=run,
        report=report,
        summary=summary(run.shown, report),
        sentences=[(target, sentence(target)) for target in run.targets],
        lines=lines(run),
        held_out=run.held_out,
        lost=scales_lost(run),
        elsewhere=[(title, rows) for title, by in ELSEWHERE.items() if (rows := elsewhere(run, by))],
        compared=EqualCostComparison.of(run.compared) if run.compared else None,
        facts=_facts(report),
        origin=_origin(report),
        settings=list(_flat(report["config"])),
        picture={name: _embedded(path) for name, path in pictures.items()},
        count=count,
        macs=macs,
        figure=figure,
    )


def _facts(report: Mapping[str, Any]) -> dict[str, str]:
    """The facts below the title: teacher, size of the space, what was evaluated, when and from which commit."""
    provenance, solver = report["provenance"], report["teacher"]["schedule"]["solver"]
    prompts = report.get("prompts", {"cut": 0})  # not in reports of earlier versions
    cut = {"prompts": "{prompts}; {cut} of them cut after {tokens} tokens".format(**prompts)} if prompts["cut"] else {}
    return {
        "teacher": f"{solver['name'].upper()}, {solver['teacher_steps']} steps, {macs(report['teacher']['macs'])}",
        "space": f"{power(report['space_size'])} schedules",
        "evaluated": f"{count(provenance['searched_schedules'])} schedules, {count(provenance['searched_images'])} images",
        "finished": provenance["finished"][:10],
        "commit": (provenance["commit"] or "unknown")[:12],
        "seed": str(provenance["seed"]),
        **cut,
    }


def _origin(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The model and the provenance, as names and values."""
    return [
        ("model", report["model"]["name"]),
        ("family", report["model"]["family"]),
        ("fingerprint", report["model"]["fingerprint"]),
        ("teacher's digest", report["teacher"]["digest"]),
        *_flat(report["provenance"]),
    ]


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values of a definition list; a nested value is one line."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield name, ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items()) or "none"
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(_plain, value)) or "none"
        else:
            yield name, _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value in (None, "") else str(value)


def _embedded(path: Path) -> dict[str, Any]:
    """The picture itself, and how wide it is where an inch has 96 pixels."""
    data = path.read_bytes()
    width = int.from_bytes(data[16:20], "big")  # of a PNG's header
    return {"src": f"data:image/png;base64,{b64encode(data).decode()}", "width": round(width * 96 / DPI)}

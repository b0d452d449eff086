"""docs/results.md and its pictures, from the summaries of what was measured and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from benchmarks.paper.contenders import OF_UNETS, OURS, PAPER
from benchmarks.paper.differences import CHANCE, EYE, PSNR, REAL, RFID, SCORE, differences
from benchmarks.paper.front import Front, drawn, keep, kept
from benchmarks.paper.strip import strip
from benchmarks.paper.subject import FULL, WITH_REAL, WITHOUT_REAL
from models.bundled import BUNDLED
from search_jobs.report.figures import count, figure, macs
from search_jobs.report.style import save

SUMMARY, SHOWN, PAGE, FRONT = "summary.json", "shown.npz", "results.md", "results-front"
NOT_MEASURED, NONE = "not measured", "–"

Summary = Mapping[str, Any]
Entry = Mapping[str, Any]

HEAD = """# Results

Fidelity at five costs, of ours and of the kinds of schedules below that could be there instead. `make paper` writes this page
(or `python -m benchmarks.paper page`) from what it measured; nothing in it is typed by hand, and what was not measured says so.

**Speed-up** is in MACs of the network, a UNet or a transformer: 5.1× is at most 1/5.1 of the teacher's. 2.6× and 5.1× are what
Flexiffusion's paper (arXiv 2409.17566) says of LDM-4-G and of Stable Diffusion v1.5 at nearly equal quality. **rFID** is the
Fréchet distance to the teacher's images of the same prompts and noise, **PSNR** the pixel error to them, **distance to real**
the Fréchet distance to real images that no training saw. Distances compare only within a model: same features, same number of
images. Every set of images has the same noise, and no schedule was chosen on it. Prompts are those that no search saw; of a
model with real images all its classes, half of which every search saw, for the real ones are of all.

What is **set by hand** is the best of these kinds: the most steps that the cost affords, or fewer where those are better;
caching of a UNet's four cheapest branches, on the teacher's steps at the smallest interval that the cost affords, on fewer
steps at intervals of 2, 3, 4, 5, 6, 8 and 10; all of it as the makers set the solver, the best of it with all three timestep
spacings and on Karras' levels too, and clipping where the makers clip. Other solvers (UniPC, DEIS, Heun), merged tokens and
caches that decide while they run are not among them. A transformer's partial steps compute the first n and
the last m blocks (**n+m**) and reuse the residual of the others, with n and m of 0, 1, 2, 4 and 8 as far as its blocks go:
first-block cache at a fixed interval is 1+0, DBCache's fixed masks are n+0 and n+n, NVIDIA's static defaults are 0+m. A
**Taylor forecast** (TaylorSeer, arXiv 2503.06923) adds, at 0+0, at each n+0 and at every interval, not the last residual but
its Taylor series over the timesteps, with differences between full steps as derivatives. It keeps one or two residuals more,
and no schedule of ours has it.
**Optimal timesteps** take the best of fewer steps and of caching on fewer steps further than by hand: to the timesteps that
dynamic programming chooses by the errors of the solver's own steps along the teacher's path, as GITS (arXiv 2405.11326) and OSS
(arXiv 2503.21774) do, from the teacher's first step on; late steps count in [four ways](search.md#how-a-search-works). Our
searches begin with timesteps that are chosen so by the errors of corrected steps.
**Set by hand, corrected** is the best of all these but forecasts with corrections as ours has them, fitted on the images of our
first search: it needs no search, and what lies between it and ours is what searching adds. As half of it is ours, it is not
among the rivals of the pictures.
**The paper's space** is the literal one (partial steps directly after full ones, no timesteps or corrections of their own),
searched as ours is, and then tried in every setting of its solver: what such a search finds, not the best that the space
holds, and here and there a schedule set by hand that lies in it is better.
**Ours** has, beside the choice of full, partial and null steps, timesteps of its own and mostly corrections fitted in closed
form, which no other rival has; where it has no partial steps (n+0 in the table of schedules), all of its gain is theirs. Of
several searches the table shows the middle one by rFID on these images, and the lowest and highest in parentheses.
All of these choose as a search does, by how far images' features lie from those of the teacher's image of the same noise, on
noise of their own; none of the figures here decides anything.

Intervals are 95 % bootstrap intervals, paired by noise: where that of a ratio excludes 1, the two differ. They speak of these
two schedules on other images; another search finds another schedule. For few images those of distances to real are too wide.
So whether a schedule is worse than the teacher is decided by a permutation test, which exchanges its images with the teacher's
of the same noise: **p** says how often they then differ as much, to about a hundredth. There are dozens of tests: by chance one
in twenty finds a difference, and one in forty one for the worse. Few images show large harm only, so that nothing is found says
little, of ours as of a rival.
"""

OLDER = """**Older figures**: those of {models} were measured before rivals might cache at longer intervals or be what is best
at a lower cost, and before a permutation test said what is worse: there a 95 % interval that excludes 0 does, which for so few
images errs both ways.
"""
NEWER = "with p <"  # in every section since


class Measured(NamedTuple):
    """A model's summary and the folder that it lies in."""

    summary: Summary
    folder: Path


def write(out: Path, docs: Path) -> Path:
    """Write the page and its pictures of what is measured below `out`. Returns the page's path.

    A model that is measured elsewhere keeps its section, and its panel.
    """
    docs.mkdir(parents=True, exist_ok=True)
    page, known = docs / PAGE, read(out)
    elsewhere = {model: text for model, text in _sections(page).items() if model not in known}
    models = [*dict.fromkeys((*BUNDLED, *known, *elsewhere))]
    parts = [HEAD]
    if older := [model for model, text in elsewhere.items() if NEWER not in text]:
        parts.append(OLDER.format(models=" and ".join(older)))
    parts += _front(docs / FRONT, models, known)
    for model in models:
        parts.append(f"## {model}\n")
        if model not in known:
            parts.append(elsewhere.get(model, f"{NOT_MEASURED.capitalize()}.\n"))
            continue
        picture = f"results-{model}.png"
        _save(strip(known[model].summary, known[model].folder / SHOWN), docs / picture)
        parts += _model(known[model].summary, picture)
    page.write_text("\n".join(parts), encoding="utf-8")
    return page


def _front(path: Path, models: Iterable[str], known: Mapping[str, Measured]) -> Iterator[str]:
    """The figure of all models, with those measured elsewhere as they were: what it shows is kept beside it."""
    figures, picture = path.with_suffix(".json"), path.with_suffix(".png")
    fronts = kept(figures) | {model: Front.of(one.summary) for model, one in known.items()}
    if fronts:
        ordered = {model: fronts[model] for model in models if model in fronts}
        keep(figures, ordered)
        _save(drawn(ordered), picture)
        yield f"![rFID against speed-up, a panel for each model]({picture.name})\n"


def _sections(page: Path) -> dict[str, str]:
    """What a page that is there says of each model that was measured."""
    text = page.read_text("utf-8") if page.is_file() else ""
    sections = [section.partition("\n\n") for section in text.split("\n## ")[1:]]
    return {model: said for model, _, said in sections if not said.startswith(NOT_MEASURED.capitalize())}


def _save(picture: Figure, path: Path) -> None:
    """In 256 colours, which makes a half of the file, and nobody sees it: the page is kept with the code."""
    with Image.open(save(picture, path)) as drawn:
        drawn.convert("RGB").quantize(256).save(path, optimize=True)


def read(out: Path) -> dict[str, Measured]:
    """The summaries by model; a full one goes before a quick one, and those of earlier versions, without p-values, are none."""
    found: dict[str, Measured] = {}
    for path in sorted(out.glob(f"*/{SUMMARY}")):
        summary = json.loads(path.read_bytes())
        model = summary["about"]["model"]
        if not all("p" in less for entry in summary["entries"] for less in entry["less_teacher"].values()):
            continue
        if model not in found or summary["about"]["effort"] == "full":
            found[model] = Measured(summary, path.parent)
    return found


def _model(summary: Summary, picture: str) -> Iterator[str]:
    about, score = summary["about"], summary["about"]["score"]
    yield _facts(about)
    yield f"![Images of the same noise: the teacher, ours, the best rival]({picture})\n"
    yield "Of each cost the first images; the best rival is the one with the smallest rFID; decibels are means of all images.\n"
    yield _differences(summary)
    for name, title, digits in (
        (RFID, "rFID to the teacher", None),
        (REAL, "Fréchet distance to real images", None),
        (PSNR, "PSNR to the teacher, dB", 1),
        (SCORE, score, 2),
    ):
        teacher = summary["teacher"]["figures"].get(name)
        if teacher is None:
            continue
        of_teacher = f" (the teacher: {_number(teacher['value'], digits)})" if name in (REAL, SCORE) else ""
        yield _table(f"{title}{of_teacher}", summary, lambda entries, n=name, d=digits: _cell(entries, n, d))
    if not score:
        yield "Nobody asks this model for anything in particular, so whether that is what is drawn has no figure.\n"
    if not about["real"]:
        yield "There are no real images at hand for this model, so no distance to any.\n"
    yield _table("rFID of ours over this one's", summary, lambda entries: _paired(entries, "ours_over_this", RFID), (OURS,))
    if about["real"]:
        title = "Distance to real images, ours over this one's"
        yield _table(title, summary, lambda entries: _paired(entries, "ours_over_this", REAL), (OURS,))
        yield _table(
            "Distance to real images, less the teacher's", summary, lambda entries: _paired(entries, "less_teacher", REAL)
        )
    if score:
        yield _table(f"{score}, less the teacher's", summary, lambda entries: _paired(entries, "less_teacher", SCORE))
    yield _table("The schedules: cost, and what was chosen", summary, _schedule)


def _kinds(summary: Summary) -> tuple[str, ...]:
    """Those of a model's table, in its order; summaries from before there were transformers do not say them."""
    return (*summary["about"].get("by_hand", OF_UNETS), PAPER, OURS)


def _facts(about: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in about["search"].items())
    return (
        f"* Date: {about['date']}\n* Machine: {about['machine']}, torch {about['torch']}\n* Command: `{about['command']}`\n"
        f"* Teacher: {about['teacher']}, {macs(about['macs'])} an image; guidance {about['guidance']:g}\n"
        f"* {count(about['images'])} images of each schedule; features {about['features']}; "
        f"{_searches(about['seeds'])} of each space ({settings})\n\n{_rough(about)}"
    )


def _rough(about: Mapping[str, Any]) -> str:
    """What is less here than in a table in full."""
    if about["effort"] != FULL.name:
        return "**A quick run: few images and small searches, so its figures are rough.**\n"
    full = WITH_REAL if about["real"] else WITHOUT_REAL
    less = [f"{count(about['images'])} images instead of {count(full)}"] * (about["images"] < full)
    less += [f"{_searches(about['seeds'])} of each space instead of {FULL.seeds}"] * (about["seeds"] < FULL.seeds)
    return f"**Less than `make paper` measures: {', '.join(less)}; so its figures are rough.**\n" if less else ""


def _searches(seeds: int) -> str:
    return f"{seeds} {'search' if seeds == 1 else 'searches'}"


def _differences(summary: Summary) -> str:
    """At which speed-ups each kind's images are worse than the teacher's."""
    about = summary["about"]
    measures = ["distance to real images"] * about["real"] + [about["score"]] * bool(about["score"])
    lines = [
        f"Worse than the teacher: in quality, where {' or '.join(measures) or 'a score'} differs from the teacher's in the "
        f"wrong direction with p < {CHANCE:g}; to the eye, where PSNR is below {EYE:g} dB. Different in quality, where one of "
        "them differs in any direction.\n",
        "| | worse in quality, at | different in quality, at | worse to the eye, at |\n|---|---|---|---|",
    ]
    for kind in _kinds(summary):
        entries = [entry for entry in summary["entries"] if entry["kind"] == kind and entry["middle"]]
        last = max((entry["speedup"] for entry in entries), default=0.0)  # of some kinds there is nothing as cheap
        said = [", ".join(f"{speedup:g}×" for speedup in at) or f"none up to {last:g}×" for at in differences(entries)]
        cells = [*(said[:2] if measures else [NONE] * 2), said[2]] if entries else [NOT_MEASURED] * 3
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _table(title: str, summary: Summary, cell: Any, without: Iterable[str] = ()) -> str:
    """Markdown: a line for each kind, a column for each speed-up. cell: what it says of the entries of one place."""
    speedups = sorted(summary["speedups"])
    measured = {entry["speedup"] for entry in summary["entries"]}
    lines = [f"| {title} | " + " | ".join(f"{speedup:g}×" for speedup in speedups) + " |", "|---|" + "---:|" * len(speedups)]
    for kind in (kind for kind in _kinds(summary) if kind not in set(without)):
        cells = []
        for speedup in speedups:
            entries = [entry for entry in summary["entries"] if entry["kind"] == kind and entry["speedup"] == speedup]
            missing = "none as cheap" if speedup in measured else NOT_MEASURED
            cells.append((cell(entries) or NONE) if entries else missing)
        name = f"**{kind}**" if kind == OURS else kind
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(entries: Sequence[Entry], name: str, digits: int | None) -> str:
    """A figure of the middle search, and the lowest and highest where there are several."""
    if name not in _middle(entries)["figures"]:
        return "not finite"
    value = _number(_middle(entries)["figures"][name]["value"], digits)
    all_values = sorted(entry["figures"][name]["value"] for entry in entries if name in entry["figures"])
    if len(entries) == 1:
        return value
    return f"{value} ({_number(all_values[0], digits)}–{_number(all_values[-1], digits)})"


def _paired(entries: Sequence[Entry], against: str, name: str) -> str:
    """A paired estimate of the middle search with its interval; differences with their signs."""
    paired = _middle(entries)[against].get(name)
    if not paired:
        return "not finite"
    if against == "ours_over_this":
        return f"{paired['value']:.3f} ({paired['low']:.3f}–{paired['high']:.3f})"
    return f"{paired['value']:+.3f} ({paired['low']:+.3f} to {paired['high']:+.3f}; p {paired['p']:.2g})"


def _schedule(entries: Sequence[Entry]) -> str:
    middle = _middle(entries)
    steps = middle["steps"]
    searched = f"{steps['full']}+{steps['partial']}" if middle["kind"] in (PAPER, OURS) else ""
    return f"{middle['cost']:.3f}: {searched or middle['name']}"


def _middle(entries: Sequence[Entry]) -> Entry:
    return next((entry for entry in entries if entry["middle"]), entries[0])


def _number(value: float, digits: int | None) -> str:
    return figure(value) if digits is None else f"{value:.{digits}f}"

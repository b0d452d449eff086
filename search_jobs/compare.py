"""A finished search against what can be set by hand, budget by budget, on prompts and noise that neither was chosen by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from registry.errors import InvalidInput, NotFound
from registry.schedule import Schedule
from search_jobs.job import Job, write_json
from search_jobs.objective import WORST, Measure
from search_jobs.optimiser import Point, hypervolume
from search_jobs.report import read
from search_jobs.results import WORST_POINT

EVERY = (2, 3, 4, 5)  # steps from one full step to the next in uniform caching: every one of these is tried
FILE = "compare.json"


def compare(job: Job, budgets: Sequence[float], twins: Sequence[Path] = ()) -> dict[str, Any]:
    """Measure, for each budget, the searched schedule and the strongest baseline of each family; write compare.json.

    Baselines are chosen on the images of the search, over solver steps, intervals and branches, as the searched schedule was
    chosen without the held-out images. `twins` are run folders of other searches of the same model and prompts, which hold out
    the same half of them: theirs are measured too.
    Raises `InvalidInput` for a budget that is no fraction, and for a twin of another model or of other prompts.
    """
    for i, budget in enumerate(budgets):
        if not 0 < budget <= 1:
            raise InvalidInput(f"a fraction of the teacher's cost in (0, 1], got {budget}", param=f"budget.{i}")
    found = {name: _chosen(folder, job, budgets) for name, folder in _named(job.folder, twins).items()}
    job.objective("held-out")
    with job.crew() as crew:
        by_hand = {
            (budget, family): [one for one in some if one.family == family]
            for budget in budgets
            for some in [list(job.hand.strongest(budget, job.config.teacher_steps, EVERY))]
            for family in dict.fromkeys(one.family for one in some)
        }
        strongest = {key: ranked[0] for key, ranked in job.rivals(crew, by_hand).items()}
        schedules = {
            schedule.digest: schedule
            for schedule in (
                *(one.schedule for one in strongest.values()),
                *(schedule for chosen in found.values() for schedule in chosen.values()),
            )
        }
        job.progress.stage("held-out", len(schedules) * job.config.heldout)
        results = job.measure(crew, "held-out", schedules.values(), fitting=False)
        measures = {digest: result.measure for digest, result in zip(schedules, results, strict=True)}
    own = found.pop(job.folder.name)
    document = {
        "heldout_images": job.config.heldout,
        "features": job.desk.extractor.name,
        "budgets": [
            {
                "relative": budget,
                "searched": _entry(own.get(budget), measures),
                "baselines": {
                    family: {"name": one.name, **_entry(one.schedule, measures)}  # type: ignore[dict-item]  # it was measured
                    for (at, family), one in strongest.items()
                    if at == budget
                },
            }
            for budget in budgets
        ],
        "hypervolume": {job.folder.name: _volume(own, measures)}
        | {name: _volume(chosen, measures) for name, chosen in found.items()},
        "twins": {name: [_entry(chosen.get(budget), measures) for budget in budgets] for name, chosen in found.items()},
    }
    write_json(job.folder / FILE, document)
    return document


def table(document: dict[str, Any]) -> Table:
    """A line per schedule; the ratio is the searched rFID over this one's."""
    grid = Table(title=f"{document['heldout_images']} held-out images: other prompts and other noise than any choice saw")
    grid.title_justify = "left"
    for column in ("budget", "schedule", "cost", "rFID", "95 %", "PSNR dB", "CLIP", "searched / this"):
        grid.add_column(column, justify="left" if column == "schedule" else "right", no_wrap=column != "schedule")
    for place, budget in enumerate(document["budgets"]):
        searched = budget["searched"]
        lines = [("searched", searched)] + [(entry["name"], entry) for entry in budget["baselines"].values()]
        lines += [(f"search {name}", entries[place]) for name, entries in document["twins"].items()]
        for i, (name, entry) in enumerate(lines):
            if entry is None:
                grid.add_row(f"{budget['relative']:.3f}" if i == 0 else "", f"{name}: none this cheap", style="dim")
                continue
            figures = (f"{entry['cost']:.3f}", *_figures(entry), _ratio(searched, entry) if i else "")
            budget_name = f"{budget['relative']:.3f}" if i == 0 else ""
            grid.add_row(budget_name, name, *figures, style="bold" if i == 0 else "", end_section=i + 1 == len(lines))
    return grid


def _figures(entry: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """rFID, its interval, PSNR and CLIP score, as text."""
    if entry["rfid"] == WORST:
        return "not finite", "–", "–", "–"
    low, high = entry["intervals"]["rfid"]
    score = "–" if entry["clip_score"] is None else f"{entry['clip_score']:.2f}"
    return f"{entry['rfid']:.4f}", f"{low:.3f}–{high:.3f}", f"{entry['psnr']:.2f}", score


def _ratio(searched: Mapping[str, Any] | None, entry: Mapping[str, Any]) -> str:
    """The searched rFID over this one's; empty where there is none to speak of."""
    if searched is None or WORST in (searched["rfid"], entry["rfid"]) or entry["rfid"] == 0:
        return ""
    return f"{searched['rfid'] / entry['rfid']:.3f}"


def _named(folder: Path, twins: Sequence[Path]) -> dict[str, Path]:
    named = {path.name: path for path in (folder, *twins)}
    if len(named) <= len(twins):
        raise InvalidInput("run folders must have different names", param="twin")
    return named


def _chosen(folder: Path, job: Job, budgets: Sequence[float]) -> dict[float, Schedule]:
    """A run's schedule for each budget: of those it chose that cost no more, the best one in the finals."""
    report = read(folder).report
    if report["model"] != job.desk.model.ref.model_dump(mode="json"):
        raise InvalidInput(f"{folder} is a search of another model", param="twin")
    if report["config"]["prompts_digest"] != job.config.prompts_digest:
        message = f"{folder} is a search on other prompts, which may be held out here; search again on those of {job.folder}"
        raise InvalidInput(message, param="twin")
    if not report["budgets"]:
        raise NotFound(f"{folder} chose no schedule", param="run")
    chosen = {}
    for budget in budgets:
        affordable = [entry for entry in report["budgets"] if entry["finals"]["cost"] <= budget]
        if affordable:
            best = min(affordable, key=lambda entry: entry["finals"]["loss"])
            chosen[budget] = Schedule.model_validate(best["schedule"])
    return chosen


def _entry(schedule: Schedule | None, measures: Mapping[str, Measure]) -> dict[str, Any] | None:
    return None if schedule is None else {"digest": schedule.digest, **measures[schedule.digest].row()}


def _volume(chosen: Mapping[float, Schedule], measures: Mapping[str, Measure]) -> float:
    """Of the held-out (cost, loss) of the chosen schedules."""
    found = [measures[schedule.digest] for schedule in chosen.values()]
    return round(hypervolume([Point(None, m.cost, m.loss) for m in found], WORST_POINT), 4)  # type: ignore[arg-type]  # genes play no part

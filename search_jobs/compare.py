"""A finished search against what can be set by hand, budget by budget, on prompts and noise that neither was chosen by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from registry.errors import InvalidInput, NotFound
from registry.schedule import Schedule
from search_jobs.baselines import Baseline
from search_jobs.config import WORST
from search_jobs.executor import Executor
from search_jobs.job import Job, write_json
from search_jobs.measurement import Measurement
from search_jobs.optimiser import Point, hypervolume
from search_jobs.report import read
from search_jobs.report.compare import title
from search_jobs.report.figures import estimate
from search_jobs.results import WORST_POINT
from search_jobs.rival import Rival, at_its_cost

FILE = "compare.json"


def compare(job: Job, budgets: Sequence[float], twins: Sequence[Path] = (), rivals: Sequence[Rival] = ()) -> dict[str, Any]:
    """Measure, for each budget, the searched schedule and the strongest baseline of each family; write compare.json.

    Baselines are chosen over solver steps, intervals, branches and every setting of the solvers, at last on the images that
    decided among the searched ones: none has seen the held-out images. `twins` are run folders of other searches of the same
    model and prompts, which hold out the same half of them: theirs are measured too, and so are the images of `rivals`, other
    models.
    Raises `InvalidInput` for a budget that is no fraction, and for a twin of another model or of other prompts.
    """
    for i, budget in enumerate(budgets):
        if not 0 < budget <= 1:
            raise InvalidInput(f"a fraction of the teacher's cost in (0, 1], got {budget}", param=f"budget.{i}")
    chosen = {name: _chosen(folder, job, budgets) for name, folder in _named(job.folder, twins).items()}
    for stage in ("finals", "held-out"):
        job.objective(stage)
    with job.executor() as executor:
        strongest = _strongest_by_family(job, executor, budgets)
        schedules = [baseline.schedule for baseline in strongest.values()]
        schedules += [schedule for by_budget in chosen.values() for schedule in by_budget.values()]
        by_digest = {schedule.digest: schedule for schedule in schedules}
        job.progress.begin("held-out", len(by_digest) * job.config.heldout)
        evaluations = job.evaluate(executor, "held-out", by_digest.values(), fitting=False)
    measurements = {digest: evaluation.measurement for digest, evaluation in zip(by_digest, evaluations, strict=True)}
    own = chosen.pop(job.folder.name)
    searched = {budget: measurements[schedule.digest] for budget, schedule in own.items()}
    document = {
        "heldout_images": job.config.heldout,
        "features": job.evaluator.extractor.name,
        "budgets": [
            {
                "relative": budget,
                "searched": _entry(own.get(budget), measurements),
                "baselines": {
                    family: {"name": baseline.name, **_entry(baseline.schedule, measurements, searched.get(budget))}  # type: ignore[dict-item]  # it was measured
                    for (at, family), baseline in strongest.items()
                    if at == budget
                },
            }
            for budget in budgets
        ],
        "hypervolume": {job.folder.name: _volume(own, measurements)}
        | {name: _volume(by_budget, measurements) for name, by_budget in chosen.items()},
        "twins": {
            name: [_entry(by_budget.get(budget), measurements, searched.get(budget)) for budget in budgets]
            for name, by_budget in chosen.items()
        },
    }
    document["rivals"] = [_rival_entry(*rival.measured(job), document, measurements) for rival in rivals]
    write_json(job.folder / FILE, document)
    return document


def table(document: dict[str, Any]) -> Table:
    """The comparison for the terminal: a line per schedule; the ratio is the searched rFID over this one's, paired by image."""
    grid = Table(
        title=f"{document['heldout_images']} held-out images: noise, and prompts where there are several, that no choice saw"
    )
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
    for entry in document.get("rivals", ()):
        grid.add_row(
            "rival", title(entry), f"{entry['cost']:.3f}", *_figures(entry), _ratio(at_its_cost(document, entry), entry)
        )
    return grid


def _figures(entry: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """rFID, its interval, PSNR and CLIP score, as text."""
    if entry["rfid"] == WORST:
        return "not finite", "–", "–", "–"
    low, high = entry["intervals"]["rfid"]
    score = "–" if entry["clip_score"] is None else f"{entry['clip_score']:.2f}"
    return f"{entry['rfid']:.4f}", f"{low:.3f}–{high:.3f}", f"{entry['psnr']:.1f}", score


def _ratio(searched: Mapping[str, Any] | None, entry: Mapping[str, Any]) -> str:
    """The searched rFID over this one's, with its paired interval where it has one; empty where there is none to speak of."""
    if paired := entry.get("searched_against_this", {}).get("rfid"):
        return estimate(paired)
    if searched is None or WORST in (searched["rfid"], entry["rfid"]) or entry["rfid"] == 0:
        return ""
    return f"{searched['rfid'] / entry['rfid']:.3f}"


def _strongest_by_family(job: Job, executor: Executor, budgets: Sequence[float]) -> dict[tuple[float, str], Baseline]:
    """For each budget and family the strongest baseline: of the best few on the images of the search the best in the finals."""
    groups: dict[tuple[float, str], list[Baseline]] = {}
    for budget in budgets:
        for baseline in job.baselines.every_setting(budget, job.config.teacher_steps):
            groups.setdefault((budget, baseline.family), []).append(baseline)
    ranked = job.rivals(executor, groups)
    finalists = [baseline.schedule for baselines in ranked.values() for baseline in baselines]
    losses = job.evaluations(executor).losses("by hand, finals", "finals", finalists)
    return {key: min(baselines, key=lambda baseline: losses[baseline.schedule.digest]) for key, baselines in ranked.items()}


def _named(folder: Path, twins: Sequence[Path]) -> dict[str, Path]:
    named = {path.name: path for path in (folder, *twins)}
    if len(named) <= len(twins):
        raise InvalidInput("run folders must have different names", param="twin")
    return named


def _chosen(folder: Path, job: Job, budgets: Sequence[float]) -> dict[float, Schedule]:
    """A run's schedule for each budget: of those it chose that cost no more, the best one in the finals."""
    report = read(folder).report
    if not job.evaluator.model.is_called(report["model"]["fingerprint"]):
        raise InvalidInput(f"{folder} is a search of another model", param="twin")
    if report["config"]["prompts_digest"] != job.config.prompts_digest:
        message = f"{folder} is a search on other prompts, which may be held out here; search again on those of {job.folder}"
        raise InvalidInput(message, param="twin")
    for setting in ("teacher_steps", "guidance", "sizes"):
        theirs, ours = report["config"].get(setting), job.config.model_dump(mode="json")[setting]
        if theirs != ours and setting in report["config"]:
            raise InvalidInput(f"{folder} is a search with {setting} {theirs}, and {job.folder} with {ours}", param="twin")
    if not report["budgets"]:
        raise NotFound(f"{folder} chose no schedule", param="run")
    chosen = {}
    for budget in budgets:
        affordable = [entry for entry in report["budgets"] if entry["finals"]["cost"] <= budget]
        if affordable:
            best = min(affordable, key=lambda entry: entry["finals"]["loss"])
            chosen[budget] = Schedule.model_validate(best["schedule"])
    return chosen


def _entry(
    schedule: Schedule | None, measurements: Mapping[str, Measurement], searched: Measurement | None = None
) -> dict[str, Any] | None:
    """What was measured of a schedule, and how the searched one compares with it, paired by image."""
    if schedule is None:
        return None
    own = measurements[schedule.digest]
    paired = {name: estimate._asdict() for name, estimate in searched.against(own).items()} if searched else {}
    return {"digest": schedule.digest, **own.document(), **({"searched_against_this": paired} if paired else {})}


def _rival_entry(
    about: Mapping[str, Any], measured: Measurement, document: Mapping[str, Any], measurements: Mapping[str, Measurement]
) -> dict[str, Any]:
    """Another model's figures, and how the searched schedule that costs no more compares with it, paired by image."""
    entry = {**about, **measured.document()}
    searched = at_its_cost(document, entry)
    paired = measurements[searched["digest"]].against(measured) if searched else {}
    return entry | ({"searched_against_this": {name: one._asdict() for name, one in paired.items()}} if paired else {})


def _volume(chosen: Mapping[float, Schedule], measurements: Mapping[str, Measurement]) -> float:
    """The hypervolume of the chosen schedules' held-out (cost, loss)."""
    held_out = [measurements[schedule.digest] for schedule in chosen.values()]
    return round(hypervolume([Point(None, m.cost, m.loss) for m in held_out], WORST_POINT), 4)  # type: ignore[arg-type]  # genes play no part

"""The search on a toy whose losses are known: what can be set by hand comes first, and each schedule is measured once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import model_folders
import numpy as np
import pytest
from places import ROOT
from typing_extensions import override

from engine.loading import load
from engine.model import Model
from engine.noise import NoiseLevels, Walk
from registry.corrections import Correction
from registry.schedule import ModelRef, Schedule, Segment, Solver, SolverName
from search_jobs.baselines import Baseline
from search_jobs.best_timesteps import BestTimesteps
from search_jobs.choice import choices
from search_jobs.config import JobConfig
from search_jobs.evaluations import Evaluations
from search_jobs.evaluator import EvaluationTask
from search_jobs.executor import Executor
from search_jobs.job import Job
from search_jobs.ledger import Ledger
from search_jobs.measurement import Measurement
from search_jobs.objective import Evaluation
from search_jobs.optimiser import PARENTS
from search_jobs.prefix_caching import MacsSpent
from search_jobs.screening import PATTERNS, RIVALS
from search_jobs.search import ALIKE, Search, intervals, space_of
from search_jobs.space import LATE, Genome, Space
from search_jobs.stages import stages

MODEL = ModelRef(name="toy", family="unet2d-condition", fingerprint="sha256:" + "0" * 64)
SOLVERS: tuple[SolverName, ...] = ("ddim", "dpmsolver++")
LEVELS = NoiseLevels(np.linspace(0.999, 0.001, 1000), 1.0, "epsilon", dict.fromkeys(SOLVERS, Walk("trailing", 0)))
SPACE = Space(MODEL, LEVELS, branches=4, teacher_steps=20, solvers=("ddim",), segments=(2, 10))
BUDGETS = {"dear": 0.4, "cheap": 0.2}
CONFIG = JobConfig(
    model="m", features="f", guidance=3, teacher_steps=20, screen=2, images=3, select=4, finals=5, population=8, generations=3,
    tiers=BUDGETS, budgets=(), scales=(),
)  # fmt: skip


def cost_of(schedule: Schedule) -> float:
    return sum(1.0 if step.kind == "full" else 0.1 * step.branch for step in schedule.steps() if step.kind != "null") / 20


def loss_of(schedule: Schedule) -> float:
    """A dearer schedule is better; corrections help, and then the solver does not matter."""
    loss = 1 / cost_of(schedule) - 0.01 * max(segment.branch for segment in schedule.segments)
    return loss + (0 if schedule.corrections else 4.5 if schedule.solver.name == "dpmsolver++" else 4)


def shape(segments: Sequence[Segment]) -> tuple[int, int]:
    return len(segments), segments[0].branch


def by_hand() -> dict[float, list[Baseline]]:
    """Of each budget: both solvers, several numbers of steps and depths; the same of each by name."""
    every = []
    for name in SOLVERS:
        for full in (2, 3, 4, 5, 6):
            for branch in (1, 2, 3):
                segment = Segment(partial=(1,), branch=branch)
                solver = Solver(name=name, teacher_steps=2 * full, spacing="trailing")
                every.append(Schedule(model=MODEL, solver=solver, segments=(segment,) * full))
    return {
        budget: [Baseline("cached", f"{one.digest[:8]}", one) for one in every if budget - 0.2 < cost_of(one) <= budget]
        for budget in sorted(BUDGETS.values())
    }


class Toy(Executor):
    """Losses by formula: one for all stages but those that `of_stage` has another for."""

    def __init__(self) -> None:
        self.tasks: list[EvaluationTask] = []
        self.of_stage: dict[str, Callable[[Schedule], float]] = {}

    @override
    def evaluate(self, tasks: Sequence[EvaluationTask], done: Callable[[int], None]) -> Iterator[tuple[int, Evaluation]]:
        for i, task in enumerate(tasks):
            self.tasks.append(task)
            schedule = task.schedule
            if task.fitting:
                schedule = schedule.model_copy(update={"corrections": (Correction(guidance=1.1),) * schedule.computed})
            loss = self.of_stage.get(task.stage, loss_of)(schedule)
            measurement = Measurement(cost_of(schedule), 1, loss, 0.1, 30.0, None, 2)
            yield i, Evaluation(schedule, measurement, MacsSpent(1, 0))


class Silent:
    """No progress."""

    def begin(self, name: str, images: int) -> None: ...

    def advance(self, images: int) -> None: ...


def search(
    folder: Path, config: JobConfig = CONFIG, space: Space = SPACE, own: Mapping[SolverName, BestTimesteps] | None = None
) -> tuple[Search, Toy]:
    folder.mkdir(exist_ok=True)
    toy = Toy()
    evaluations = Evaluations(Ledger(folder / "ledger.jsonl"), toy, stages(config, ["a", "b"]), Silent())
    return Search(config, space, evaluations, cost_of, own), toy


def begun(one: Search, every: Mapping[float, Sequence[Baseline]]) -> Search:
    """What can be set by hand is known, and the first children are the same patterns on the first solver."""
    one.by_hand(every)
    one.begin({budget: [b.schedule for b in of if b.schedule.solver.name == SOLVERS[0]] for budget, of in every.items()})
    return one


def test_each_pattern_is_screened_and_the_best_of_them_in_every_setting(tmp_path: Path) -> None:
    """DPM-Solver++ is behind DDIM here: of most patterns nobody needs to know by how much."""
    one, toy = search(tmp_path)
    every = by_hand()
    one.by_hand(every)
    assert not any(task.fitting for task in toy.tasks)
    asked = [task.schedule for task in toy.tasks if task.stage == "screen"]
    assert len(asked) == len({schedule.digest for schedule in asked})
    for budget, group in every.items():
        patterns = {baseline.schedule.segments for baseline in group}
        assert len(patterns) > PATTERNS
        mine = [schedule for schedule in asked if budget - 0.2 < cost_of(schedule) <= budget]
        assert {schedule.segments for schedule in mine} == patterns
        best = sorted(group, key=lambda baseline: loss_of(baseline.schedule))
        others = {schedule.segments for schedule in mine if schedule.solver.name == "dpmsolver++"}
        assert others == set(list(dict.fromkeys(baseline.schedule.segments for baseline in best))[:PATTERNS])
        assert one.rivals[budget] == best[:RIVALS]


def test_the_first_children_are_all_even_patterns_and_of_each_budget_several_come_to_the_last_rung(tmp_path: Path) -> None:
    one, toy = search(tmp_path)
    every = by_hand()
    begun(one, every)
    assert not any(task.fitting for task in toy.tasks)
    one.generation()
    for budget, group in every.items():
        patterns = list(dict.fromkeys(shape(baseline.schedule.segments) for baseline in group))
        of = {stage: tried(toy, stage, budget) for stage in ("screen", "search", "select")}
        assert [shape(schedule.segments) for schedule in of["screen"]] == patterns, "each pattern once"
        best = sorted(of["screen"], key=loss_of)
        assert len(patterns) > PARENTS > round(CONFIG.share * len(patterns))
        for stage in ("search", "select"):
            assert {one.segments for one in of[stage]} == {one.segments for one in best[:PARENTS]}


@pytest.mark.parametrize(
    ("branches", "expected"), [(1, (2, 3, 4, 5)), (4, (2, 3, 4, 5)), (5, (2, 3, 4)), (16, (2, 3)), (90, (2, 3))]
)
def test_a_search_begins_with_about_as_many_patterns_of_any_model(branches: int, expected: Sequence[int]) -> None:
    assert intervals(branches) == expected


def strongest_of(one: Search) -> list[Genome]:
    """What is best by hand, as the space holds it."""
    return [genome for rivals in one.rivals.values() for of in rivals if (genome := one.space.adopt(of.schedule))]


def tried(toy: Toy, stage: str, budget: float) -> list[Schedule]:
    """The children that were measured in a stage; budgets are 0.2 apart."""
    of_stage = [task.schedule for task in toy.tasks if task.stage == stage and (task.fitting or stage == "select")]
    return [schedule for schedule in of_stage if budget - 0.2 < cost_of(schedule) <= budget]


def test_patterns_rank_by_what_they_are_worth_corrected(tmp_path: Path) -> None:
    """Here corrections turn the order round: by hand the dearest are the best, and children are the cheapest."""
    one, toy = search(tmp_path)
    toy.of_stage["screen"] = lambda schedule: cost_of(schedule) if schedule.corrections else loss_of(schedule)
    begun(one, by_hand()).generation()
    for budget, rivals in one.rivals.items():
        costs = sorted(cost_of(schedule) for schedule in tried(toy, "screen", budget))
        assert {cost_of(schedule) for schedule in tried(toy, "search", budget)} <= set(costs[:PARENTS])
        assert cost_of(rivals[0].schedule) > costs[PARENTS]


def test_where_the_best_timesteps_are_known_all_are_tried_of_the_best_patterns(tmp_path: Path) -> None:
    """First late steps count as early ones, then, of the best patterns, less and more. Further generations are mutations."""
    before, at, after = np.ogrid[-1:20, 0:20, 0:21]
    errors = np.where((before < at) & (at < after), np.random.default_rng(0).exponential(size=(21, 20, 21)), np.inf)
    best = BestTimesteps(list(range(999, 199, -40)), np.linspace(0.1, 1, 21), errors)
    one, toy = search(tmp_path, space=replace(SPACE, best=best))
    begun(one, by_hand()).generation()
    first = [task.schedule for task in toy.tasks if task.stage == "screen" and task.fitting]
    asked = {(schedule.segments, schedule.timesteps) for schedule in first}
    alike = {(schedule.segments, best.chosen(schedule.computed, ALIKE)) for schedule in first}
    assert asked == alike | {(genome.segments, genome.timesteps) for genome in strongest_of(one)}
    parents = {budget: one.evolution.best(budget)[:PARENTS] for budget in sorted(BUDGETS.values())}
    one.generation()
    second = [task.schedule for task in toy.tasks if task.stage == "screen" and task.fitting][len(first) :]
    expected = {
        (point.genome.segments, timesteps)
        for points in parents.values()
        for point in points
        for late in LATE
        if (timesteps := best.chosen(point.genome.computed, late)) != point.genome.timesteps
    } - asked
    assert {(schedule.segments, schedule.timesteps) for schedule in second} == expected
    one.generation()
    third = [task.schedule for task in toy.tasks if task.stage == "screen" and task.fitting][len(first) + len(second) :]
    assert len(third) == CONFIG.population


def test_a_search_goes_on_from_its_ledger_and_ends_alike(tmp_path: Path) -> None:
    whole, toy = search(tmp_path / "whole")
    begun(whole, by_hand()).run()
    lines = (tmp_path / "whole" / "ledger.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == len(toy.tasks)
    for kept in (1, len(lines) // 3, len(lines) - 1):
        folder = tmp_path / str(kept)
        folder.mkdir()
        (folder / "ledger.jsonl").write_text("".join(lines[:kept]))
        again, rest = search(folder)
        begun(again, by_hand()).run()
        assert again.evolution.history == whole.evolution.history
        assert again.evaluations.images == whole.evaluations.images == 2 * len(toy.tasks)
        assert len(rest.tasks) == len(lines) - kept, "nothing is measured twice"


def test_a_longer_search_begins_as_a_shorter_one(tmp_path: Path) -> None:
    short, _ = search(tmp_path / "short")
    long, _ = search(tmp_path / "long", CONFIG.model_copy(update={"generations": 6}))
    for one in (short, long):
        begun(one, by_hand()).run()
    assert long.evolution.history[: len(short.evolution.history)] == short.evolution.history
    assert len(long.evolution.history) > len(short.evolution.history)


def test_a_child_that_reached_the_last_rung_has_the_loss_on_its_images_and_those_of_the_rung_before(
    tmp_path: Path,
) -> None:
    one, toy = search(tmp_path)
    toy.of_stage |= {"search": lambda schedule: 3 * loss_of(schedule), "select": lambda schedule: loss_of(schedule) + 20}
    begun(one, by_hand())
    points = one.ladder.climb("children", one.evolution.ask())
    assert {point.rung for point in points} == {0, 1, 2}
    for point in points:
        loss = loss_of(one.ladder.fitted[point.genome])
        images = CONFIG.images + CONFIG.select
        losses = [loss, 3 * loss, (3 * loss) ** (CONFIG.images / images) * (loss + 20) ** (CONFIG.select / images)]
        assert point.loss == pytest.approx(losses[point.rung])


@pytest.mark.parametrize("hand", [1000, -1000])
def test_a_tier_is_the_best_of_the_finals_by_hand_or_not(tmp_path: Path, hand: float) -> None:
    """There all that was found comes in the opposite order, and what is set by hand lies far behind it or far ahead."""
    one, toy = search(tmp_path)
    begun(one, by_hand()).run()
    found, rivals = one.finalists(), {budget: [rival.schedule for rival in best] for budget, best in one.rivals.items()}
    losses: dict[str, float] = {schedule.digest: -place for best in found.values() for place, schedule in enumerate(best)}
    losses |= {schedule.digest: hand - place for best in rivals.values() for place, schedule in enumerate(best)}
    toy.of_stage["finals"] = lambda schedule: losses[schedule.digest]
    chosen = choices(one.evaluations, found, one.rivals)
    assert [choice.ceiling for choice in chosen] == sorted(BUDGETS.values())
    for choice in chosen:
        last = found[choice.ceiling][-1], rivals[choice.ceiling][-1]
        assert min(len(found[choice.ceiling]), len(rivals[choice.ceiling])) > 1
        assert choice.baseline == one.rivals[choice.ceiling][-1]
        assert choice.schedule == last[hand < 0]
    nothing: dict[float, list[Schedule]] = {budget: [] for budget in one.rivals}
    for choice in choices(one.evaluations, nothing, one.rivals):
        assert choice.baseline is not None
        assert choice.schedule == choice.baseline.schedule


def even(points: int) -> BestTimesteps:
    """Along a path on which a step costs the square of its length: the best timesteps are even."""
    errors = np.full((points + 1, points, points + 1), np.inf)
    for before in range(-1, points):
        for at in range(before + 1, points):
            errors[before + 1, at, at + 1 :] = (np.arange(at + 1, points + 1) - at) ** 2
    return BestTimesteps([980 - 49 * i for i in range(points)], np.linspace(0, 1, points + 1), errors)


@pytest.mark.parametrize("plain_loss", [0.0, 1000.0])
def test_an_uncorrected_schedule_at_the_best_timesteps_of_its_solver_is_a_finalist_too(
    tmp_path: Path, plain_loss: float
) -> None:
    """Of full steps alone, the best of each budget, and it takes the tier where it is better than what was found."""

    def loss(schedule: Schedule) -> float:
        return plain_loss if schedule.timesteps and not schedule.corrections else loss_of(schedule)

    solver, every = Solver(name="ddim", teacher_steps=4, spacing="trailing"), by_hand()
    four = Schedule(model=MODEL, solver=solver, segments=(Segment(),) * 4)
    every[0.2].append(Baseline("fewer-step ddim", "4 steps ddim", four))
    elsewhere = four.model_copy(update={"solver": solver.model_copy(update={"spacing": "linspace"})})
    every[0.2].append(Baseline("fewer-step ddim", "4 steps ddim, linspace", elsewhere))
    one, toy = search(tmp_path, own={"ddim": even(20)})
    toy.of_stage["finals"] = loss
    begun(one, every)
    assert one.plain[0.4] == [], "no schedule of full steps alone was among these"
    uncorrected = [task.schedule for task in toy.tasks if task.schedule.timesteps and not task.schedule.corrections]
    assert len(uncorrected) == 1, "with timesteps of its own the spacing decides nothing"
    (plain,) = one.plain[0.2]
    assert (plain.segments, plain.solver, plain.corrections) == (four.segments, four.solver, None)
    assert plain.timesteps == even(20).chosen(4, ALIKE)
    one.run()
    assert one.finalists()[0.2][-1] == plain
    cheap, dear = choices(one.evaluations, one.finalists(), one.rivals)
    assert (cheap.schedule == plain) == (plain_loss == 0)
    assert dear.schedule.corrections is not None
    without, _ = search(tmp_path / "without")
    begun(without, every).run()
    assert without.plain == {0.2: [], 0.4: []}
    for found, begins in ((one, True), (without, False)):
        asked = {(point.genome.segments, point.genome.timesteps) for point in found.evolution.history}
        assert ((plain.segments, plain.timesteps) in asked) == begins, "with corrections it is a child like any other"


def test_the_space_has_one_solver_where_corrections_make_them_alike_and_else_both(model: Model, tmp_path: Path) -> None:
    assert space_of(model, CONFIG).solvers == ("ddim",)
    for change in ("correct", "retime"):
        assert space_of(model, CONFIG.model_copy(update={change: False})).solvers == SOLVERS
    assert space_of(load(model_folders.ddpm(tmp_path / "clipped")), CONFIG).solvers == SOLVERS


def test_a_job_gives_its_search_the_teachers_path_where_timesteps_are_free_and_it_is_one_path(
    tmp_path: Path, tiny_config: Mapping[str, Any]
) -> None:
    """Not on the solver's own timesteps, nor where the teacher draws fresh noise. Without corrections errors are DDIM's."""

    def best_of(model: Path, **changes: object) -> BestTimesteps | None:
        features = ROOT / "models" / "emoji64" / "clip"
        given = {"model": str(model), "features": str(features), "teacher_steps": 8, "guidance": 1, "images": 2, "screen": 2}
        config = JobConfig.parse({**given, "tiers": {"half": 0.5}, "budgets": (), **changes})
        job = Job(config, tmp_path / str(len(list(tmp_path.iterdir()))), Silent())
        with job.executor() as executor:
            made = job.search(job.evaluations(executor))
        assert set(made.own) == (set(SOLVERS) if made.space.best and job.config.correct else set())
        return made.space.best

    pixels, prompts = model_folders.ddpm(tmp_path / "pixels"), tmp_path / "prompts.txt"
    prompts.write_text("red heart\ncat face\n")
    best = best_of(pixels)
    assert best is not None
    assert len(best.timesteps) == 8
    assert np.ptp(best.errors[:4, 3, 5]) > 0, "the step before matters"
    plain = best_of(pixels, correct=False)
    assert plain is not None
    assert np.ptp(plain.errors[:4, 3, 5]) == 0
    assert best_of(pixels, retime=False) is None
    assert best_of(model_folders.lcm(tmp_path / "lcm", tiny_config), prompts=str(prompts), scales=()) is None

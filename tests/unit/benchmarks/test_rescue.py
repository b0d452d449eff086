"""Programs that end as another schedule's are what they say, and a virtual server rescues whom it should and nobody else."""

from __future__ import annotations

from math import inf

import pytest
import torch
from diffusers import DDIMScheduler
from server_model import small_model

from benchmarks.rescue.fidelity import Images, Switch, switches
from benchmarks.rescue.suffix import rescued, segment_starts
from benchmarks.rescue.virtual import AUTO, Arrival, RescuingGpu, When, arrivals, run
from engine import sampler
from engine.model import Model
from engine.program import Program
from loadtests.capacity.gpu import ServerSettings
from loadtests.capacity.images import TierPlan
from loadtests.card import FULL, CallCost, Card
from registry.corrections import Correction
from registry.errors import Unsupported
from registry.schedule import Schedule, Segment, Solver, teacher
from search_jobs.objective import Sample

CARD = Card("a card", {FULL: CallCost({1: 10.0, 16: 40.0}), 1: CallCost({1: 4.0, 16: 16.0})}, CallCost({1: 5.0, 8: 20.0}))
MACS = {FULL: 100.0, 1: 40.0}


@pytest.fixture
def model(tiny) -> Model:
    return small_model(tiny)


def program(model: Model, steps: int, *segments: Segment, corrections: tuple[Correction, ...] | None = None) -> Program:
    solver = Solver(name="ddim", teacher_steps=steps, spacing="trailing")
    return model.compile(Schedule(model=model.ref, solver=solver, segments=segments, corrections=corrections))


def corrections(count: int) -> tuple[Correction, ...]:
    return tuple(Correction(latent=0.01 * (i + 1), output=-0.02 * (i + 1), before=0.005 * i) for i in range(count))


def plan(model: Model, tier: str, one: Program) -> TierPlan:
    return TierPlan.running(tier, [step.need for step in one.steps], MACS)


def test_a_program_that_is_left_for_itself_stays_what_it_is(model: Model) -> None:
    own = program(model, 12, *[Segment(partial=(1,), branch=1)] * 4, corrections=corrections(8))
    for position in segment_starts(own):
        assert rescued(own, position, own) == own


def test_a_schedule_with_the_same_steps_so_far_is_gone_on_with_as_it_is(model: Model) -> None:
    own = program(model, 12, *[Segment(partial=(1, 2), branch=1)] * 4, corrections=corrections(12))
    fitted = (*corrections(9), *(Correction(latent=-0.3) for _ in range(1)))
    other = program(
        model, 12, *[Segment(partial=(1, 2), branch=1)] * 2, Segment(partial=(1, 2), branch=1), Segment(), corrections=fitted
    )
    assert rescued(own, 9, other) == other


def test_without_corrections_a_rescue_of_ddim_is_ddim_on_the_points_of_both(model: Model) -> None:
    own, other = model.compile(teacher(model.ref, model.solver("ddim", 12))), program(model, 12, *[Segment()] * 4)
    found = rescued(own, 4, other)
    assert [step.timestep for step in found.steps] == [own.steps[i].timestep for i in (0, 1, 2, 3, 4, 6, 9)]
    noise, condition = torch.stack([model.noise(1)]), model.encode(["a"])
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    latent, alphas = noise, scheduler.alphas_cumprod
    with torch.inference_mode():
        for step, after in zip(found.steps, [*found.steps[1:], None], strict=True):
            output = model.network.full(latent, torch.tensor([step.timestep]), condition)[0]
            alpha = alphas[int(step.timestep)]
            end = alphas[int(after.timestep)] if after else scheduler.final_alpha_cumprod
            clean = (latent - (1 - alpha).sqrt() * output) / alpha.sqrt()
            latent = end.sqrt() * clean + (1 - end).sqrt() * output  # arXiv 2010.02502, equation 12
    assert torch.allclose(sampler.generate(model.network, found, noise, condition), latent, atol=1e-4)


def test_a_rescue_ends_where_the_other_schedule_does_and_descends_all_the_way(model: Model) -> None:
    own = program(model, 12, *[Segment(partial=(2,), branch=1)] * 3, corrections=corrections(6))
    other = program(model, 10, *[Segment(partial=(2,), branch=2)] * 2, corrections=corrections(4))
    for position in segment_starts(own):
        found = rescued(own, position, other)
        times = [step.timestep for step in found.steps]
        assert times == sorted(set(times), reverse=True)
        assert (found.steps[-1].signal, found.steps[-1].sigma) == (other.steps[-1].signal, other.steps[-1].sigma)
        assert found.steps[:position] == own.steps[:position]
        kept = 0
        for step in found.steps:  # each partial step finds a feature of its own branch
            kept = step.branch if step.kind == "full" else kept
            assert step.kind == "full" or step.branch == kept


def test_corrections_behind_a_switch_are_the_others_own_and_there_is_none_at_it(model: Model) -> None:
    own, fitted = program(model, 12, *[Segment()] * 12), corrections(4)
    other = program(model, 12, *[Segment()] * 4, corrections=fitted)
    kept, bare = (rescued(own, 4, other, fitted=fitted_).steps[4:] for fitted_ in (True, False))
    moved = [step.next_x - plain.next_x for step, plain in zip(kept, bare, strict=True)]
    assert moved == pytest.approx([0.0, *(by.latent for by in fitted[2:])])


def test_stochastic_solvers_are_refused(model: Model) -> None:
    ancestral = model.compile(teacher(model.ref, model.solver("euler-ancestral", 6)))
    with pytest.raises(Unsupported, match="stochastic"):
        rescued(ancestral, 2, ancestral)


def test_what_is_fitted_for_a_suffix_is_nearer_to_the_teachers_path_on_the_images_of_the_fit(model: Model) -> None:
    whole = model.compile(teacher(model.ref, model.solver("ddim", 6)))
    images = Images(model, Sample(["a"], [1]), 3.0)
    bare = rescued(whole, 2, program(model, 6, *[Segment()] * 2), fitted=False)
    path = images.path(whole)
    fitted = images.refitted(bare, 2, path)
    assert fitted.steps[:2] == bare.steps[:2]

    def distance(one: Program) -> float:
        made = sampler.generate(model.network, one, images.noise, *images.conditions, images.guidance)
        return float(((made - path.end) ** 2).mean())

    assert distance(fitted) < distance(bare)


@pytest.fixture
def served(model: Model) -> tuple[dict[str, TierPlan], dict[Switch, TierPlan]]:
    programs = {
        "cheap": program(model, 12, *[Segment()] * 3),
        "dear": program(model, 12, *[Segment(partial=(1,), branch=1)] * 6),
    }
    plans = {tier: plan(model, tier, one) for tier, one in programs.items()}
    found = switches(programs, {tier: one.macs_before[-1] for tier, one in plans.items()})
    return plans, {one: plan(model, one.tier, rescued(programs[one.tier], one.position, programs[one.to])) for one in found}


Served = tuple[dict[str, TierPlan], dict[Switch, TierPlan]]


def gpu(served: Served, when: When) -> RescuingGpu:
    return RescuingGpu(CARD, *served, when, ServerSettings(graphs=False))


def test_a_tight_load_misses_less_when_images_are_rescued_and_owes_nothing_at_its_end(served: Served) -> None:
    load = arrivals(40, {"dear": 1}, {"dear": (0.4,)}, 200, seed=1)
    missed = {}
    for when in When:
        server = gpu(served, when)
        made = run(server, load)
        assert len(made) == len(load)
        assert server.admission.seconds == 0
        missed[when] = sum(not image.in_time for image in made)
        assert any(image.rescue for image in made) == (when is not When.NEVER)
        assert when is not When.RUNNING or all(image.rescue.position for image in made if image.rescue)
    assert missed[When.ALWAYS] < missed[When.RUNNING] < missed[When.NEVER]


def test_without_need_nobody_is_rescued(served: Served) -> None:
    load = [Arrival(float(i), "dear", 5.0) for i in range(10)]
    made = run(gpu(served, When.ALWAYS), load)
    assert [image.rescue for image in made] == [None] * 10
    assert [image.done_at for image in made] == [image.done_at for image in run(gpu(served, When.NEVER), load)]


def test_what_no_suffix_could_save_goes_on_as_it_is_and_ends_at_its_deadline(served: Served) -> None:
    made = run(gpu(served, When.ALWAYS), [Arrival(0.0, "dear", 0.01)])
    assert made[0].rescue is None
    assert made[0].done_at == inf


def test_auto_takes_the_dearest_tier_that_should_be_in_time(served: Served) -> None:
    server = gpu(served, When.NEVER)
    assert [server.dearest(Arrival(0.0, AUTO, seconds)) for seconds in (5.0, 0.0)] == ["dear", "cheap"]

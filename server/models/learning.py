"""What learns from a model's requests: its experiments, the shadow teacher, and the candidates of its tiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from engine.model import Model
from registry.schedule import Schedule
from registry.tiers import REFERENCE
from server.batching.image_task import ImageSpec
from server.config import Settings
from server.experiments.active import ActiveExperiments
from server.experiments.candidates import ActiveCandidates
from server.experiments.recorder import Recorder
from server.experiments.runtime import ExperimentRuntime
from server.models.adapter_sets import AdapterSets
from server.models.model_registry import ModelRegistry
from server.requests.fidelity import Extractor, Fidelities
from server.requests.generation import Renderer, RequestObserver
from server.requests.idle_images import IdleImages
from server.requests.shadow import ShadowTeacher
from server.requests.shadow_candidate import ShadowCandidate
from server.tiers.active import ActiveSchedules
from server.tiers.last_good import name_of
from server.tiers.observer import RegistryObserver


@dataclass(frozen=True)
class Learning:
    """observers: of every request's end, those that learn from it. idle: images that are made again while nothing else is."""

    experiments: ExperimentRuntime
    candidates: ActiveCandidates
    idle: IdleImages
    observers: Sequence[RequestObserver]

    def schedules(self) -> list[Schedule]:
        """Those that images are made with beside the tiers' own: arms of experiments, and candidates."""
        arms = [arm.schedule for running in self.experiments.active.running() for arm in running.arms.values()]
        return [*arms, *(one.entry.schedule for one in self.candidates.active())]


def learning(
    settings: Settings,
    registry: ModelRegistry,
    schedules: ActiveSchedules,
    model: Model,
    renderer: Renderer,
    sets: AdapterSets,
    features: Extractor | None,
    observer: RegistryObserver,
) -> Learning:
    """All of it, at work. renderer: makes images again; features: of images, where distances are wanted."""
    outbox = settings.state / "outbox" / name_of(settings.registry, registry.model)
    recorder = Recorder(lambda: registry.catalog.store, registry.model, outbox)
    recorder.start()
    active = ActiveExperiments(lambda: registry.experiments, schedules, observer=observer)
    experiments = ExperimentRuntime(active, recorder, lambda: registry.experiments, shadowed=settings.shadow_share > 0)
    candidates = ActiveCandidates(lambda: registry.candidates, schedules, recorder)
    idle = IdleImages(renderer, _macs(model), settings.shadow_macs_per_minute, sets.borrow)
    fidelities, teacher = Fidelities(features), partial(schedules.tier, REFERENCE)
    shadows = [
        ShadowTeacher(idle, teacher, fidelities, settings.shadow_share, [experiments]),
        ShadowCandidate(idle, teacher, fidelities, candidates),
    ]
    return Learning(experiments, candidates, idle, [experiments, *shadows])


def _macs(model: Model) -> Callable[[ImageSpec], int]:
    """What making an image takes, guidance rows included."""
    return lambda spec: model.macs_at(spec.size, spec.chunks).of_program(spec.program, spec.unet_rows)

"""One of the models of a server: what it is called, whether it is in memory, and all that serves its requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Literal

from typing_extensions import override

from engine.curve import CostCurve
from engine.image_size import ImageSize
from engine.model import Model
from engine.program import Program
from registry.schedule import Schedule
from server.api import MAX_PROMPT, RequestWarning
from server.batching.admission import Admission
from server.batching.image_task import ImageResult, ImageSpec, Preview, Progress
from server.batching.model_engine import ModelEngine
from server.errors import NotReady
from server.experiments.candidates import ActiveCandidates
from server.experiments.runtime import ExperimentRuntime
from server.loras.adapter_set import AdapterSet
from server.loras.offered_loras import OfferedLoras
from server.models.adapter_sets import AdapterSets
from server.models.learning import Learning
from server.models.model_registry import ModelRegistry
from server.requests.generation import Generation, Renderer
from server.requests.warnings import said
from server.telemetry import metrics
from server.telemetry.served import serving
from server.tiers.active import ActiveSchedules
from server.tiers.warnings import tier_warnings

MAX_EXAMPLES = 12
State = Literal["loaded", "loading", "unloaded", "failed"]


@dataclass
class ModelParts:
    """What plans, serves and watches a model's requests, whether or not its weights are in memory."""

    registry: ModelRegistry
    schedules: ActiveSchedules
    generation: Generation
    learning: Learning
    following: Sequence[asyncio.Task[None]]


class ServedModel(Renderer):
    """A model from the server's start to its end. `engine` is there while it is loaded, `parts` once its folder was understood.

    Raised where something is asked of a model that cannot do it: `NotReady`, naming it and the reason.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        aliases: Sequence[str],
        default_tier: str,
        admission: Admission,
        given_name: str | None = None,
        alone: bool = False,
    ) -> None:
        """name: what it is called until its registry entries say otherwise. aliases: what else clients may call it.

        given_name: what the settings call it. alone: the server has no other.
        """
        self._alone = alone
        self.given_name = given_name
        self.folder = folder
        self.admission = admission
        self.model: Model | None = None  # what plans are made with; its weights may be away
        self.parts: ModelParts | None = None
        self.engine: ModelEngine | None = None
        self.loras: OfferedLoras | None = None  # once its folder was understood
        self.adapter_sets: AdapterSets | None = None
        self.curve: CostCurve | None = None  # what its waves cost, as far as that was learnt
        self.state: State = "loading"  # its folder and its registry entries are read
        self.fault = ""  # why it failed
        self.bytes = 0  # of its weights and its slots, in memory
        self.load_seconds: float | None = None  # what loading took the last time
        self.loaded_at = 0.0  # monotonic, as is `used`
        self.used = 0.0
        self.holders = set[int]()  # plans that need it in memory
        self._first_name, self._aliases, self._default_tier = name, aliases, default_tier

    @property
    def name(self) -> str:
        """Its own."""
        return self.model.ref.name if self.model else self._first_name

    @property
    def counted_as(self) -> str:
        """Its name in metrics, log lines and spans: none where the server has no other model."""
        return "" if self._alone else self.name

    @property
    def names(self) -> list[str]:
        """What clients may call it: its own name first."""
        return list(dict.fromkeys((self.name, *self._aliases)))

    @property
    def schedules(self) -> ActiveSchedules:
        """Those in force."""
        return self._parts().schedules

    @property
    def generation(self) -> Generation:
        """What serves its requests."""
        return self._parts().generation

    @property
    def experiments(self) -> ExperimentRuntime:
        """Its own."""
        return self._parts().learning.experiments

    @property
    def candidates(self) -> ActiveCandidates:
        """Of its tiers."""
        return self._parts().learning.candidates

    @property
    def registry(self) -> ModelRegistry:
        """Its part of the registry."""
        return self._parts().registry

    @property
    def default_tier(self) -> str:
        """What a request gets that names no tier."""
        return self.schedules.default(self._default_tier)

    @property
    def warnings(self) -> list[RequestWarning]:
        """What the model's folder asks for and nobody does, and the tiers that are not served."""
        notices = self.model.notices if self.model else ()
        return said([*notices, *tier_warnings(self.schedules, self._default_tier)])

    @cached_property
    def examples(self) -> list[str]:
        """Prompts that show what the model draws, one a line in `examples.txt` of its folder, if that is there."""
        try:
            lines = (self.folder / "examples.txt").read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        return [line.strip() for line in lines if line.strip() and len(line) <= MAX_PROMPT][:MAX_EXAMPLES]

    def failed(self, reason: str) -> None:
        """It cannot be served, for this reason."""
        self.state, self.fault = "failed", reason

    def loaded(self, seconds: float) -> None:
        """It is in memory, which took so long."""
        self.state, self.fault, self.load_seconds = "loaded", "", seconds
        self.loaded_at = self.used = monotonic()
        with serving(self.counted_as):
            metrics.model_loads_total.inc()
            metrics.model_load_seconds.set(seconds)
            self.count()

    def count(self) -> None:
        """Tell Prometheus whether it is in memory."""
        with serving(self.counted_as):
            metrics.model_loaded.set(self.state == "loaded")
            metrics.model_bytes.set(self.bytes)

    def refusal(self) -> NotReady:
        """For who asks it for something that it cannot do now."""
        why = f"cannot be served: {self.fault}" if self.state == "failed" else f"is being opened: {self.fault}".rstrip(": ")
        return NotReady(f"the model {self.name} {why}", param="model")

    @override
    def submit(
        self, specs: Sequence[ImageSpec], preview: Preview | None = None, progress: Progress | None = None
    ) -> list[Future[ImageResult]]:
        if self.engine is None:
            raise NotReady(f"the model {self.name} is not in memory", param="model")
        return self.engine.submit(specs, preview, progress)

    def adapted(self, adapters: AdapterSet) -> Model:
        """The model in memory with these LoRAs, newly made: see `OfferedLoras.adapted`, which raises. Blocks."""
        if self.engine is None or self.loras is None:
            raise NotReady(f"the model {self.name} is not in memory", param="model")
        return self.loras.adapted(self.engine.model, adapters)

    def prepare(self, schedule: Schedule) -> None:
        """Before a schedule comes into force; what is not in memory is prepared when it is loaded. Blocks."""
        if engine := self.engine:
            engine.prepare(schedule)

    def forecast(
        self, program: Program, unet_rows: int, images: int, tier: str, size: ImageSize | None = None, chunks: int = 1
    ) -> float:
        """Seconds until so many images would be done if they came now and the model were in memory."""
        if engine := self.engine:
            return engine.forecast(program, unet_rows, images, tier, size, chunks)
        assert self.model, "whoever plans has a model"
        return images * self.model.macs_at(size, chunks).of_program(program, unet_rows) * self.admission.seconds_per_mac

    async def close(self) -> None:
        """Stop watching and recording."""
        if self.parts:
            for task in self.parts.following:
                task.cancel()
            self.parts.learning.idle.close()
            await asyncio.to_thread(self.parts.learning.experiments.close)

    def _parts(self) -> ModelParts:
        if self.parts is None:
            raise self.refusal()
        return self.parts

"""What one look of a worker at the registry costs the store, where nothing has changed since the last one."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from engine.loading import load
from loadtests.experiment import SALT
from loadtests.fleet.counted_store import CountedStore
from loadtests.mixes import MODEL, mixes
from registry.catalog import Catalog
from registry.experiments.candidates import CandidateCatalog
from registry.experiments.catalog import ExperimentCatalog
from registry.experiments.declaration import Arm, Experiment, Primary, RampStage
from registry.stores.folder import FolderStore
from server.api import GenerateRequest
from server.experiments.active import ActiveExperiments
from server.experiments.candidates import ActiveCandidates
from server.experiments.recorder import Recorder
from server.jobs.job_store import JobStore
from server.jobs.open_jobs import OpenJobs
from server.jobs.record import ImageJob, JobOwner, new_id
from server.storage.async_store import AsyncStore
from server.tiers.active import ActiveSchedules
from server.tiers.watch import Watch

TIERS = ("draft", "fast", "balanced", "quality", "best")


def looks(folder: Path, over: int, jobs: int) -> Mapping[str, Counter[str]]:
    """Requests by method, of a second look at five tiers, an experiment that runs, `over` that are over, `jobs` that wait."""
    store = CountedStore(FolderStore(folder))
    catalog = Catalog(store, MODEL.name, author="loadtests")
    digests = [catalog.publish(schedule).digest for schedule in mixes()["partial"].schedules.values()]
    for place, tier in enumerate(TIERS):
        catalog.promote(tier, digests[place % len(digests)])
    experiments = ExperimentCatalog(store, MODEL.name)
    for number in range(over + 1):
        experiments.declare(declaration(f"experiment-{number}", digests))
        experiments.act(f"experiment-{number}", "start")
        if number < over:
            experiments.act(f"experiment-{number}", "stop", "it is over")
    model = load(MODEL, name=MODEL.name, weights=False)
    schedules = ActiveSchedules(lambda: catalog, model, 50)
    watch, active = Watch(schedules, lambda: catalog), ActiveExperiments(lambda: experiments, schedules)
    recorder = Recorder(lambda: store, MODEL.name, folder / "outbox")  # never started: nothing is made again here
    candidates = ActiveCandidates(lambda: CandidateCatalog(store, MODEL.name), schedules, recorder)

    def counted(look: Callable[[], object]) -> Counter[str]:
        look()
        store.reset()
        look()
        return store.requests.copy()

    return {
        "tiers": counted(watch.refresh),
        "experiments": counted(active.refresh),
        "candidates": counted(candidates.refresh),
        "jobs": asyncio.run(_look_at_jobs(store, jobs)),
    }


async def _look_at_jobs(store: CountedStore, jobs: int) -> Counter[str]:
    """As a worker looks that knows all of them."""
    queue = JobStore(AsyncStore(lambda: store))
    for _ in range(jobs):
        await queue.add(_job())
    known = OpenJobs(time.time)
    for place in await queue.places():
        if found := await queue.open(place):
            known.put(found)
    store.reset()
    assert set(await queue.places()) == known.places()
    return store.requests.copy()


def _job() -> ImageJob:
    now = time.time()
    return ImageJob(
        id=new_id(int(now) + 3600), owner=JobOwner(name="shop"), endpoint="/generate", created=now, deadline=now + 3600,
        request=GenerateRequest(prompt="red heart"), until=int(now) + 7200, predicted_seconds=1.0,
    )  # fmt: skip


def declaration(name: str, digests: list[str]) -> Experiment:
    """An experiment of two arms, the first two of these schedules, on the tier `balanced`."""
    arms = tuple(Arm(name=arm, digest=digest, weight=1) for arm, digest in zip(("control", "other"), digests, strict=False))
    return Experiment(
        name=name, version=1, hypothesis="nothing", tier="balanced", arms=arms, control="control", salt=SALT,
        ramp=(RampStage(share=100),), primary=Primary(metric="service_seconds", minimal_effect=0.05), maximum_units=10**6,
        end=datetime.now(UTC) + timedelta(days=1),
    )  # fmt: skip

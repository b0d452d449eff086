"""What one worker's events cost the store, and what a report of many costs its reader."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import psutil

from loadtests.fleet.counted_store import CountedStore
from loadtests.mixes import MODEL
from registry.experiments.catalog import ExperimentCatalog
from registry.stores.base import ObjectStore
from registry.stores.folder import FolderStore
from server.experiments import events
from server.experiments.analysis.archive import stored_events
from server.experiments.analysis.summary import summarise
from server.experiments.events import OutcomeEvent, stream
from server.experiments.outbox.outbox import Outbox, today
from server.experiments.recorder import SEND_SECONDS
from server.requests.covariates import Covariates

HOUR = 3_600


class Recorded(NamedTuple):
    """An hour of one worker. requests: of S3; sent: bytes written; objects: that lie there afterwards; kept: bytes of these."""

    requests: Counter[str]
    sent: int
    objects: int
    kept: int


def an_hour(folder: Path, rate: float) -> Recorded:
    """So many events a second, sent as often as a worker sends them."""
    store, outbox = CountedStore(FolderStore(folder / "store")), Outbox(folder / "outbox")
    name, number, due = "experiment-0", 0, 0.0
    for _ in range(round(HOUR / SEND_SECONDS)):
        due += rate * SEND_SECONDS
        if new := [event(number + offset) for offset in range(int(due) - number)]:
            outbox.accept(len(new))
            outbox.write({stream(name): events.write(new)}, len(new))
            number += len(new)
        outbox.send(store, MODEL.name)
    outbox.send(store, MODEL.name, last=True)
    outbox.close()
    requests = store.requests.copy()
    keys = list(store.list(f"{MODEL.name}/"))
    return Recorded(requests, store.sent, len(keys), sum(len(store.get(key).data) for key in keys))


class Read(NamedTuple):
    """requests: that the report is of; seconds: of a CPU, for reading and summarising; grown: bytes of memory that it took."""

    requests: int
    seconds: float
    grown: int


def a_report(experiments: ExperimentCatalog, name: str, count: int, a_file: int = 300) -> Read:
    """Of an experiment that is declared and started, once it has so many events, `a_file` in each object."""
    store, day = experiments.store, today()
    for first in range(0, count, a_file):
        lines = events.write([event(number, name) for number in range(first, min(first + a_file, count))])
        store.create(f"{experiments.model}/{stream(name)}/{day}/{first:09d}.jsonl", lines)
    return _read(store, experiments, name)


def _read(store: ObjectStore, experiments: ExperimentCatalog, name: str) -> Read:
    process, began = psutil.Process(), time.process_time()
    before = process.memory_info().rss
    state = experiments.state(name)
    found = stored_events(store, experiments.model, state, state.version, [])
    arms = summarise(experiments.experiment(name, state.version), found)
    return Read(sum(arm.requests for arm in arms), time.process_time() - began, process.memory_info().rss - before)


def event(number: int, name: str = "experiment-0") -> OutcomeEvent:
    """A request that went well; every third unit comes again."""
    now = datetime.now(UTC) + timedelta(seconds=number)
    covariates = Covariates(
        arrived=now, images=1, pixels=512 * 512, prompt_characters=60 + number % 40, guidance=7.5, predicted_seconds=1.0,
        teacher_macs=10**13,
    )  # fmt: skip
    return OutcomeEvent(
        time=now, model=MODEL.name, covariates=covariates, size="512x512", request_id=f"r-{number:024x}", enrolment="enrolled",
        experiment=name, version=1, arm=("control", "other")[number % 2], unit=f"{number // 2 * 2 // 3 * 2 + number % 2:032x}",
        tier="balanced", digest=f"{number % 2:064x}", outcome="ok", queue_seconds=0.1, service_seconds=1.0 + number % 7 / 10,
        macs_planned=10**11, macs_executed=10**11, unet_rows=2, steps_planned=20, steps_executed=20,
    )  # fmt: skip

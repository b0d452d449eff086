"""Experiments of the load tests: all units of a tier take part, and each has a declaration of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx

from loadtests.mixes import MODEL
from registry.experiments.catalog import ExperimentCatalog
from registry.experiments.declaration import Arm, Experiment, Guardrail, Primary, RampStage
from registry.stores.address import open_store
from registry.stores.base import ObjectStore

TIER = "balanced"  # the tier that `split` splits
SCHEDULES = {"control": TIER, "treatment": "draft"}  # arm -> the tier whose schedule it gets
SALT = "loadtests"  # always the same, so that the same units get the same arms in every run


def begin(
    store: ObjectStore, name: str, tier: str, arms: Sequence[Arm], guardrails: Sequence[Guardrail] = ()
) -> ExperimentCatalog:
    """Declare an experiment that ends in a day, the first arm being control, and start it."""
    experiments = ExperimentCatalog(store, MODEL.name)
    experiments.declare(
        Experiment(
            name=name, version=1, hypothesis="the load test holds", tier=tier, arms=tuple(arms), control=arms[0].name,
            salt=SALT, ramp=(RampStage(share=100),), primary=Primary(metric="service_seconds", minimal_effect=0.05),
            guardrails=tuple(guardrails), maximum_units=10**6, end=datetime.now(UTC) + timedelta(days=1),
        )
    )  # fmt: skip
    experiments.act(name, "start")
    return experiments


def wait_until(address: str, running: bool) -> None:
    """Wait until the service says that an experiment runs, or that none does."""
    while bool(httpx.get(f"{address}/v1/experiments").raise_for_status().json()["experiments"]) != running:
        time.sleep(0.1)


@contextmanager
def split(registry: str, address: str, weights: Mapping[str, int]) -> Iterator[None]:
    """Inside, the service splits `TIER` between the schedules of `SCHEDULES`."""
    offered = {tier["tier"]: tier["digest"] for tier in httpx.get(f"{address}/v1/tiers").raise_for_status().json()["tiers"]}
    arms = [Arm(name=arm, digest=offered[SCHEDULES[arm]], weight=weight) for arm, weight in weights.items()]
    name = f"load-{datetime.now(UTC):%Y%m%d-%H%M%S}"  # in a registry that stays, a declaration is for ever
    experiments = begin(open_store(registry), name, TIER, arms)
    try:
        wait_until(address, running=True)
        yield
    finally:
        experiments.act(name, "stop", "the load test is over")

"""Experiments in a store: declarations never change, states lose no move, and a tier is one experiment's at a time."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
from memory_store import MemoryStore

from registry.errors import Conflict, InvalidInput, NotFound
from registry.experiments.catalog import ExperimentCatalog
from registry.experiments.declaration import Arm, Experiment, Primary, RampStage
from registry.stores.folder import FolderStore


def declared(name: str = "a", version: int = 1, **fields) -> Experiment:
    arms = (Arm(name="control", digest="0" * 64, weight=1), Arm(name="cheap", digest="1" * 64, weight=1))
    return Experiment(
        **{
            "name": name, "version": version, "hypothesis": "h", "tier": "draft", "arms": arms, "control": "control",
            "salt": "s", "ramp": (RampStage(share=1), RampStage(share=50)),
            "primary": Primary(metric="macs", minimal_effect=0.05),
            "maximum_units": 1000, "end": datetime(2099, 1, 1, tzinfo=UTC),
        } | fields
    )  # fmt: skip


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else FolderStore(tmp_path)


@pytest.fixture
def experiments(store):
    return ExperimentCatalog(store, "m")


def test_a_life(experiments):
    assert experiments.declare(declared()).status == "draft"
    for action, status, stage in [
        ("start", "running", 0), ("ramp", "running", 1), ("pause", "paused", 1), ("start", "running", 1), ("kill", "killed", 1),
    ]:  # fmt: skip
        state = experiments.act("a", action, f"because of {action}")
        assert (state.status, state.stage) == (status, stage)
    assert [entry.action for entry in state.history] == ["declare", "start", "ramp", "pause", "start", "kill"]
    assert state.history[-1].reason == "because of kill"
    assert experiments.names() == ["a"]
    assert experiments.declare(declared(version=2)).version == 2


def test_a_declaration_never_changes(experiments):
    experiments.declare(declared())
    assert experiments.declare(declared()).status == "draft"
    with pytest.raises(Conflict, match="a change is a new version"):
        experiments.declare(declared(hypothesis="another"))
    with pytest.raises(InvalidInput, match="version"):
        experiments.declare(declared(version=3))


def test_refusals(experiments):
    with pytest.raises(NotFound, match="no experiment"):
        experiments.act("a", "start")
    experiments.declare(declared())
    with pytest.raises(InvalidInput, match="cannot ramp"):
        experiments.act("a", "ramp")
    with pytest.raises(Conflict, match="version 1, not 2"):
        experiments.act("a", "start", version=2)


def test_a_tier_is_one_experiments_at_a_time(experiments):
    experiments.declare(declared("a"))
    experiments.declare(declared("b"))
    experiments.declare(declared("c", tier="best"))
    experiments.act("a", "start")
    experiments.act("c", "start")
    with pytest.raises(Conflict, match="taken by the experiment a"):
        experiments.act("b", "start")
    assert experiments.state("b").status == "draft"
    experiments.act("a", "stop")
    experiments.act("b", "start")
    assert [experiments.state(name).status for name in "abc"] == ["stopped", "running", "running"]


@pytest.mark.parametrize("rivals", [2, 4])
def test_those_that_start_at_once_do_not_both_run(store, rivals):
    for round in range(15):
        names = [f"e{round}-{i}" for i in range(rivals)]
        for name in names:
            ExperimentCatalog(store, "m").declare(declared(name, tier=f"tier{round}"))
        barrier, won = threading.Barrier(rivals), []

        def begin(name: str, barrier: threading.Barrier = barrier, won: list[str] = won) -> None:
            mine = ExperimentCatalog(store, "m")
            barrier.wait()
            try:
                mine.act(name, "start")
            except Conflict:
                return
            won.append(name)

        threads = [threading.Thread(target=begin, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        running = [name for name in names if ExperimentCatalog(store, "m").state(name).status == "running"]
        assert running == won
        assert len(running) <= 1


class Between(MemoryStore):
    """Lets something happen just before a chosen write."""

    def __init__(self):
        super().__init__()
        self.before = {}

    def swap(self, key, data, etag):
        if act := self.before.pop(key, None):
            act()
        return super().swap(key, data, etag)


def test_a_start_whose_turn_comes_late_does_not_run_beside_the_other():
    """a reads everything and is about to run; b claims the tier and runs; then a writes."""
    store = Between()
    experiments = ExperimentCatalog(store, "m")
    experiments.declare(declared("a"))
    experiments.declare(declared("b"))
    store.before["m/experiments/a/state.json"] = lambda: experiments.act("b", "start")
    with pytest.raises(Conflict, match="taken by the experiment b"):
        experiments.act("a", "start")
    assert (experiments.state("a").status, experiments.state("b").status) == ("paused", "running")


def test_no_move_is_lost(store):
    ExperimentCatalog(store, "m").declare(declared())
    ExperimentCatalog(store, "m").act("a", "start")

    def toggle() -> None:
        mine = ExperimentCatalog(store, "m")
        for _ in range(10):
            for action in ("pause", "start"):
                try:
                    mine.act("a", action)
                except (InvalidInput, Conflict):
                    continue
                done.append(action)

    done: list[str] = []
    threads = [threading.Thread(target=toggle) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [entry.action for entry in ExperimentCatalog(store, "m").state("a").history]
    assert sorted(told) == sorted(["declare", "start", *done])

"""What a fleet asks of the store, counted on the real parts: it must not grow with what is over."""

from __future__ import annotations

from places import ROOT

from loadtests.fleet import audit, polling, recording
from registry.experiments.catalog import ExperimentCatalog
from registry.stores.folder import FolderStore


def test_a_look_costs_what_runs_and_not_what_is_over(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    fresh, old = polling.looks(tmp_path / "fresh", 0, 0), polling.looks(tmp_path / "old", 3, 2)
    assert fresh == old
    assert fresh["tiers"] == {"LIST": 1, "GET": len(polling.TIERS)}
    assert fresh["experiments"] == {"LIST": 1, "GET": 2}, "who holds the one tier that is split, and its state"
    assert fresh["candidates"] == {"LIST": 1}
    assert fresh["jobs"] == {"LIST": 1}


def test_events_are_few_objects_and_none_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "HOUR", 60)
    found = recording.an_hour(tmp_path, 50.0)
    assert found.kept > 60 * 50 * 300
    assert found.objects <= found.requests["PUT"] <= 3 * 60 / recording.SEND_SECONDS + found.objects
    store = FolderStore(tmp_path / "store")
    assert sum(store.get(key).data.count(b"\n") for key in store.list("")) == 60 * 50


def test_a_report_reads_all_events(tmp_path):
    experiments = ExperimentCatalog(FolderStore(tmp_path), "emoji64")
    experiments.declare(polling.declaration("experiment-0", ["0" * 64, "1" * 64]))
    experiments.act("experiment-0", "start")
    assert recording.a_report(experiments, "experiment-0", 700).requests == 700


def test_a_move_costs_the_same_after_many_and_a_part_of_the_audit_is_read_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    few, many = audit.moves(tmp_path / "few", 70), audit.moves(tmp_path / "many", 130)
    assert (few.next_move, few.newest_twenty) == (many.next_move, many.newest_twenty)
    assert many.alias < 1.1 * few.alias
    assert many.whole_audit["GET"] - few.whole_audit["GET"] == 60

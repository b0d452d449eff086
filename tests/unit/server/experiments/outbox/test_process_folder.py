"""A folder of the outbox belongs to one process, and to the one that takes it over after its death."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from server.experiments.outbox import process_folder
from server.experiments.outbox.event_counts import EventCounts, count_lost
from server.experiments.outbox.process_folder import ProcessFolder


def test_a_living_processes_folder_is_not_abandoned(tmp_path: Path) -> None:
    first, second = ProcessFolder.create(tmp_path), ProcessFolder.create(tmp_path)
    assert list(first.abandoned()) == []
    second.close()
    assert [folder.path for folder in first.abandoned()] == [second.path]
    assert list(second.abandoned()) == [], "the first one lives"


def test_one_heir_takes_a_folder_over(tmp_path: Path) -> None:
    dead, heir, other = (ProcessFolder.create(tmp_path) for _ in range(3))
    dead.close()
    (taken,) = heir.abandoned()
    with closing(taken):
        assert list(other.abandoned()) == []
        taken.remove()
    assert list(other.abandoned()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(folder.path.name for folder in (heir, other))


def test_a_folder_that_another_heir_removes_meanwhile_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, heir = ProcessFolder.create(tmp_path), ProcessFolder.create(tmp_path)
    dead.close()
    plain = process_folder._try_lock

    def late(path: Path) -> object:
        dead.remove()
        return plain(path)

    monkeypatch.setattr(process_folder, "_try_lock", late)
    assert list(heir.abandoned()) == []


def test_a_new_folder_that_an_heir_took_for_a_dead_processes_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_folder, "_try_lock", lambda path: None)
    with pytest.raises(OSError, match="another process took"):
        ProcessFolder.create(tmp_path)


def test_a_file_is_sent_under_the_same_name_by_whoever_has_the_folder(tmp_path: Path) -> None:
    folder = ProcessFolder.create(tmp_path)
    file = folder.file("experiments/x/events", "2026-01-01", 7)
    file.append(b"a\n")
    (again,) = folder.files()
    expected = f"experiments/x/events/2026-01-01/{folder.path.name}-00000007.jsonl"
    assert {file._name, again._name} == {expected}


def test_counts_outlive_their_process_and_say_what_it_lost(tmp_path: Path) -> None:
    path = tmp_path / "counts"
    counts = EventCounts(path)
    counts.accept(5)
    counts.accept(1)
    counts.wrote(4)
    assert count_lost(path) == 2
    path.write_bytes(b"cut")
    assert count_lost(path) == 0
    assert count_lost(tmp_path / "none") == 0

"""Events reach the store whatever happens on the way; what cannot is counted."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from registry.errors import StoreUnavailable
from registry.folder import FolderStore
from registry.store import MemoryStore
from server import metrics
from server.experiments import events, recorder
from server.experiments.events import Rating
from server.experiments.recorder import Recorder

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def rating(i: int) -> Rating:
    return Rating(time=NOW, request_id=f"r{i}", rating=0.5)


def stored(store, prefix="m/feedback") -> list[str]:
    keys = list(store.list(prefix))
    return [event.request_id for key in keys for event in events.read(key, store.get(key).data)]


class Store(MemoryStore):
    """May be away."""

    away = False

    def create(self, key, data):
        if self.away:
            raise StoreUnavailable("away")
        return super().create(key, data)


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def make(store, tmp_path):
    return lambda: Recorder(lambda: store, "m", tmp_path / "outbox")


def lost() -> float:
    return metrics.events_lost_total._value.get()


def test_events_reach_the_store_by_stream_in_their_order(make, store):
    it = make()
    for i in range(5):
        it.record("feedback", rating(i))
    it.record("experiments/x/events", rating(9))
    it.close()
    assert stored(store) == [f"r{i}" for i in range(5)]
    assert stored(store, "m/experiments/x/events") == ["r9"]


def test_nothing_is_lost_and_nothing_comes_twice_while_the_store_is_away(make, store, tmp_path):
    it, before = make(), lost()
    store.away = True
    for i in range(6):
        it.record("feedback", rating(i))
        it.write()
        it.send()
    assert stored(store) == []
    store.away = False
    it.send()
    it.send()
    it.close()
    assert (stored(store), lost()) == ([f"r{i}" for i in range(6)], before)
    assert list((tmp_path / "outbox").iterdir()) == []


def test_what_the_store_did_not_take_is_sent_after_the_next_start(make, store):
    store.away = True
    it = make()
    it.record("feedback", rating(1))
    it.close()
    store.away = False
    make().send()
    assert stored(store) == ["r1"]


def test_a_full_disk_fails_nobody_and_loses_nothing_that_fits_memory(make, store, monkeypatch):
    it, plain = make(), Path.write_bytes

    def full(path, data):
        if path.parent.name == "events":
            raise OSError(errno.ENOSPC, "no space left on device")
        return plain(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    it.record("feedback", rating(1))
    it.record("experiments/x/events", rating(2))
    it.write()
    it.send()
    assert stored(store) == []
    monkeypatch.undo()
    it.close()
    assert (stored(store), stored(store, "m/experiments/x/events")) == (["r1"], ["r2"])


def test_memory_is_bounded_and_the_loss_is_told(make, store, monkeypatch):
    monkeypatch.setattr(recorder, "CAPACITY", 3)
    it, before = make(), lost()
    for i in range(5):
        it.record("feedback", rating(i))
    it.close()
    assert (len(stored(store)), lost() - before) == (3, 2)


def test_what_was_lost_while_the_store_was_away_is_told_once(make, store, monkeypatch):
    monkeypatch.setattr(recorder, "FILES", 0)
    it, before = make(), lost()
    for i in range(3):
        it.record("feedback", rating(i))
    it.write()
    assert lost() - before == 3
    it._outbox._lock.close()  # as if it had died
    make().send()
    assert lost() - before == 3


def test_a_folder_that_cannot_be_made_records_nothing_and_fails_nobody(store, tmp_path):
    (tmp_path / "file").write_text("")
    it = Recorder(lambda: store, "m", tmp_path / "file" / "outbox")
    it.record("feedback", rating(1))
    it.close()
    assert stored(store) == []


KILLED = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
from registry.errors import StoreUnavailable
from server.experiments.events import Rating
from server.experiments.recorder import Recorder

def away():
    raise StoreUnavailable("away")

it = Recorder(away, "m", Path(sys.argv[1]))
for i in range(100):
    it.record("feedback", Rating(time=datetime.now(UTC), request_id=f"r{i}", rating=1))
    if i == 69:
        it.write()
print("ready", flush=True)
time.sleep(600)
"""


def test_kill_9_loses_only_what_was_in_memory_and_the_next_start_says_how_many(store, tmp_path):
    root, outbox = Path(__file__).parents[2], tmp_path / "outbox"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(outbox)], cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    other = Recorder(lambda: store, "m", outbox)
    other.send()
    assert stored(store) == [], "what a living process has on disk is its own"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    before = lost()
    Recorder(lambda: store, "m", outbox).send()
    assert (stored(store), lost() - before) == ([f"r{i}" for i in range(70)], 30)


def test_the_thread_writes_and_sends_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "WRITE_SECONDS", 0.01)
    monkeypatch.setattr(recorder, "SEND_SECONDS", 0.01)
    store = FolderStore(tmp_path / "registry")
    it = Recorder(lambda: store, "m", tmp_path / "outbox")
    it.start()
    it.record("feedback", rating(1))
    for _ in range(1000):
        if stored(store):
            break
        it._stop.wait(0.01)
    it.close()
    assert stored(store) == ["r1"]

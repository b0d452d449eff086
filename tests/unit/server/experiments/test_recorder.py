"""Events reach the store whatever happens on the way; what cannot is counted."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import pytest
from experiments import let_die
from memory_store import MemoryStore
from places import ROOT

from registry.errors import StoreUnavailable
from registry.stores.folder import FolderStore
from server.experiments import buffer, events, recorder
from server.experiments.events import RatingEvent
from server.experiments.outbox import outbox
from server.experiments.outbox.mirrored_file import MirroredFile
from server.experiments.recorder import Recorder
from server.telemetry import metrics

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def rating(i: int) -> RatingEvent:
    return RatingEvent(time=NOW, request_id=f"r{i}", rating=0.5)


def stored(store, prefix="m/feedback") -> list[str]:
    keys = list(store.list(prefix))
    return [event.request_id for key in keys for event in events.read(key, store.get(key).data)]


class Store(MemoryStore):
    """May be away, or take a write and lose the answer."""

    away = deaf = False
    denied = "nothing"  # the beginning of keys that may not be written

    def create(self, key, data):
        return self._answer(super().create, key, data)

    def swap(self, key, data, etag):
        return self._answer(super().swap, key, data, etag)

    def _answer(self, write, key, *args):
        if self.away or key.startswith(self.denied):
            raise StoreUnavailable("away")
        etag = write(key, *args)
        if self.deaf:
            raise StoreUnavailable("the answer was lost")
        return etag


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


@pytest.mark.parametrize("abandoned", [False, True], ids=["of this process", "of one that died"])
def test_a_stream_that_the_store_denies_waits_and_holds_up_no_other(make, store, abandoned):
    it, store.denied = make(), "m/candidates"
    if abandoned:
        store.away = True
    for i, stream in enumerate(("candidates/fast/events", "feedback", "experiments/a/events", "candidates/fast/events")):
        it.record(stream, rating(i))
    it.write()
    it.send()
    if abandoned:
        it.close()
        it, store.away = make(), False
        it.record("feedback", rating(4))
        it.write()
        it.send()
    assert sorted(stored(store, "m/feedback")) == ["r1", "r4"][: 1 + abandoned], "in no order between processes"
    assert stored(store, "m/experiments") == ["r2"]
    store.denied = "nothing"
    it.send()
    assert stored(store, "m/candidates") == ["r0", "r3"]


def test_what_the_store_did_not_take_is_sent_after_the_next_start(make, store):
    store.away = True
    it = make()
    it.record("feedback", rating(1))
    it.close()
    store.away = False
    make().send()
    assert stored(store) == ["r1"]


def test_few_objects_hold_many_events(make, store, monkeypatch):
    monkeypatch.setattr(outbox, "OBJECT_BYTES", 500)
    it = make()
    for i in range(40):
        it.record("feedback", rating(i))
        it.write()
        it.send()
        assert sorted(stored(store)) == sorted(f"r{j}" for j in range(i + 1)), "each send brings what there is"
    it.close()
    sizes = [len(store.get(key).data) for key in store.list("m/feedback")]
    assert 1 < len(sizes) < 40 / 4
    assert all(500 <= size < 700 for size in sizes[:-1])


def test_keys_are_filed_under_the_day_of_writing(make, store, tmp_path, monkeypatch):
    it = make()
    for day in ("2026-11-25", "2026-11-26"):
        monkeypatch.setattr(outbox, "today", lambda day=day: day)
        it.record("feedback", rating(1))
        it.write()
        it.send()
    assert [key.split("/")[2] for key in store.list("m/feedback")] == ["2026-11-25", "2026-11-26"]
    assert len(list((tmp_path / "outbox").rglob("*.jsonl"))) == 1, "a day that is over leaves no file"


def test_a_lost_answer_neither_loses_nor_doubles(make, store):
    it = make()
    for i, deaf in enumerate((True, False, True, True, False)):
        store.deaf = deaf
        it.record("feedback", rating(i))
        it.write()
        it.send()
        assert stored(store) == [f"r{j}" for j in range(i + 1)]


@pytest.mark.parametrize("file_bytes", [1, 10**6], ids=["in the next file", "in the same file"])
def test_what_is_written_while_its_file_is_sent_is_sent_the_next_time(make, store, monkeypatch, file_bytes):
    monkeypatch.setattr(outbox, "FILE_BYTES", file_bytes)
    it, plain = make(), store.create
    it.record("feedback", rating(0))
    it.write()

    def create(key, data):
        it.record("feedback", rating(1))
        it.write()
        return plain(key, data)

    monkeypatch.setattr(store, "create", create)
    it.send()
    monkeypatch.setattr(store, "create", plain)
    assert stored(store) == ["r0"]
    it.send()
    assert stored(store) == ["r0", "r1"]
    it.close()


def test_an_object_that_somebody_deleted_is_made_again(make, store):
    it = make()
    for i in range(4):
        it.record("feedback", rating(i))
        it.write()
        it.send()
        if i == 1:
            store.delete(next(store.list("m/feedback")))
    assert stored(store) == [f"r{i}" for i in range(4)]


def test_an_object_never_shrinks(make, store, tmp_path):
    """A power cut may take from the disk what the store has."""
    it = make()
    for i in range(2):
        it.record("feedback", rating(i))
    it.write()
    it.send()
    (file,) = (tmp_path / "outbox").rglob("*.jsonl")
    file.write_bytes(events.write([rating(0)]))
    let_die(it)
    make().send()
    assert stored(store) == ["r0", "r1"]


def test_a_folder_that_is_swept_costs_no_later_event(make, store, tmp_path):
    it = make()
    for i in range(3):
        it.record("feedback", rating(i))
        it.write()
        if i == 1:
            shutil.rmtree(next((tmp_path / "outbox").glob("*/feedback")))
        it.send()
    it.close()
    assert stored(store) == ["r0", "r2"]


def test_a_full_disk_fails_nobody_and_loses_nothing_that_fits_memory(make, store, monkeypatch):
    it, plain = make(), MirroredFile.append

    def full(file, data):
        if "events" not in file.path.parts:
            return plain(file, data)
        plain(file, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(MirroredFile, "append", full)
    it.record("feedback", rating(1))
    it.record("experiments/x/events", rating(2))
    it.write()
    it.send()
    assert stored(store) == []
    monkeypatch.undo()
    it.close()
    assert (stored(store), stored(store, "m/experiments/x/events")) == (["r1"], ["r2"])


def test_memory_is_bounded_and_the_loss_is_counted(make, store, monkeypatch):
    monkeypatch.setattr(buffer, "CAPACITY", 3)
    it, before = make(), lost()
    for i in range(5):
        it.record("feedback", rating(i))
    it.close()
    assert (len(stored(store)), lost() - before) == (3, 2)


def test_the_disk_is_bounded_in_bytes_and_what_is_lost_then_is_counted_once(make, store, monkeypatch, caplog):
    for name in ("TOTAL_BYTES", "OBJECT_BYTES"):
        monkeypatch.setattr(outbox, name, 1)
    monkeypatch.setattr(buffer, "CAPACITY", 3)
    it, before = make(), lost()
    store.away = True
    for i in range(6):
        it.record("feedback", rating(i))
        it.write()
        it.send()
    assert lost() - before == 2, "one is on disk, three are in memory"
    assert len([message for message in caplog.messages if "events are lost" in message]) == 1
    store.away = False
    it.send()
    it.write()
    it.close()
    make().send()
    assert (sorted(stored(store)), lost() - before) == ([f"r{i}" for i in range(4)], 2)


def test_a_folder_that_can_be_made_later_records_from_then_on(store, tmp_path, caplog):
    file, before = tmp_path / "file", lost()
    file.write_text("")
    it = Recorder(lambda: store, "m", file / "outbox")
    for i in range(3):
        it.record("feedback", rating(i))
        it.write()
        it.send()
    assert len([message for message in caplog.messages if "nothing can be kept" in message]) == 1
    file.unlink()
    it.write()
    it.record("feedback", rating(3))
    let_die(it)
    Recorder(lambda: store, "m", file / "outbox").send()
    assert (stored(store), lost() - before) == ([f"r{i}" for i in range(3)], 1)


def test_a_folder_that_can_never_be_made_fails_nobody(store, tmp_path):
    (tmp_path / "file").write_text("")
    it = Recorder(lambda: store, "m", tmp_path / "file" / "outbox")
    it.record("feedback", rating(1))
    it.close()
    assert stored(store) == []


def test_a_fault_that_lasts_is_said_once_and_so_is_its_end(make, store, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(outbox, "TOTAL_BYTES", 1)
    monkeypatch.setattr(buffer, "CAPACITY", 2)
    it = make()
    store.away = True
    for i in range(5):
        it.record("feedback", rating(i))
        it.write()
        it.send()
    said = ["events wait on disk, the registry", "events wait in memory, the disk", "events are lost"]
    for message, start in zip(caplog.messages, said, strict=True):
        assert message.startswith(start)
    caplog.clear()
    store.away = False
    monkeypatch.undo()
    for _ in range(2):
        it.send()
        it.write()
    assert caplog.messages[0].startswith("no longer: events wait on disk")
    ends = [message.partition(",")[0].partition(": ")[2] for message in caplog.messages[1:]]
    assert [end[:15] for end in sorted(ends)] == ["events are lost", "events wait in "]
    it.close()


def test_an_outbox_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        outbox.Outbox(tmp_path)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
from registry.errors import StoreUnavailable
from server.experiments.events import RatingEvent
from server.experiments.recorder import Recorder

def away():
    raise StoreUnavailable("away")

it = Recorder(away, "m", Path(sys.argv[1]))
for i in range(100):
    it.record("feedback", RatingEvent(time=datetime.now(UTC), request_id=f"r{i}", rating=1))
    if i == 69:
        it.write()
print("ready", flush=True)
time.sleep(600)
"""


def test_kill_9_loses_only_what_was_in_memory_and_the_next_start_says_how_many(store, tmp_path):
    folder = tmp_path / "outbox"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    other = Recorder(lambda: store, "m", folder)
    other.send()
    assert stored(store) == [], "what a living process has on disk is its own"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    before = lost()
    Recorder(lambda: store, "m", folder).send()
    assert (stored(store), lost() - before) == ([f"r{i}" for i in range(70)], 30)


DYING = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from registry.stores.folder import FolderStore
from server.experiments.events import RatingEvent
from server.experiments.outbox.mirrored_file import MirroredFile
from server.experiments.recorder import Recorder

folder, registry, point = sys.argv[1:]

def die_at(here):
    if here == point:
        os.kill(os.getpid(), signal.SIGKILL)

class Store(FolderStore):
    def create(self, key, data):
        die_at("before the object is made")
        etag = super().create(key, data)
        die_at("after the object is made")
        return etag

    def swap(self, key, data, etag):
        die_at("before the object grows")
        etag = super().swap(key, data, etag)
        die_at("after the object has grown")
        return etag

def append(file, data, plain=MirroredFile.append):
    if point == "within a line" and file.size:
        plain(file, data[:-9])
        die_at(point)
    plain(file, data)

def unlink(path, missing_ok=False, plain=Path.unlink):
    if path.suffix == ".jsonl":
        die_at("before the file goes")
    plain(path, missing_ok)
    if path.suffix == ".jsonl":
        die_at("after the file has gone")

MirroredFile.append, Path.unlink = append, unlink
store = Store(Path(registry))
it = Recorder(lambda: store, "m", Path(folder))
for i in range(3):
    it.record("feedback", RatingEvent(time=datetime.now(UTC), request_id=f"r{i}", rating=1))
    it.write()
    it.send(last=i == 2)
"""
POINTS = {
    "before the object is made": (1, 0),
    "after the object is made": (1, 0),
    "within a line": (1, 1),
    "before the object grows": (2, 0),
    "after the object has grown": (2, 0),
    "before the file goes": (3, 0),
    "after the file has gone": (3, 0),
}


@pytest.mark.parametrize("point", POINTS)
def test_kill_9_at_any_point_of_sending_neither_loses_nor_doubles(tmp_path, point):
    """What was written is stored once, what was not is counted once."""
    folder, registry, before = tmp_path / "outbox", tmp_path / "registry", lost()
    done = subprocess.run([sys.executable, "-c", DYING, str(folder), str(registry), point], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    store, (written, gone) = FolderStore(registry), POINTS[point]
    for _ in range(2):
        it = Recorder(lambda: store, "m", folder)
        it.send()
        it.close()
        assert (stored(store), lost() - before) == ([f"r{i}" for i in range(written)], gone)
    assert list(folder.iterdir()) == []


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


def test_a_store_that_hangs_keeps_nothing_from_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "WRITE_SECONDS", 0.01)
    monkeypatch.setattr(recorder, "SEND_SECONDS", 0.01)
    monkeypatch.setattr(recorder, "CLOSE_SECONDS", 0.01)
    hangs, answers = threading.Event(), threading.Event()

    class Hanging(MemoryStore):
        def create(self, key, data):
            hangs.set()
            assert answers.wait(60)
            return super().create(key, data)

    store = Hanging()
    it = Recorder(lambda: store, "m", tmp_path / "outbox")
    it.start()
    it.record("feedback", rating(0))
    assert hangs.wait(60)
    it.record("feedback", rating(1))
    it.record("experiments/x/events", rating(2))
    closing = monotonic()
    it.close()
    assert monotonic() - closing < 5
    on_disk = b"".join(path.read_bytes() for path in (tmp_path / "outbox").rglob("*.jsonl"))
    assert [f"r{i}".encode() in on_disk for i in range(3)] == [True] * 3
    assert stored(store) == [], "closing did not wait for the store"
    answers.set()
    it._sender.join(60)
    assert (stored(store), stored(store, "m/experiments/x/events")) == (["r0", "r1"], ["r2"])

"""A file and its object: what is committed is mirrored, and nothing that the store has is taken from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory_store import MemoryStore

from registry.errors import NotFound
from server.experiments.outbox.mirrored_file import MirroredFile

KEY = "m/s/1.jsonl"


@pytest.fixture
def file(tmp_path: Path) -> MirroredFile:
    return MirroredFile(tmp_path / "1.jsonl", "s/1.jsonl")


def write(file: MirroredFile, data: bytes) -> None:
    file.append(data)
    file.commit()


def test_what_was_not_committed_is_overwritten(file: MirroredFile) -> None:
    write(file, b"one\n")
    file.append(b"a batch whose other file failed\n")
    write(file, b"two\n")
    assert file.path.read_bytes() == b"one\ntwo\n"
    assert file.size == 8


def test_the_object_is_replaced_while_the_file_grows(file: MirroredFile) -> None:
    store = MemoryStore()
    for data, expected in ((b"one\n", b"one\n"), (b"two\n", b"one\ntwo\n")):
        write(file, data)
        file.mirror(store, "m", file.size)
        assert store.get(KEY).data == expected


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (b"one\n", b"one\ntwo\n"),  # a process that died had sent the beginning
        (b"one\ntwo\n", b"one\ntwo\n"),  # an answer was lost
        (b"one\ntwo\nthree\n", b"one\ntwo\nthree\n"),  # a power cut took from the disk what the store has
    ],
)
def test_an_object_that_is_there_grows_and_never_shrinks(file: MirroredFile, present: bytes, expected: bytes) -> None:
    store = MemoryStore()
    store.create(KEY, present)
    write(file, b"one\ntwo\n")
    file.mirror(store, "m", file.size)
    assert store.get(KEY).data == expected


def test_an_object_that_somebody_deleted_is_made_again_the_next_time(file: MirroredFile) -> None:
    store = MemoryStore()
    write(file, b"one\n")
    file.mirror(store, "m", file.size)
    store.delete(KEY)
    write(file, b"two\n")
    with pytest.raises(NotFound):
        file.mirror(store, "m", file.size)
    file.mirror(store, "m", file.size)
    assert store.get(KEY).data == b"one\ntwo\n"

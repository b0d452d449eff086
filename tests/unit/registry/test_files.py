"""A file is replaced whole or not at all, whenever its writer is killed; a lock has one holder, and ends with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from registry.files import SECRET, create_file, locked, replace_file, replacing, try_lock

OLD, NEW = b"old" * 10_000, b"new" * 10_000
PROCESSES, TURNS = 3, 30


def started(task: Callable[..., None], *arguments: object) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=task, args=arguments, daemon=True)
    process.start()
    return process


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def replace_and_die(path: Path, moment: str) -> None:
    if moment == "writing":
        with replacing(path) as stream:
            stream.write(NEW[:5000])
            stream.flush()
            die()
    setattr(os, moment, die)
    replace_file(path, NEW)


@pytest.mark.parametrize("moment", ["writing", "fsync", "replace"])
def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "file"
    replace_file(path, OLD)
    process = started(replace_and_die, path, moment)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.read_bytes() == OLD
    replace_file(path, NEW)
    assert path.read_bytes() == NEW


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, OLD)
    with pytest.raises(RuntimeError), replacing(path) as stream:  # noqa: PT012 - it fails in the middle
        stream.write(NEW)
        raise RuntimeError
    with pytest.raises(FileExistsError):
        create_file(path, NEW)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [OLD]


def test_bytes_are_on_the_disk_before_they_have_a_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace", "link"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1])
    replace_file(tmp_path / "file", OLD)
    create_file(tmp_path / "other", OLD)
    assert calls == ["fsync", "replace", "fsync", "fsync", "link", "fsync"]


@pytest.mark.parametrize("before", [None, 0o644])
def test_a_secret_is_for_its_owner_only(tmp_path: Path, before: int | None) -> None:
    path = tmp_path / "file"
    if before:
        path.touch(before)
    replace_file(path, NEW, SECRET)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_other_files_obey_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "file", NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def count_up(lock: Path, count: Path) -> None:
    for _ in range(TURNS):
        with locked(lock):
            count.write_text(str(int(count.read_text()) + 1))


@pytest.mark.parametrize("name", [".", ".lock"], ids=["a folder", "a file"])
def test_one_process_at_a_time_holds_a_lock(tmp_path: Path, name: str) -> None:
    count = tmp_path / "count"
    count.write_text("0")
    processes = [started(count_up, tmp_path / name, count) for _ in range(PROCESSES)]
    for process in processes:
        process.join()
    assert count.read_text() == str(PROCESSES * TURNS)


def hold(path: Path, ready: Callable[[bytes], None]) -> None:
    file = try_lock(path)
    ready(b"held" if file else b"refused")
    signal.pause()


def test_a_lock_is_refused_while_another_process_holds_it_and_ends_with_that_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    answers, theirs = multiprocessing.Pipe(duplex=False)
    holder = started(hold, path, theirs.send_bytes)
    assert answers.recv_bytes() == b"held"
    assert try_lock(path) is None
    holder.kill()
    holder.join()
    file = try_lock(path)
    assert file
    assert try_lock(path) is None, "another opening of the file in the same process is refused too"
    file.close()
    with locked(path):
        assert try_lock(path) is None

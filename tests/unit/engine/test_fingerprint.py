"""A fingerprint is computed once, and never survives a change of what it stands for."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from engine import fingerprint as module
from engine.fingerprint import KEPT, fingerprint


def hours_ago(*files: Path) -> None:
    """As of a model that lies there for a while."""
    then = time.time_ns() - 3_600_000_000_000
    for file in files:
        os.utime(file, ns=(then, then))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "unet" / "weights.bin", tmp_path / "unet" / "config.json", tmp_path / "model_index.json"]
    (tmp_path / "unet").mkdir()
    for i, file in enumerate(made):
        file.write_bytes(b"%d" % i * 1000)
    hours_ago(*made)
    return made


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose contents were read."""
    names: list[str] = []
    real = module.hashlib.file_digest

    def noting(stream, kind):
        names.append(Path(stream.name).name)
        return real(stream, kind)

    monkeypatch.setattr(module.hashlib, "file_digest", noting)
    return names


def test_it_is_computed_once(tmp_path: Path, files: list[Path], hashed: list[str]) -> None:
    first = fingerprint(tmp_path, files)
    assert sorted(hashed) == sorted(file.name for file in files)
    hashed.clear()
    assert fingerprint(tmp_path, reversed(files)) == first
    assert hashed == []
    (tmp_path / KEPT).unlink()
    assert fingerprint(tmp_path, files) == first


def test_what_is_kept_is_no_part_of_it(tmp_path: Path, files: list[Path]) -> None:
    first = fingerprint(tmp_path, files)
    assert fingerprint(tmp_path, [*files, tmp_path / KEPT]) == first


def test_other_weights_of_the_same_size_change_it(tmp_path: Path, files: list[Path]) -> None:
    """Also directly after it was computed, when a coarse clock may not show the change."""
    first = fingerprint(tmp_path, files)
    seen = {first}
    for i in range(20):
        files[0].write_bytes(b"x" * 999 + bytes([i]))
        seen.add(fingerprint(tmp_path, files))
    assert len(seen) == 21


def test_the_clock_of_a_file_system_may_stand_still(tmp_path: Path, files: list[Path]) -> None:
    now = time.time_ns()
    seen = set()
    for i in range(3):
        files[0].write_bytes(b"x" * 999 + bytes([i]))
        os.utime(files[0], ns=(now, now))
        seen.add(fingerprint(tmp_path, files))
    assert len(seen) == 3


def test_a_file_more_or_under_another_name_changes_it(tmp_path: Path, files: list[Path]) -> None:
    first = fingerprint(tmp_path, files)
    assert fingerprint(tmp_path, files[1:]) != first
    moved = files[0].rename(files[0].with_name("other.bin"))
    assert fingerprint(tmp_path, [moved, *files[1:]]) != first


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b'{"files": {}}', b"[" * 100_000, "fingerprint"])
def test_a_damaged_note_is_not_believed(tmp_path: Path, files: list[Path], damage: bytes | str) -> None:
    first = fingerprint(tmp_path, files)
    if isinstance(damage, bytes):
        (tmp_path / KEPT).write_bytes(damage)
    else:
        (tmp_path / KEPT).write_text(json.dumps(json.loads((tmp_path / KEPT).read_text()) | {damage: "sha256:short"}))
    assert fingerprint(tmp_path, files) == first


def test_a_folder_that_cannot_be_written_to_still_works(
    tmp_path: Path, files: list[Path], hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, _data: bytes) -> None:
        raise PermissionError(30, "Read-only file system", str(path))

    monkeypatch.setattr(module, "replace_file", refuse)
    first = fingerprint(tmp_path, files)
    hashed.clear()
    assert fingerprint(tmp_path, files) == first
    assert len(hashed) == len(files)
    assert not (tmp_path / KEPT).exists()

"""A fingerprint is computed once, and never survives a change of what it stands for."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import fingerprint as module
from engine.fingerprint import KEPT, fingerprint
from registry.errors import Conflict


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a model that lies there for a while: nobody can set the time of a file's change."""
    monkeypatch.setattr(module, "SETTLED", -3_600_000_000_000)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "unet" / "weights.bin", tmp_path / "unet" / "config.json", tmp_path / "model_index.json"]
    (tmp_path / "unet").mkdir()
    for i, file in enumerate(made):
        file.write_bytes(b"%d" % i * 1000)
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


@pytest.mark.usefixtures("settled")
def test_it_is_computed_once(tmp_path: Path, files: list[Path], hashed: list[str]) -> None:
    first = fingerprint(tmp_path, files)
    assert sorted(hashed) == sorted(file.name for file in files)
    hashed.clear()
    assert fingerprint(tmp_path, reversed(files)) == first
    assert hashed == []
    (tmp_path / KEPT).unlink()
    assert fingerprint(tmp_path, files) == first


def rewritten(file: Path) -> None:
    """In place, with the size and the times that it had: a tool that restores them."""
    times = file.stat()
    while file.stat().st_ctime_ns == times.st_ctime_ns:  # the clock of a file system ticks every few milliseconds
        file.write_bytes(b"x" * times.st_size)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def replaced(file: Path) -> None:
    """By another file of the same size and time, as rsync -t, tar and cp -p do."""
    times = file.stat()
    other = file.with_name("other")
    other.write_bytes(b"x" * times.st_size)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(file)


def written_by_another_name(file: Path) -> None:
    """Through a hard link that lies elsewhere."""
    elsewhere = file.parent.parent / "elsewhere"
    os.link(file, elsewhere)
    rewritten(elsewhere)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", [rewritten, replaced, written_by_another_name])
def test_a_note_never_vouches_for_other_bytes(tmp_path: Path, files: list[Path], change: Callable[[Path], None]) -> None:
    first = fingerprint(tmp_path, files)
    before = files[0].stat()
    change(files[0])
    after = files[0].stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert fingerprint(tmp_path, files) != first


@pytest.mark.usefixtures("settled")
def test_a_note_that_was_copied_with_its_folder_vouches_for_nothing(
    tmp_path: Path, files: list[Path], hashed: list[str]
) -> None:
    first = fingerprint(tmp_path, files)
    copy = tmp_path.with_name("copy")
    shutil.copytree(tmp_path, copy, copy_function=shutil.copy2)
    assert (copy / KEPT).read_bytes() == (tmp_path / KEPT).read_bytes()
    hashed.clear()
    copies = [copy / file.relative_to(tmp_path) for file in files]
    assert fingerprint(copy, copies) == first
    assert len(hashed) == len(files)
    rewritten(copies[0])
    shutil.copy2(tmp_path / KEPT, copy / KEPT)
    assert fingerprint(copy, copies) != first


@pytest.mark.usefixtures("settled")
def test_links_into_a_store_of_blobs_are_followed(tmp_path: Path, files: list[Path]) -> None:
    """As a hub's snapshots are: the blob changes, or the link leads to another one."""
    blobs = [tmp_path.with_name(f"blob{i}") for i in range(2)]
    for i, blob in enumerate(blobs):
        blob.write_bytes(bytes([i]) * 1000)
        os.utime(blob, ns=(0, 0))
    files[0].unlink()
    files[0].symlink_to(blobs[0])
    first = fingerprint(tmp_path, files)
    assert fingerprint(tmp_path, files) == first
    files[0].unlink()
    files[0].symlink_to(blobs[1])
    second = fingerprint(tmp_path, files)
    rewritten(blobs[1])
    assert len({first, second, fingerprint(tmp_path, files)}) == 3


@pytest.mark.usefixtures("settled")
def test_what_an_older_version_kept_vouches_for_nothing(tmp_path: Path, files: list[Path]) -> None:
    seen = {file.relative_to(tmp_path).as_posix(): [file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(files)}
    note = {"fingerprint": f"sha256:{'0' * 64}", "files": seen}
    (tmp_path / KEPT).write_text(json.dumps(note))
    assert fingerprint(tmp_path, files) != note["fingerprint"]
    assert json.loads((tmp_path / KEPT).read_text())["fingerprint"] == fingerprint(tmp_path, files)


def test_a_file_that_changes_while_it_is_read_is_said(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.hashlib.file_digest

    def late(stream, kind):
        digest = real(stream, kind)
        rewritten(files[0])
        return digest

    monkeypatch.setattr(module.hashlib, "file_digest", late)
    with pytest.raises(Conflict, match=f"{files[0].name} was changed while it was read"):
        fingerprint(tmp_path, files)
    assert not (tmp_path / KEPT).exists()


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


@pytest.mark.usefixtures("settled")
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

"""What other processes do to a folder store in test_stores.py. Imports little: each process starts afresh."""

from __future__ import annotations

import resource
from pathlib import Path

from registry.errors import Conflict, StoreUnavailable
from registry.stores.folder import FolderStore


def count_up(root: Path, times: int) -> None:
    """Add one to the number in `m/count`, so many times."""
    store = FolderStore(root)
    for _ in range(times):
        while True:
            data, etag = store.get("m/count")
            try:
                store.swap("m/count", b"%d" % (int(data) + 1), etag)
                break
            except Conflict:
                continue


def create(root: Path, writer: int, turns: int) -> list[int]:
    """Try to create m/0, m/1, …; in which turns that worked."""
    won = []
    for turn in range(turns):
        try:
            FolderStore(root).create(f"m/{turn}", b"%d" % writer * 10000)
            won.append(turn)
        except Conflict:
            pass
    return won


def create_too_much(root: Path) -> str:
    """Create more than fits, by a limit on file sizes that stops the write half-way as a full quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        FolderStore(root).create("m/big", b"x" * 10000)
    except StoreUnavailable as error:
        return error.message
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return "written"

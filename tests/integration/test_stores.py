"""One set of promises, kept by every store: memory, folder, and a real S3 server."""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.pool
import os
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import pytest
from folder_writers import count_up, create, create_too_much
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_store import MemoryStore

from registry.errors import Conflict, FlexiError, InvalidInput, NotFound, StoreUnavailable
from registry.files import locked, replace_file
from registry.stores.address import open_store
from registry.stores.base import ObjectStore
from registry.stores.folder import FolderStore
from registry.stores.s3 import S3Store

RACERS = 8
BAD_KEYS = [
    "",
    "/a",
    "a/",
    "a//b",
    "..",
    "a/../b",
    "./a",
    "a/.hidden",
    "a\\b",
    "a b",
    "ä",
    "a\n",
    "a\0b",
    "a/" + "x" * 200,
]


@pytest.fixture(params=["memory", "folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each sort."""
    match request.param:
        case "memory":
            return MemoryStore()
        case "folder":
            return FolderStore(tmp_path / "registry")
    server = request.getfixturevalue("s3_server")
    return S3Store(server.client(), server.bucket, uuid.uuid4().hex)


def race(attempt: Callable[[int], object]) -> list[object]:
    """What each of eight threads got at the same moment: a value, or the Conflict."""

    def run(i: int) -> object:
        try:
            return attempt(i)
        except Conflict as conflict:
            return conflict

    with ThreadPoolExecutor(RACERS) as pool:
        return list(pool.map(run, range(RACERS)))


def winners(results: list[object]) -> list[int]:
    """Which of them did not get a Conflict."""
    return [i for i, result in enumerate(results) if not isinstance(result, Conflict)]


class TestEveryStore:
    def test_gives_back_what_was_created(self, store: ObjectStore) -> None:
        data = bytes(range(256)) * 50
        etag = store.create("m/a.bin", data)
        assert store.get("m/a.bin") == (data, etag)

    def test_keeps_empty_objects(self, store: ObjectStore) -> None:
        store.create("m/empty", b"")
        assert store.get("m/empty").data == b""

    def test_a_missing_key_is_not_found(self, store: ObjectStore) -> None:
        store.create("m/a/b", b"1")
        for key in ("m/x", "n/a/b", "m/a", "m/a/b/c"):
            with pytest.raises(NotFound, match=key):
                store.get(key)

    def test_creates_only_once(self, store: ObjectStore) -> None:
        store.create("m/a", b"first")
        for data in (b"second", b"first"):
            with pytest.raises(Conflict, match="m/a"):
                store.create("m/a", data)
        assert store.get("m/a").data == b"first"

    def test_swaps_what_was_seen(self, store: ObjectStore) -> None:
        first = store.create("m/a", b"1")
        second = store.swap("m/a", b"2", first)
        assert store.get("m/a") == (b"2", second)
        assert second != first
        third = store.swap("m/a", b"3", store.get("m/a").etag)
        assert store.get("m/a") == (b"3", third)

    def test_reads_again_only_what_has_changed(self, store: ObjectStore) -> None:
        first = store.create("m/a", b"1")
        assert store.get_if_changed("m/a", first) is None
        second = store.swap("m/a", b"2", first)
        assert store.get_if_changed("m/a", first) == (b"2", second)
        assert store.get_if_changed("m/a", second) is None
        with pytest.raises(NotFound, match="m/b"):
            store.get_if_changed("m/b", first)

    def test_does_not_swap_what_has_changed(self, store: ObjectStore) -> None:
        old = store.create("m/a", b"1")
        store.swap("m/a", b"2", old)
        with pytest.raises(Conflict, match="m/a"):
            store.swap("m/a", b"3", old)
        assert store.get("m/a").data == b"2"

    def test_does_not_swap_what_is_missing(self, store: ObjectStore) -> None:
        etag = store.create("m/a", b"1")
        with pytest.raises(Conflict, match="m/b"):
            store.swap("m/b", b"2", etag)
        assert list(store.list("")) == ["m/a"]

    def test_one_of_many_creates(self, store: ObjectStore) -> None:
        for turn in range(3):
            results = race(lambda i, key=f"m/{turn}": store.create(key, b"%d" % i))  # type: ignore[misc]
            (winner,) = winners(results)
            assert store.get(f"m/{turn}") == (b"%d" % winner, results[winner])

    def test_one_of_many_swaps(self, store: ObjectStore) -> None:
        etag = store.create("m/a", b"start")
        for turn in range(3):
            results = race(lambda i, turn=turn, etag=etag: store.swap("m/a", b"%d %d" % (turn, i), etag))  # type: ignore[misc]
            (winner,) = winners(results)
            stored = store.get("m/a")
            assert stored == (b"%d %d" % (turn, winner), results[winner])
            etag = stored.etag

    def test_loses_no_update(self, store: ObjectStore) -> None:
        store.create("m/count", b"0")

        def add_one(_: int) -> None:
            while True:
                data, etag = store.get("m/count")
                try:
                    store.swap("m/count", b"%d" % (int(data) + 1), etag)
                    return
                except Conflict:
                    continue

        race(add_one)
        assert store.get("m/count").data == b"%d" % RACERS

    def test_lists_sorted_by_prefix(self, store: ObjectStore) -> None:
        keys = [
            "a-b/x",
            "a/versions/000001.json",
            "a/versions/000010.json",
            "a/versions/000002.json",
            "a/v",
            "aa/z",
            "b",
        ]
        for key in keys:
            store.create(key, b"")
        for prefix in (
            "",
            "a",
            "a/",
            "a/v",
            "a/versions/",
            "a/versions/00000",
            "b",
            "nothing/",
            "a/versions/000001.jsonx",
        ):
            assert list(store.list(prefix)) == sorted(key for key in keys if key.startswith(prefix)), prefix

    @pytest.mark.parametrize("after", ["m/a/03", "m/a/035", "m/a/00", "m/a/09", "m/a/1", "m/a/"])
    def test_lists_what_comes_after(self, store: ObjectStore, after: str) -> None:
        keys = [f"m/a/{i:02d}" for i in range(10)]
        for key in (*keys, "m/b/05", "m/0"):
            store.create(key, b"")
        assert list(store.list("m/a/", after)) == [key for key in keys if key > after]

    def test_tells_the_folders(self, store: ObjectStore) -> None:
        for key in ("one/a/x", "one/a/y", "one/b", "two.3/c/x", "top"):
            store.create(key, b"")
        assert list(store.folders("")) == ["one", "two.3"]
        assert list(store.folders("one/")) == ["a"]
        assert [*store.folders("two.3/c/"), *store.folders("nothing/")] == []

    def test_deletes_and_creates_again(self, store: ObjectStore) -> None:
        old = store.create("m/a", b"1")
        store.create("m/b", b"2")
        for _ in range(2):
            store.delete("m/a")
            with pytest.raises(NotFound, match="m/a"):
                store.get("m/a")
        with pytest.raises(Conflict):
            store.swap("m/a", b"2", old)
        assert list(store.list("")) == ["m/b"]
        store.create("m/a", b"3")
        assert store.get("m/a").data == b"3"
        store.delete("m/a/b/c")

    def test_lists_an_empty_store(self, store: ObjectStore) -> None:
        assert list(store.list("")) == []
        assert list(store.list("m/")) == []

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_refuses_malformed_keys(self, store: ObjectStore, key: str) -> None:
        for verb in (
            lambda: store.get(key),
            lambda: store.create(key, b""),
            lambda: store.swap(key, b"", "etag"),
            lambda: store.delete(key),
        ):
            with pytest.raises(InvalidInput, match="key"):
                verb()

    @pytest.mark.parametrize("prefix", ["/", "..", "a/../", "a//", ".lock", "a/.", "é"])
    def test_refuses_malformed_prefixes(self, store: ObjectStore, prefix: str) -> None:
        with pytest.raises(InvalidInput, match="prefix"):
            list(store.list(prefix))

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(commands=st.lists(st.tuples(st.sampled_from(["create", "swap", "stale"]), st.integers(0, 2)), max_size=8))
    def test_behaves_as_the_plain_dictionary(self, store: ObjectStore, commands: list[tuple[str, int]]) -> None:
        """Any sequence of writes ends the same way as on the memory store."""
        here, twin = f"t{uuid.uuid4().hex}", MemoryStore()
        for step, (command, i) in enumerate(commands):
            outcomes = [_apply(one, command, f"{here}/{i}", b"%d" % step) for one in (store, twin)]
            assert outcomes[0] == outcomes[1]
        keys = list(store.list(f"{here}/"))
        assert keys == list(twin.list(""))
        assert [store.get(key).data for key in keys] == [twin.get(key).data for key in keys]


def _apply(store: ObjectStore, command: str, key: str, data: bytes) -> str:
    """Run one command; `stale` swaps with the etag of other bytes."""
    try:
        if command == "create":
            store.create(key, data)
        else:
            etag = store.get(key).etag
            if command == "stale":
                store.swap(key, data + b"!", etag)
            store.swap(key, data, etag)
    except FlexiError as error:
        return type(error).__name__
    return "done"


ProcessPool = multiprocessing.pool.Pool


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPool]:
    """Real processes, started afresh."""
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        yield pool


class TestFolder:
    def test_processes_lose_no_update(self, processes: ProcessPool, tmp_path: Path) -> None:
        store = FolderStore(tmp_path)
        store.create("m/count", b"0")
        processes.starmap(count_up, [(tmp_path, 20)] * 3)
        assert store.get("m/count").data == b"60"

    def test_one_process_creates(self, processes: ProcessPool, tmp_path: Path) -> None:
        won = processes.starmap(create, [(tmp_path, i, 20) for i in range(3)])
        assert sorted(turn for turns in won for turn in turns) == list(range(20))
        for i, turns in enumerate(won):
            for turn in turns:
                assert FolderStore(tmp_path).get(f"m/{turn}").data == b"%d" % i * 10000

    def test_readers_see_whole_objects(self, tmp_path: Path) -> None:
        store = FolderStore(tmp_path)
        sizes = (10, 100_000)
        etag = store.create("m/a", b"0" * sizes[0])
        with ThreadPoolExecutor(1) as pool:
            seen = pool.submit(lambda: {store.get("m/a").data for _ in range(300)})
            turn = 0
            while not seen.done():
                turn += 1
                etag = store.swap("m/a", b"%d" % (turn % 10) * sizes[turn % 2], etag)
        assert all(len(set(data)) == 1 and len(data) in sizes for data in seen.result())

    def test_a_full_disk_leaves_nothing(self, processes: ProcessPool, tmp_path: Path) -> None:
        message = processes.apply(create_too_much, (tmp_path,))
        assert "full" in message
        assert str(tmp_path) in message
        self._holds_only(tmp_path, {})

    @pytest.mark.parametrize("call", ["fsync", "link", "replace"])
    @pytest.mark.parametrize(("number", "word"), [(errno.ENOSPC, "full"), (errno.EACCES, "permission"), (errno.EIO, "error")])
    def test_a_fault_at_any_moment_changes_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, word: str
    ) -> None:
        store = FolderStore(tmp_path)
        etag = store.create("m/old", b"old")

        def fail(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, call, fail)
        with pytest.raises(StoreUnavailable, match=word):  # noqa: PT012 - one of two verbs
            if call == "replace":
                store.swap("m/old", b"new", etag)
            else:
                store.create("m/new", b"new")
        monkeypatch.undo()
        self._holds_only(tmp_path, {"m/old": b"old"})

    def test_an_object_that_goes_before_a_swap_is_a_conflict(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = FolderStore(tmp_path)
        etag = store.create("m/a", b"1")

        @contextmanager
        def late(path: Path) -> Iterator[None]:
            monkeypatch.undo()
            store.delete("m/a")
            with locked(path):
                yield

        monkeypatch.setattr("registry.stores.folder.locked", late)
        with pytest.raises(Conflict):
            store.swap("m/a", b"2", etag)
        assert list(store.list("")) == []

    def test_an_object_that_is_deleted_during_a_swap_does_not_come_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = FolderStore(tmp_path)
        etag = store.create("m/a", b"1")
        with ThreadPoolExecutor(1) as pool:
            deletes = list[Future[None]]()

            def late(path: Path, data: bytes) -> None:
                deletes.append(pool.submit(store.delete, "m/a"))
                wait(deletes, timeout=0.3)  # it waits for the swap
                replace_file(path, data)

            monkeypatch.setattr("registry.stores.folder.replace_file", late)
            store.swap("m/a", b"2", etag)
            deletes[0].result()
        assert list(store.list("")) == []

    def test_hides_files_that_are_no_objects(self, tmp_path: Path) -> None:
        store = FolderStore(tmp_path)
        store.swap("m/a", b"2", store.create("m/a", b"1"))
        (tmp_path / "m" / ".0123.tmp").write_bytes(b"of a writer that was killed")
        (tmp_path / "m" / "a.json~").write_bytes(b"of an editor")
        assert list(store.list("")) == ["m/a"]

    def test_a_file_where_a_folder_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "registry").write_bytes(b"")
        store = FolderStore(tmp_path / "registry")
        with pytest.raises(StoreUnavailable, match="registry"):
            store.create("m/a", b"")
        with pytest.raises(StoreUnavailable, match=r"cannot list .*: it is not a folder"):
            store.list("m/")  # and not an empty registry

    @staticmethod
    def _holds_only(root: Path, objects: dict[str, bytes]) -> None:
        files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        assert {name: data for name, data in files.items() if name != ".lock"} == objects


class TestOpen:
    def test_a_folder(self, tmp_path: Path) -> None:
        open_store(str(tmp_path / "r")).create("m/a", b"1")
        assert (tmp_path / "r/m/a").read_bytes() == b"1"

    def test_reading_makes_no_folder(self, tmp_path: Path) -> None:
        assert list(open_store(str(tmp_path / "r")).list("")) == []
        assert not (tmp_path / "r").exists()

    @pytest.mark.parametrize("url", ["", "gs://bucket/x", "http://host/x", "s3://", "s3:///x", "s3://bucket/../x"])
    def test_refuses_other_addresses(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLEXI_S3_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(InvalidInput):
            open_store(url)

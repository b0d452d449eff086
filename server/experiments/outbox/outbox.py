"""The outbox of one process: takes batches of lines from memory to disk, and what is on disk to the store."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

from registry.errors import FlexiError
from registry.stores.base import ObjectStore
from server.experiments.outbox.event_counts import EventCounts, count_lost
from server.experiments.outbox.mirrored_file import MirroredFile
from server.experiments.outbox.process_folder import ProcessFolder

OBJECT_BYTES = 128 * 2**10  # a file that was sent with so many is finished: few are read, and little is sent again and again
FILE_BYTES = 4 * 2**20  # a file of so many is finished even while the store is away: one request carries it
TOTAL_BYTES = 512 * 2**20  # in all files of a process


def today() -> str:
    """The UTC day that keys are filed under. It is never before that of an event written now, so readers may begin at a day."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


class Outbox:
    """Files of events by stream, each stream a prefix of its keys in the store.

    One thread may write while another one sends; neither waits for the other's disk or network for longer than a batch takes.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is shared by all processes. Raises `OSError` when nothing can be kept there, and leaves nothing then."""
        self._folder = ProcessFolder.create(folder)
        try:
            self._counts = EventCounts(self._folder.counts)
        except OSError:
            self._folder.remove()
            self._folder.close()
            raise
        self._lock = threading.Lock()  # around the three below, what a file says of itself, and every change of the folder
        self._files: list[MirroredFile] = []  # all that are on disk, the oldest first
        self._newest: dict[str, MirroredFile] = {}  # by stream: the file that was made last
        self._made = 0  # files so far

    def accept(self, events: int = 1) -> None:
        """Note that so many events are in memory and will be written: if they are not, the next process says so.

        One thread at a time.
        """
        self._counts.accept(events)

    def write(self, batch: Mapping[str, bytes], events: int) -> None:
        """Keep a batch: the lines of so many events, by stream. Raises `OSError`, and keeps nothing of it then."""
        with self._lock:
            if sum(file.size for file in self._files) >= TOTAL_BYTES:
                raise OSError(errno.EDQUOT, f"{TOTAL_BYTES >> 20} MiB wait for the registry")
            files = {stream: self._open_file(stream) for stream in batch}
            for stream, lines in batch.items():
                files[stream].append(lines)
            for file in files.values():
                file.commit()
        self._counts.wrote(events)

    def send(self, store: ObjectStore, prefix: str, *, last: bool = False) -> None:
        """Bring what is new to the store, the oldest first, and delete the files that are finished: all of them, if `last`.

        Raises `FlexiError` and `OSError` when all has been tried; a stream that fails waits, and holds up no other one.
        """

        def send(file: MirroredFile) -> None:
            size, finished = self._sendable(file, last)
            file.mirror(store, prefix, size)
            if finished:
                self._drop(file)

        with self._lock:
            files = list(self._files)
        _each_stream(files, send)

    def send_abandoned(self, store: ObjectStore, prefix: str) -> Iterator[int]:
        """Send what dead processes left; how many events each of them had accepted and never written.

        Raises `FlexiError` and `OSError` when all has been tried; what fails waits for the next call.
        """

        def send(file: MirroredFile) -> None:
            file.mirror(store, prefix, _whole_lines(file.path))
            file.path.unlink()

        failed: FlexiError | OSError | None = None
        for folder in self._folder.abandoned():
            with closing(folder):
                try:
                    _each_stream(folder.files(), send)
                except (FlexiError, OSError) as error:
                    failed = error
                    continue
                lost = count_lost(folder.counts)
                folder.remove()
            yield lost
        if failed:
            raise failed

    def close(self) -> None:
        """Leave what was not sent to the next process. Nothing may be written or sent after it."""
        if not self._files:
            self._folder.remove()
        self._folder.close()

    def _open_file(self, stream: str) -> MirroredFile:
        """The file that the stream's next lines go to."""
        day, file = today(), self._newest.get(stream)
        if file and not file.finished:
            swept_away = not file.path.exists()
            file.finished = swept_away or file.size >= FILE_BYTES or file.path.parent.name != day
        if file is None or file.finished:
            self._made += 1
            file = self._newest[stream] = self._folder.file(stream, day, self._made)
            self._files.append(file)
        return file

    def _sendable(self, file: MirroredFile, last: bool) -> tuple[int, bool]:
        """How many bytes of a file can be sent now, and whether they are all that it will ever have."""
        with self._lock:
            file.finished = file.finished or last or file.size >= OBJECT_BYTES
            return file.size, file.finished

    def _drop(self, file: MirroredFile) -> None:
        with self._lock:
            file.path.unlink(missing_ok=True)
            self._files.remove(file)
            with suppress(OSError):  # another file of that day is there
                file.path.parent.rmdir()


def _each_stream(files: Iterable[MirroredFile], send: Callable[[MirroredFile], None]) -> None:
    """Send each stream's files in their order, up to the first that fails: a store may refuse one stream and take the others.

    Raises the first stream's error, after all of them.
    """
    errors = dict[Path, FlexiError | OSError]()
    for file in files:
        if (stream := file.path.parent.parent) not in errors:
            try:
                send(file)
            except (FlexiError, OSError) as error:
                errors[stream] = error
    if errors:
        raise next(iter(errors.values()))


def _whole_lines(path: Path) -> int:
    """The bytes of a file up to the end of its last whole line: its process may have died within one."""
    return path.read_bytes().rfind(b"\n") + 1

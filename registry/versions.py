"""The versions of a model: who was published when, under dense numbers that are never reused."""

from __future__ import annotations

from bisect import bisect_left

from registry.compare_and_swap import attempts, write
from registry.errors import Conflict, NotFound, Tampered
from registry.records import Claim, Version
from registry.stores.base import ObjectStore
from registry.writer import Writer

GALLOP = 10  # how much longer each stride to the newest number is than the one before


class VersionLog:
    """Version records, made once and never removed, and for each digest a claim that says which number is its own.

    A claim is written before the version that it announces, and moves on only when another digest took the number. So a
    publication that was cut off is completed under its number by the next one, and one digest never gets two.
    """

    def __init__(self, store: ObjectStore, model: str, writer: Writer) -> None:
        self._store = store
        self._model = model
        self._writer = writer
        self._read: dict[int, Version] = {}  # they never change: each is read once
        self._newest = 0  # the highest number that this process saw

    def get(self, number: int) -> Version:
        """The record of one version. Raises `NotFound`, and `Tampered` if another one lies in its place."""
        if number not in self._read:
            key = self.key(number)
            try:
                version = Version.read(key, self._store.get(key).data)
            except NotFound:
                raise NotFound(f"is not in {self._model}", param=f"version {number}") from None
            if version.number != number:
                raise Tampered(f"is the record of version {version.number}", param=key)
            self._read[number] = version
        return self._read[number]

    def newest(self) -> int:
        """The highest number, 0 where there is none: sought from the highest seen, in about 23 reads at 100,000."""
        low, stride = self._newest, 1
        while self._exists(low + stride):
            low, stride = low + stride, stride * GALLOP
        between = range(low + 1, low + stride)
        self._newest = low + bisect_left(between, True, key=lambda number: not self._exists(number))
        return self._newest

    def last(self, count: int | None = None) -> list[Version]:
        """All versions, or the last `count`; the newest at the end."""
        newest = self.newest()
        first = 1 if count is None else max(1, newest - count + 1)
        return [self.get(number) for number in range(first, newest + 1)]

    def of(self, digest: str) -> Version | None:
        """The first version of this digest; None if it has none yet. Two reads, however many versions there are."""
        claim, _ = self.claim(digest)
        version = self._at(claim.number) if claim else None
        return version if version and version.digest == digest else None

    def claim(self, digest: str) -> tuple[Claim | None, str]:
        """The claim of a digest and its etag; None and an empty one where there is no claim."""
        key = self.claim_key(digest)
        try:
            data, etag = self._store.get(key)
        except NotFound:
            return None, ""
        claim = Claim.read(key, data)
        if claim.digest != digest:
            raise Tampered(f"is the claim of {claim.digest}", param=key)
        return claim, etag

    def publish(self, digest: str, note: str) -> Version:
        """The version that this digest has, or a new one. Raises `Conflict` where too many publish at once."""
        for attempt in attempts():
            claim, etag = self.claim(digest)
            version = self._at(claim.number) if claim else None
            if version and version.digest == digest:
                return version
            with attempt:
                number = claim.number if claim and not version else self._claim_next(digest, etag)
                return self._create(number, digest, note)
        raise _crowded()

    def publish_again(self, digest: str, note: str) -> Version:
        """One more version of a digest that has one. Raises `Conflict` where too many publish at once."""
        for attempt in attempts():
            with attempt:
                return self._create(self.newest() + 1, digest, note)
        raise _crowded()

    def key(self, number: int) -> str:
        """Where the record of a version is kept."""
        return f"{self._model}/versions/{number:06d}.json"

    def claim_key(self, digest: str) -> str:
        """Where the claim of a digest is kept."""
        return f"{self._model}/digests/{digest}.json"

    def _create(self, number: int, digest: str, note: str) -> Version:
        writer = self._writer
        version = Version(number=number, digest=digest, time=writer.clock(), author=writer.author, note=note)
        self._store.create(self.key(number), version.document())
        return version

    def _claim_next(self, digest: str, etag: str) -> int:
        """Claim the number after the newest one; `etag` is that of the digest's void claim, if it has one."""
        number = self.newest() + 1
        claim = Claim(digest=digest, number=number, time=self._writer.clock())
        write(self._store, self.claim_key(digest), claim.document(), etag)
        return number

    def _at(self, number: int) -> Version | None:
        try:
            return self.get(number)
        except NotFound:
            return None

    def _exists(self, number: int) -> bool:
        return self._at(number) is not None


def _crowded() -> Conflict:
    return Conflict("too many others publish at the same time: try again", param="version")

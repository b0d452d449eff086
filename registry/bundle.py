"""Bundles: schedules of one model in a tar file, with what belongs to them, on their way to another registry.

Members have the keys of a registry, after a manifest of them all: a file that was cut short is noticed. A bundle carries
schedules and tiers, not the registry's own history: where it is imported the schedules get numbers of that registry, in the
order of their old ones. A backup is a copy of the folder or bucket.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from registry.catalog import Catalog
from registry.errors import Conflict, InvalidInput, NeedsApproval, NotFound, Tampered
from registry.records import Alias, Record, Version
from registry.schedule import Schedule
from registry.stores.base import KEY

MANIFEST = "manifest.json"
LARGEST = 2**26  # bytes of a member
LARGEST_SUM = 2**30  # bytes of all members: they are held in memory
_CHANGED = "{} was cut or changed after it was written, first at {}"


class Manifest(Record):
    """The first member: what else the file holds, by key, with the SHA-256 of its bytes."""

    format: Literal[1] = 1
    sha256: dict[str, str]


class ImportedItem(NamedTuple):
    """What an import did with one schedule or tier; `outcome` says it in words."""

    kind: str
    name: str
    outcome: str


class Bundle:
    """The contents of a bundle, checked: every document is what its key says."""

    def __init__(self, members: Mapping[str, bytes]) -> None:
        """Raises `InvalidInput` for what is no bundle, `Tampered` for documents that do not fit their keys."""
        models = {key.partition("/")[0] for key in members}
        if len(models) != 1:
            raise InvalidInput(f"must hold one model, got {sorted(models)}", param="bundle")
        (self.model,) = models
        self.members = members
        self.schedules = {_name(key): self._schedule(_name(key), data) for key, data in self._under("schedules")}
        self.versions = sorted(
            (Version.read(name, data) for name, data in self._under("versions")), key=lambda version: version.number
        )
        self.aliases = [Alias.read(name, data) for name, data in self._under("aliases")]
        named = {version.digest for version in self.versions} | {alias.digest for alias in self.aliases}
        if missing := sorted(named - self.schedules.keys()):
            raise Tampered(f"names the schedule {missing[0]} but does not hold it", param="bundle")

    @classmethod
    def of(cls, catalog: Catalog, refs: Sequence[str] = ()) -> Bundle:
        """The bundle of these schedules, or of all; a tier goes along where it was named, or where everything goes."""
        model, store = catalog.model, catalog.store
        if refs:
            named = [catalog.resolve(ref) for ref in refs]
            digests, tiers = {ref.schedule.digest for ref in named}, [ref.tier for ref in named if ref.tier]
        else:
            keys = store.list(f"{model}/schedules/")
            digests, tiers = {_name(key) for key in keys if key.endswith(".json")}, catalog.tiers()
        members = {catalog.schedule_key(digest): catalog.schedule(digest).document() for digest in digests}
        for version in catalog.versions():
            if version.digest in digests:
                members[catalog.version_log.key(version.number)] = version.document()
        for tier in tiers:
            members[catalog.tier_aliases.key(tier)] = catalog.alias(tier).document()
        for folder in ("artifacts", "signatures"):
            prefixes = [f"{model}/{folder}/{digest}/" for digest in digests] if refs else [f"{model}/{folder}/"]
            for key in (key for prefix in prefixes for key in store.list(prefix)):
                if key.split("/")[2] in digests:
                    members[key] = store.get(key).data
        return cls(members)

    @classmethod
    def read(cls, path: Path) -> Bundle:
        """Read a file. Raises `InvalidInput` where it is no bundle, `Tampered` where it is not as it was written."""
        found = _members(path)
        name, data = next(found, ("", b""))
        if name != MANIFEST:
            raise InvalidInput(f"{path} has no {MANIFEST} at its beginning: export did not make it", param="bundle")
        written = Manifest.read(f"{path}: {MANIFEST}", data).sha256
        members: dict[str, bytes] = {}
        for name, data in found:
            if written.get(name) != _sha256(data):
                raise Tampered(_CHANGED.format(path, name), param="bundle")
            members[name] = data
        if missing := sorted(written.keys() - members.keys()):
            raise Tampered(_CHANGED.format(path, missing[0]), param="bundle")
        return cls(members)

    def write(self, path: Path) -> None:
        """Write a new file, compressed if its name ends in gz; the same contents make the same tar.

        Raises `InvalidInput` for what cannot be written, and for more than `read` reads.
        """
        mode = "x:gz" if path.suffix in (".gz", ".tgz") else "x"
        manifest = Manifest(sha256={key: _sha256(data) for key, data in self.members.items()}).document()
        contents = {MANIFEST: manifest, **dict(sorted(self.members.items()))}
        size = 0
        for key, data in contents.items():
            size = _refuse_large(path, key, len(data), size)
        try:
            with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]  # typeshed wants a literal
                for key, data in contents.items():
                    member = tarfile.TarInfo(key)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        except FileExistsError:
            raise InvalidInput(f"{path} exists already", param="bundle") from None
        except OSError as error:
            path.unlink(missing_ok=True)
            raise InvalidInput(f"cannot write {path}: {error.strerror}", param="bundle") from error

    def publish(self, catalog: Catalog) -> Iterator[ImportedItem]:
        """Publish what the catalog lacks, and promote the tiers that it lacks. A second import changes nothing."""
        notes = {version.digest: version.note for version in reversed(self.versions)}
        for digest in dict.fromkeys([*(version.digest for version in self.versions), *self.schedules]):
            yield self._publish(catalog, digest, notes.get(digest, ""))
        for alias in self.aliases:
            yield self._promote(catalog, alias)

    def _publish(self, catalog: Catalog, digest: str, note: str) -> ImportedItem:
        version = catalog.version_log.of(digest)
        outcome = "there already"
        try:
            kept = catalog.schedule(digest)
        except NotFound:
            kept = self.schedules[digest]
            outcome = "put back" if version else "published"
        if version is None or outcome == "put back":
            version = catalog.publish(kept, note)
        for name, data in self._under(f"artifacts/{digest}"):
            catalog.attach(digest, name, data)
        if kept == self.schedules[digest]:
            for name, data in self._under(f"signatures/{digest}"):
                with suppress(Conflict):
                    catalog.store.create(f"{self.model}/signatures/{digest}/{name}", data)
        else:
            outcome += ", described otherwise (signatures stay out)"
        return ImportedItem("schedule", digest, f"{outcome}: version {version.number}")

    def _promote(self, catalog: Catalog, alias: Alias) -> ImportedItem:
        if alias.tier in catalog.tiers():
            return ImportedItem("tier", alias.tier, f"there already: left at version {catalog.alias(alias.tier).version}")
        version = catalog.version_log.of(alias.digest)
        assert version is not None  # published above
        try:
            moved = catalog.promote(alias.tier, version.number, f"import: {alias.history[-1].reason}"[:2000])
        except NeedsApproval:
            wanted = f"python -m registry promote {alias.tier} {version.number}"
            return ImportedItem("tier", alias.tier, f"not promoted, it takes a second person: {wanted}")
        return ImportedItem("tier", alias.tier, f"promoted: version {moved.version}")

    def _schedule(self, digest: str, data: bytes) -> Schedule:
        try:
            schedule = Schedule.parse(data)
        except InvalidInput as error:
            raise Tampered(f"schedule {digest} is not a schedule: {error.message}", param="bundle") from error
        if schedule.digest != digest or schedule.model.name != self.model:
            raise Tampered(f"schedule {digest} was changed: its digest is {schedule.digest}", param="bundle")
        return schedule

    def _under(self, folder: str) -> Iterator[tuple[str, bytes]]:
        start = f"{self.model}/{folder}/"
        for key, data in sorted(self.members.items()):
            if key.startswith(start):
                yield key.removeprefix(start), data


def _name(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".json")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """What a file holds, one after the other. Raises `InvalidInput` at what no bundle holds."""
    try:
        with tarfile.open(path) as tar:
            size = 0
            for member in tar:
                if not member.isfile() or not KEY.fullmatch(member.name):
                    raise InvalidInput(f"{path} holds {member.name!r}, which belongs in no bundle", param="bundle")
                size = _refuse_large(path, member.name, member.size, size)
                file = tar.extractfile(member)
                yield member.name, file.read() if file else b""
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        reason = str(error).splitlines()[0].rstrip(": ")
        raise InvalidInput(f"{path} cannot be read as a tar file: {reason}", param="bundle") from error


def _refuse_large(path: Path, key: str, size: int, before: int) -> int:
    """The bytes of a bundle with this member, of those before it. Raises `InvalidInput` where they are too many."""
    if size > LARGEST:
        raise InvalidInput(f"{path}: {key} has {size} bytes; a file of a bundle has at most {LARGEST} bytes", param="bundle")
    if before + size > LARGEST_SUM:
        message = f"{path}: the files of a bundle have at most {LARGEST_SUM} bytes together: export fewer schedules at a time"
        raise InvalidInput(message, param="bundle")
    return before + size

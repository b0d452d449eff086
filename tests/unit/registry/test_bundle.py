"""What is exported arrives whole, and an import changes nothing that is there."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from memory_store import MemoryStore
from schedule_strategies import MODEL, schedule

from registry.bundle import Bundle
from registry.catalog import Catalog
from registry.errors import FlexiError, InvalidInput, Tampered
from registry.schedule import Cost, Schedule
from registry.signing import SigningKey, TrustedKeys
from registry.verify import Verification

A, B, C = schedule(), schedule(5), schedule(3, 6)


@pytest.fixture
def source(tmp_path: Path) -> Catalog:
    catalog = Catalog(MemoryStore(), "emoji64", author="ada")
    key, _ = SigningKey.make(tmp_path / "key.pem")
    for published in (A, B, C):
        catalog.publish(published, f"note {len(published.segments)}")
        catalog.attach(published.digest, "report.json", published.digest.encode())
        catalog.sign(published, key)
    catalog.promote("fast", 2, "better")
    catalog.promote("best", 3)
    return catalog


@pytest.fixture
def target() -> Catalog:
    return Catalog(MemoryStore(), "emoji64", author="bob")


def outcomes(bundle: Bundle, target: Catalog) -> list[tuple[str, str]]:
    return [(done.name[:8], done.outcome) for done in bundle.publish(target)]


def carried(bundle: Bundle, path: Path) -> Bundle:
    bundle.write(path)
    return Bundle.read(path)


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz", "b.tgz"])
def test_everything_arrives_and_arrives_once(source: Catalog, target: Catalog, tmp_path: Path, name: str) -> None:
    bundle = carried(Bundle.of(source), tmp_path / name)
    assert outcomes(bundle, target) == [
        (A.digest[:8], "published: version 1"),
        (B.digest[:8], "published: version 2"),
        (C.digest[:8], "published: version 3"),
        ("best", "promoted: version 3"),
        ("fast", "promoted: version 2"),
    ]
    for ref in (1, 2, 3, "fast", "best"):
        assert target.resolve(ref) == source.resolve(ref)
    assert [version.note for version in target.versions()] == [version.note for version in source.versions()]
    assert target.history("fast")[-1].reason == "import: better"
    assert target.store.get(f"emoji64/artifacts/{A.digest}/report.json").data == A.digest.encode()
    trusted = Catalog(target.store, "emoji64", trusted=TrustedKeys.read(tmp_path / "key.pub.pem"))
    assert Verification(trusted).findings == []
    before = list(target.store.list(""))
    assert all("there already" in outcome for _, outcome in outcomes(bundle, target))
    assert list(target.store.list("")) == before


def test_the_same_contents_make_the_same_file(source: Catalog, tmp_path: Path) -> None:
    for name in ("1.tar", "2.tar"):
        Bundle.of(source).write(tmp_path / name)
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()


def test_chosen_refs_go_alone(source: Catalog, target: Catalog) -> None:
    bundle = Bundle.of(source, ["fast", "3"])
    assert bundle.schedules.keys() == {B.digest, C.digest}
    assert outcomes(bundle, target) == [
        (B.digest[:8], "published: version 1"),
        (C.digest[:8], "published: version 2"),
        ("fast", "promoted: version 1"),
    ]


def test_what_is_there_stays(source: Catalog, target: Catalog) -> None:
    dearer = B.model_copy(update={"cost": Cost(macs=1, rows=1, relative=0.9)})
    for published in (C, dearer):
        target.publish(published)
    target.promote("fast", 1, "ours")
    assert outcomes(Bundle.of(source), target) == [
        (A.digest[:8], "published: version 3"),
        (B.digest[:8], "there already, described otherwise (signatures stay out): version 2"),
        (C.digest[:8], "there already: version 1"),
        ("best", "promoted: version 1"),
        ("fast", "there already: left at version 1"),
    ]
    assert target.resolve("fast").schedule == C
    assert target.resolve(2).schedule == dearer
    assert Verification(target).damage == []


def test_a_schedule_that_gc_took_is_put_back_and_its_old_number_means_it_again(source: Catalog, target: Catalog) -> None:
    bundle = Bundle.of(source, ["1"])
    list(bundle.publish(target))
    target.publish(B)
    target.store.delete(target.schedule_key(A.digest))
    assert outcomes(bundle, target) == [(A.digest[:8], "put back: version 3")]
    assert target.resolve(1).schedule == target.resolve(3).schedule == A


def tar(path: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data), kind
            file.addfile(member, io.BytesIO(data))
    return path


SCHEDULE = f"emoji64/schedules/{A.digest}.json"
OTHER: Schedule = A.model_copy(update={"model": MODEL.model_copy(update={"name": "sd15"})})


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({SCHEDULE: B.document()}, "was changed"),
        ({SCHEDULE: A.document()[:-5]}, "is not a schedule"),
        ({f"emoji64/schedules/{OTHER.digest}.json": OTHER.document()}, "was changed"),
        ({SCHEDULE: A.document(), "emoji64/versions/000001.json": b"{}"}, "not a valid Version"),
        ({SCHEDULE: A.document(), "emoji64/aliases/fast.json": b""}, "not a valid Alias"),
        ({SCHEDULE: A.document(), f"sd15/schedules/{OTHER.digest}.json": OTHER.document()}, "must hold one model"),
        ({}, "must hold one model"),
    ],
)
def test_a_bundle_is_checked_before_anything_is_published(members: dict[str, bytes], message: str) -> None:
    with pytest.raises(FlexiError, match=message):
        Bundle(members)


@pytest.mark.parametrize(
    ("name", "message"), [("../evil", "belongs in no"), ("/etc/passwd", "belongs in no"), ("a/b", "has no man")]
)
def test_a_tar_file_of_another_kind_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Bundle.read(tar(tmp_path / "b.tar", {name: b""}))


@pytest.mark.parametrize(("limit", "size"), [("LARGEST", 4000), ("LARGEST_SUM", 6000)])
def test_what_an_import_would_refuse_is_not_exported(
    source: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, size: int
) -> None:
    source.attach(A.digest, "picture.png", bytes(5000))
    bundle = Bundle.of(source)
    bundle.write(tmp_path / "b.tar")
    monkeypatch.setattr(f"registry.bundle.{limit}", size)
    for refused in (lambda: Bundle.read(tmp_path / "b.tar"), lambda: bundle.write(tmp_path / "c.tar")):
        with pytest.raises(InvalidInput, match=f"at most {size} bytes") as error:
            refused()
        assert ("picture.png" in error.value.text) == (limit == "LARGEST")
    assert not (tmp_path / "c.tar").exists()


def test_what_no_manifest_names_is_refused_before_what_follows_is_read(source: Catalog, tmp_path: Path) -> None:
    Bundle.of(source, ["1"]).write(tmp_path / "b.tar")
    with tarfile.open(tmp_path / "b.tar") as file:
        members = {member.name: file.extractfile(member).read() for member in file}  # type: ignore[union-attr]
    stray = {"emoji64/artifacts/stray": b"?"}
    for name, order, why in (
        ("stray.tar", {"manifest.json": members["manifest.json"]} | stray | members, "first at emoji64/artifacts/stray"),
        ("late.tar", {key: members[key] for key in sorted(members)}, "has no manifest.json at its beginning"),
    ):
        path = tar(tmp_path / name, order)
        path.write_bytes(path.read_bytes()[: -tarfile.RECORDSIZE // 2])  # who reads on comes upon a damaged end
        with pytest.raises(FlexiError, match=why):
            Bundle.read(path)


def test_a_bundle_holds_what_it_names(source: Catalog) -> None:
    members = dict(Bundle.of(source).members)
    del members[SCHEDULE]
    with pytest.raises(Tampered, match="does not hold it"):
        Bundle(members)


def test_links_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="belongs in no bundle"):
        Bundle.read(tar(tmp_path / "b.tar", {"emoji64/link": b""}, tarfile.SYMTYPE))
    (tmp_path / "c.tar").write_bytes(b"no tar")
    with pytest.raises(InvalidInput, match="cannot be read as a tar file"):
        Bundle.read(tmp_path / "c.tar")


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz"])
@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_bundle_that_was_cut_is_refused(source: Catalog, tmp_path: Path, name: str, part: float) -> None:
    """Half a tar file is a tar file too, with fewer members."""
    whole, cut = tmp_path / name, tmp_path / f"cut.{name}"
    Bundle.of(source).write(whole)
    size = int(whole.stat().st_size * part) // 512 * 512 if name == "b.tar" else int(whole.stat().st_size * part)
    if name == "b.tar":
        with tarfile.open(whole) as file:
            size = min(size, max(member.offset for member in file.getmembers()))
    cut.write_bytes(whole.read_bytes()[:size])
    with pytest.raises((InvalidInput, Tampered), match=r"cannot be read as a tar file|was cut or changed|has no manifest"):
        Bundle.read(cut)


def test_a_changed_artifact_is_refused(source: Catalog, tmp_path: Path) -> None:
    Bundle.of(source).write(tmp_path / "b.tar")
    with tarfile.open(tmp_path / "b.tar") as file:
        members = {member.name: file.extractfile(member).read() for member in file}  # type: ignore[union-attr]
    key = f"emoji64/artifacts/{A.digest}/report.json"
    with pytest.raises(Tampered, match=key):
        Bundle.read(tar(tmp_path / "c.tar", members | {key: b"?"}))
    with pytest.raises(Tampered, match="not a valid Manifest: format"):
        Bundle.read(tar(tmp_path / "d.tar", members | {"manifest.json": b'{"format":2,"sha256":{}}'}))


def test_a_file_that_is_there_is_not_overwritten(source: Catalog, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(b"mine")
    with pytest.raises(InvalidInput, match="exists already"):
        Bundle.of(source).write(tmp_path / "b.tar")
    assert (tmp_path / "b.tar").read_bytes() == b"mine"
    with pytest.raises(InvalidInput, match="cannot write"):
        Bundle.of(source).write(tmp_path / "nowhere" / "b.tar")

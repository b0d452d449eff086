"""Signatures: who vouches for a document, and what happens to one that nobody vouches for."""

from __future__ import annotations

import base64
import hashlib
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryStore
from schedule_strategies import schedule
from typer.testing import CliRunner

from registry.__main__ import app
from registry.catalog import Catalog
from registry.errors import Conflict, InvalidInput, NotFound, Tampered, Untrusted
from registry.schedule import Cost
from registry.signing import Signature, SigningKey, TrustedKeys, fits
from registry.stores.folder import FolderStore

ONE, OTHER = schedule(5), schedule(3, 6)
KEY = SigningKey(Ed25519PrivateKey.generate())


class Writable(MemoryStore):
    def overwrite(self, key: str, data: bytes) -> None:
        self._objects[key] = data


@pytest.fixture
def store() -> Writable:
    return Writable()


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.make(tmp_path / "release.pem")[0]


@pytest.fixture
def stranger(tmp_path: Path) -> SigningKey:
    return SigningKey.make(tmp_path / "stranger.pem")[0]


@pytest.fixture
def trusted(key: SigningKey, tmp_path: Path) -> TrustedKeys:
    return TrustedKeys.read(tmp_path / "release.pub.pem")


@pytest.fixture
def publisher(store: Writable) -> Catalog:
    catalog = Catalog(store, "emoji64", author="ada")
    for published in (ONE, OTHER):
        catalog.publish(published)
    return catalog


@pytest.fixture
def careful(store: Writable, trusted: TrustedKeys) -> Catalog:
    """A catalog that loads only what `key` signed."""
    return Catalog(store, "emoji64", trusted=trusted)


class TestCatalog:
    def test_loads_what_a_trusted_key_signed(self, publisher: Catalog, careful: Catalog, key: SigningKey) -> None:
        publisher.sign(ONE, key)
        publisher.sign(ONE, key)
        loaded, signature = careful.schedule_and_signature(ONE.digest)
        assert loaded == careful.resolve("1").schedule == ONE
        assert signature == key.sign(ONE.document())

    def test_refuses_what_nobody_signed_and_names_it(self, publisher: Catalog, careful: Catalog, key: SigningKey) -> None:
        publisher.sign(ONE, key)
        for ref in ("2", OTHER.digest, OTHER.digest[:10]):
            with pytest.raises(Untrusted, match=rf"{OTHER.digest}.*not signed by a trusted key \({key.id}\)"):
                careful.resolve(ref)

    def test_refuses_what_only_a_stranger_signed(self, publisher: Catalog, careful: Catalog, stranger: SigningKey) -> None:
        publisher.sign(ONE, stranger)
        with pytest.raises(Untrusted):
            careful.schedule(ONE.digest)

    def test_one_of_several_keys_is_enough(
        self, publisher: Catalog, store: Writable, key: SigningKey, stranger: SigningKey, tmp_path: Path
    ) -> None:
        both = Catalog(store, "emoji64", trusted=TrustedKeys.read(_public(tmp_path, "release", "stranger")))
        publisher.sign(ONE, stranger)
        assert both.schedule(ONE.digest) == ONE
        store.overwrite(f"emoji64/signatures/{ONE.digest}/{key.id}.json", b"rubbish")
        assert both.schedule(ONE.digest) == ONE

    def test_a_signature_covers_what_the_digest_does_not(
        self, publisher: Catalog, careful: Catalog, store: Writable, key: SigningKey
    ) -> None:
        publisher.sign(ONE, key)
        flattered = ONE.model_copy(update={"cost": Cost(macs=1, rows=2, relative=0.001)})
        assert flattered.digest == ONE.digest
        store.overwrite(f"emoji64/schedules/{ONE.digest}.json", flattered.document())
        assert publisher.schedule(ONE.digest) == flattered
        with pytest.raises(Tampered, match=key.id):
            careful.schedule(ONE.digest)

    @pytest.mark.parametrize("other", [b"", b"{}", b"\xff", None])
    def test_a_signature_that_does_not_fit_is_tampering(
        self, publisher: Catalog, careful: Catalog, store: Writable, key: SigningKey, other: bytes | None
    ) -> None:
        """`None`: the same key's signature of another document."""
        name = f"emoji64/signatures/{ONE.digest}/{key.id}.json"
        store.create(name, key.sign(OTHER.document()).document() if other is None else other)
        with pytest.raises(Tampered, match="does not fit"):
            careful.schedule(ONE.digest)
        with pytest.raises(Tampered, match=name):
            publisher.sign(ONE, key)

    def test_only_what_was_seen_is_signed(self, publisher: Catalog, store: Writable, key: SigningKey) -> None:
        """Somebody else was first to publish this digest, with a description of his own."""
        mine = ONE.model_copy(update={"cost": Cost(macs=1, rows=2, relative=0.5)})
        publisher.publish(mine)
        with pytest.raises(Conflict, match="another description"):
            publisher.sign(mine, key)
        with pytest.raises(NotFound):
            publisher.sign(schedule(1), key)
        assert not list(store.list("emoji64/signatures/"))


class TestSignature:
    @given(st.binary(), st.binary())
    def test_fits_these_bytes_only(self, document: bytes, other: bytes) -> None:
        key, trusted = KEY, TrustedKeys({KEY.id: KEY._private.public_key()})
        signature = key.sign(document)
        assert trusted.check("it", document, lambda by: signature.document()) == signature == key.sign(document)
        if other != document:
            with pytest.raises(Tampered):
                trusted.check("it", other, lambda by: signature.document())

    def test_any_changed_byte_of_it_is_noticed(self) -> None:
        trusted, made = TrustedKeys({KEY.id: KEY._private.public_key()}), KEY.sign(b"document")
        raw = base64.b64decode(made.signature)
        for i in range(64):
            changed = raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :]
            forged = Signature(key=made.key, signature=base64.b64encode(changed).decode())
            with pytest.raises(Tampered):
                trusted.check("it", b"document", lambda by, forged=forged: forged.document())

    def test_is_made_for_stored_documents_and_a_bare_one_of_their_hash_is_refused(self) -> None:
        """Whoever checks it without this project needs these very bytes: none of them may ever change."""
        public, digest = KEY._private.public_key(), hashlib.sha256(b"document").digest()
        made = base64.b64decode(KEY.sign(b"document").signature)
        public.verify(made, b"flexiffusion-serve stored document, SHA-256\n" + digest)
        for message in (b"document", digest):  # signed for something else, by a tool that was asked to
            raw = KEY._private.sign(message)
            bare = Signature(key=KEY.id, signature=base64.b64encode(raw).decode())
            with pytest.raises(Tampered, match="does not fit"):
                TrustedKeys({KEY.id: public}).check("it", b"document", lambda by, bare=bare: bare.document())
            assert not fits(public, raw, b"document")


class TestFiles:
    def test_a_private_key_is_its_owners_alone(self, tmp_path: Path) -> None:
        key, public = SigningKey.make(tmp_path / "release.pem")
        assert stat.S_IMODE((tmp_path / "release.pem").stat().st_mode) == 0o600
        assert SigningKey.read(tmp_path / "release.pem").id == key.id
        assert list(TrustedKeys.read(public).keys) == [key.id]

    def test_no_key_is_overwritten(self, tmp_path: Path) -> None:
        SigningKey.make(tmp_path / "release.pem")
        before = (tmp_path / "release.pem").read_bytes()
        with pytest.raises(InvalidInput, match=r"release\.pub\.pem: File exists"):
            SigningKey.make(tmp_path / "release.pem")
        assert (tmp_path / "release.pem").read_bytes() == before

    def test_where_the_private_half_is_in_the_way_no_public_one_is_left_beside_it(self, tmp_path: Path) -> None:
        key, public = SigningKey.make(tmp_path / "release.pem")
        public.rename(tmp_path / "at-the-server.pem")
        with pytest.raises(InvalidInput, match=r"release\.pem: File exists"):
            SigningKey.make(tmp_path / "release.pem")
        assert not public.exists(), "whoever trusted it would refuse all that the key signs"
        assert SigningKey.read(tmp_path / "release.pem").id == key.id

    def test_trusted_keys_come_from_a_folder_or_one_file(self, key: SigningKey, stranger: SigningKey, tmp_path: Path) -> None:
        folder = tmp_path / "trusted"
        folder.mkdir()
        for name in ("release", "stranger"):
            (tmp_path / f"{name}.pub.pem").rename(folder / f"{name}.pub.pem")
        assert set(TrustedKeys.read(folder).keys) == {key.id, stranger.id}
        assert set(TrustedKeys.read(_public(folder, "release", "stranger")).keys) == {key.id, stranger.id}

    @pytest.mark.parametrize(
        ("made", "fault"),
        [
            (None, "cannot read"),
            ("folder", "no \\*.pem"),
            (b"", "no public key"),
            (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "damaged"),
            ("private", "no public key"),
            ("elliptic", "another kind"),
        ],
    )
    def test_other_files_are_not_trusted(self, tmp_path: Path, made: str | bytes | None, fault: str) -> None:
        path = tmp_path / "keys"
        if made == "folder":
            path.mkdir()
        elif made == "private":
            SigningKey.make(tmp_path / "keys")
        elif made == "elliptic":
            public = generate_private_key(SECP256R1()).public_key()
            path.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        elif isinstance(made, bytes):
            path.write_bytes(made)
        with pytest.raises(InvalidInput, match=f"trusted_keys: .*{fault}") as refused:
            TrustedKeys.read(path)
        assert "PRIVATE" not in refused.value.message

    def test_other_files_do_not_sign(self, tmp_path: Path) -> None:
        SigningKey.make(tmp_path / "a.pem")
        locked = BestAvailableEncryption(b"secret")
        (tmp_path / "locked.pem").write_bytes(KEY._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
        elliptic = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / "elliptic.pem").write_bytes(elliptic)
        faults = {
            "a.pub.pem": "not a private key",
            "locked.pem": "encrypted",
            "elliptic.pem": "another kind",
            "no": "cannot read",
        }
        for name, fault in faults.items():
            with pytest.raises(InvalidInput, match=f"key: .*{fault}"):
                SigningKey.read(tmp_path / name)


def test_commands(tmp_path: Path) -> None:
    registry = str(tmp_path / "registry")

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, arguments, env={"FLEXI_REGISTRY": registry})
        assert result.exit_code == code, result.output
        return result.output

    for name, published in {"one": ONE, "other": OTHER}.items():
        (tmp_path / f"{name}.json").write_bytes(published.document())
    said = run("keygen", str(tmp_path / "key.pem"))
    assert f"trust {tmp_path / 'key.pub.pem'}" in said
    careful = Catalog(FolderStore(tmp_path / "registry"), "emoji64", trusted=TrustedKeys.read(tmp_path / "key.pub.pem"))
    run("publish", str(tmp_path / "one.json"), "--sign", str(tmp_path / "key.pem"))
    assert careful.schedule(ONE.digest) == ONE
    run("publish", str(tmp_path / "other.json"))
    with pytest.raises(Untrusted):
        careful.schedule(OTHER.digest)
    assert f"{OTHER.digest[:8]} is signed by" in run("sign", "2", "--key", str(tmp_path / "key.pem"))
    assert careful.schedule(OTHER.digest) == OTHER
    assert "not a private key" in run("sign", "2", "--key", str(tmp_path / "key.pub.pem"), code=1)
    assert "File exists" in run("keygen", str(tmp_path / "key.pem"), code=1)


def test_a_key_that_cannot_be_read_publishes_nothing(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_bytes(ONE.document())
    arguments = ["publish", str(tmp_path / "one.json"), "--sign", str(tmp_path / "no.pem")]
    result = CliRunner().invoke(app, arguments, env={"FLEXI_REGISTRY": str(tmp_path / "registry")})
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert not (tmp_path / "registry").exists()


def _public(folder: Path, *names: str) -> Path:
    """One file with several public keys."""
    path = folder / "all.keys"
    path.write_bytes(b"".join((folder / f"{name}.pub.pem").read_bytes() for name in names))
    return path

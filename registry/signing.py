"""Signatures: who vouches for a stored document. Ed25519 (RFC 8032), beside the document, one object for each key that signed.

A signature covers every byte of the document, so its cost, fidelity and validated sizes too, which the digest does not.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from pydantic import Field

from registry.errors import InvalidInput, NotFound, Tampered, Untrusted
from registry.records import Record

PURPOSE = b"flexiffusion-serve stored document, SHA-256\n"  # a signature made for anything else never fits
_END = b"-----END PUBLIC KEY-----"


class Signature(Record):
    """`key` is the signer's id, `signature` its 64 bytes in base64."""

    format: Literal[1] = 1
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    signature: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{86}==$")]


class SigningKey:
    """A private key, for those who publish; `id` is that of its public half (`key_id`)."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.id = key_id(private.public_key())

    @classmethod
    def read(cls, path: Path) -> SigningKey:
        """Read an unencrypted PKCS #8 PEM file. Raises `InvalidInput`, in words that never hold what is in the file."""
        try:
            private = load_pem_private_key(_read(path, "key"), password=None)
        except TypeError as error:
            raise InvalidInput(f"{path} is encrypted: decrypt it first (openssl pkey -in …)", param="key") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidInput(f"{path} is not a private key in PEM (PKCS #8)", param="key") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise InvalidInput(f"{path} holds a key of another kind than Ed25519", param="key")
        return cls(private)

    @classmethod
    def make(cls, path: Path) -> tuple[SigningKey, Path]:
        """Draw a key, write it to `path`, which only its owner may read, and its public half beside it, to `….pub.pem`.

        Raises `InvalidInput` where a file is in the way or the folder cannot be written to.
        """
        key, public = cls(Ed25519PrivateKey.generate()), path.with_name(f"{path.name.removesuffix('.pem')}.pub.pem")
        halves = {
            public: (0o644, key._private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)),
            path: (0o600, key._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())),
        }
        made: list[Path] = []
        try:
            for file, (mode, pem) in halves.items():
                with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
                    made.append(file)
                    stream.write(pem)
        except OSError as error:
            for file in made:
                file.unlink()  # half a pair beside another one's half would be taken for it
            raise InvalidInput(f"cannot write {error.filename or path}: {error.strerror}", param="key") from error
        return key, public

    def sign(self, document: bytes) -> Signature:
        """Vouch for these bytes. The same bytes get the same signature, whenever they are signed."""
        made = base64.b64encode(self._private.sign(_message(document))).decode()
        return Signature(key=self.id, signature=made)


class TrustedKeys(NamedTuple):
    """Public keys by id: one of them must have signed what is to be loaded."""

    keys: Mapping[str, Ed25519PublicKey]

    @classmethod
    def read(cls, path: Path) -> TrustedKeys:
        """Read a PEM file, which may hold several keys, or all `*.pem` of a folder. Raises `InvalidInput`."""
        files = sorted(path.glob("*.pem")) if path.is_dir() else [path]  # a mounted secret or ConfigMap is a folder
        keys = {key_id(key): key for file in files for key in _public_keys(file)}
        if not keys:
            raise InvalidInput(f"there is no *.pem file in {path}", param="trusted_keys")
        return cls(keys)

    def check(self, what: str, document: bytes, read: Callable[[str], bytes]) -> Signature:
        """The first signature of these bytes by a trusted key; `read` gets that of a key id, or raises `NotFound`.

        Raises `Tampered` if there are only signatures that do not fit, `Untrusted` if there are none.
        """
        misfits = []
        for name, key in self.keys.items():
            try:
                signature = Signature.read(f"the signature of {what} by {name}", read(name))
                key.verify(base64.b64decode(signature.signature), _message(document))
                return signature
            except NotFound:
                continue
            except (InvalidSignature, Tampered):
                misfits.append(name)
        if misfits:
            message = f"{what} has a signature by {', '.join(misfits)} that does not fit it: one of the two was changed"
            raise Tampered(message, param="signature")
        message = f"{what} is not signed by a trusted key ({', '.join(self.keys)})"
        raise Untrusted(message, param="signature")


def fits(key: Ed25519PublicKey, signature: bytes, document: bytes) -> bool:
    """Whether a signature is this key's, of these bytes."""
    try:
        key.verify(signature, _message(document))
    except InvalidSignature:
        return False
    return True


def key_id(key: Ed25519PublicKey) -> str:
    """The first 16 hex digits of the SHA-256 of the raw public key."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _message(document: bytes) -> bytes:
    return PURPOSE + hashlib.sha256(document).digest()


def _public_keys(file: Path) -> list[Ed25519PublicKey]:
    blocks = _read(file, "trusted_keys").split(_END)[:-1]
    if not blocks:
        raise InvalidInput(f"{file} holds no public key in PEM", param="trusted_keys")
    keys = []
    for block in blocks:
        try:
            key = load_pem_public_key(block + _END)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidInput(f"{file} holds a damaged public key", param="trusted_keys") from error
        if not isinstance(key, Ed25519PublicKey):
            raise InvalidInput(f"{file} holds a key of another kind than Ed25519", param="trusted_keys")
        keys.append(key)
    return keys


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}", param=field) from error

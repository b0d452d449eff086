"""What an operator signs with: a chain of certificates and the private key of its first, from PEM files."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509 import Certificate, load_pem_x509_certificates

from registry.errors import InvalidInput

CERTIFICATE, KEY = "marking_certificate", "marking_key"  # settings, which refusals name
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


class Credential(NamedTuple):
    """A chain in PEM, that of the signer first; its key in PEM (PKCS #8); and the signature algorithm that the key is for.

    name: of the signer. ends: when the first certificate of the chain expires.
    """

    chain: bytes
    key: bytes
    algorithm: str
    name: str
    ends: datetime

    @classmethod
    def read(cls, certificate: Path, key: Path, now: datetime | None = None) -> Credential:
        """Of two files. Raises `InvalidInput` with the setting's name as its param, in words that hold nothing of the key."""
        now = now or datetime.now(UTC)
        chain, private = _chain(certificate), _private(key)
        if chain[0].public_key() != private.public_key():
            text = f"the first certificate of {certificate} is of another key than that in {key}"
            raise InvalidInput(text, param=KEY)
        for issued, issuer in pairwise(chain):
            try:
                issued.verify_directly_issued_by(issuer)
            except (ValueError, TypeError, InvalidSignature) as error:
                text = (
                    f"{certificate}: {_name(issued)} was not issued by the next certificate, {_name(issuer)}: put them in order"
                )
                raise InvalidInput(text, param=CERTIFICATE) from error
        for one in chain:
            if not one.not_valid_before_utc <= now < one.not_valid_after_utc:
                valid = f"from {one.not_valid_before_utc:%Y-%m-%d %H:%M} to {one.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
                raise InvalidInput(f"{certificate}: {_name(one)} is not valid now: it is {valid}", param=CERTIFICATE)
        return cls(
            b"".join(one.public_bytes(Encoding.PEM) for one in chain),
            private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            _algorithm(private, key),
            _name(chain[0]),
            min(one.not_valid_after_utc for one in chain),
        )


def _chain(path: Path) -> list[Certificate]:
    try:
        return load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}", param=CERTIFICATE) from error
    except ValueError as error:
        raise InvalidInput(f"{path} holds no certificate in PEM, or a damaged one", param=CERTIFICATE) from error


def _private(path: Path) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}", param=KEY) from error
    except TypeError as error:
        raise InvalidInput(f"{path} is encrypted: decrypt it first (openssl pkey -in …)", param=KEY) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidInput(f"{path} is not a private key in PEM", param=KEY) from error


def _algorithm(key: PrivateKeyTypes, path: Path) -> str:
    """What C2PA's specification calls it: of those that the key is for, the one with the shortest hash."""
    if isinstance(key, Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    if isinstance(key, EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    raise InvalidInput(f"{path} holds none of Ed25519, ECDSA on P-256, P-384 or P-521, and RSA of 2048 bits or more", param=KEY)


def _name(certificate: Certificate) -> str:
    return certificate.subject.rfc4514_string() or "a certificate without a name"

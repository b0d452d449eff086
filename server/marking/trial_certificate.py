"""Certificates to try marking with: nobody trusts them, and verifiers say so."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import (
    AuthorityKeyIdentifier,
    BasicConstraints,
    Certificate,
    CertificateBuilder,
    ExtendedKeyUsage,
    KeyUsage,
    Name,
    NameAttribute,
    SubjectKeyIdentifier,
    random_serial_number,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from registry.errors import InvalidInput

Signing = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
NAME = "Flexiffusion Serve: a trial certificate, not to be trusted"
CHAIN, KEY, ROOT = "certificate.pem", "key.pem", "root.pem"
USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def write_trial_certificate(folder: Path, days: float = 30.0, key: Signing | None = None) -> None:
    """A chain of a signer and its issuer, the signer's key (ES256, if absent), and the issuer by itself, which a verifier may
    be told to trust. Raises `InvalidInput` where files are in the way or cannot be written.
    """
    issuer, key = ec.generate_private_key(ec.SECP256R1()), key or ec.generate_private_key(ec.SECP256R1())
    ends = datetime.now(UTC) + timedelta(days=days)
    root = _certificate("issuer", issuer, issuer, ends)
    signer = _certificate("signer", key, issuer, ends)
    pems = {one: one.public_bytes(Encoding.PEM) for one in (signer, root)}
    files = {
        CHAIN: (0o644, pems[signer] + pems[root]),
        KEY: (0o600, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())),
        ROOT: (0o644, pems[root]),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (mode, pem) in files.items():
            with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
                stream.write(pem)
    except OSError as error:
        raise InvalidInput(f"cannot write {error.filename or folder}: {error.strerror}", param="folder") from error


def _certificate(role: str, key: Signing, issuer: ec.EllipticCurvePrivateKey, ends: datetime) -> Certificate:
    """With what C2PA's specification wants of one: the signer's is for signing, and its issuer is another."""
    is_root, public = key is issuer, key.public_key()
    usages = {"key_cert_sign", "crl_sign"} if is_root else {"digital_signature"}
    builder = (
        CertificateBuilder()
        .subject_name(_name(role))
        .issuer_name(_name("issuer"))
        .public_key(public)
        .serial_number(random_serial_number())
        .not_valid_before(min(datetime.now(UTC), ends) - timedelta(days=1))  # of a machine whose clock is behind
        .not_valid_after(ends)
        .add_extension(BasicConstraints(ca=is_root, path_length=0 if is_root else None), critical=True)
        .add_extension(KeyUsage(**{usage: usage in usages for usage in USAGES}), critical=True)
        .add_extension(SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
    )
    if not is_root:
        builder = builder.add_extension(ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer, SHA256())


def _name(role: str) -> Name:
    return Name([NameAttribute(NameOID.ORGANIZATION_NAME, NAME), NameAttribute(NameOID.COMMON_NAME, role)])

"""What an operator signs with is refused by the name of the setting that is wrong, before a server starts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from registry.errors import InvalidInput
from server.marking.credential import Credential
from server.marking.marker import Marker
from server.marking.trial_certificate import write_trial_certificate

KEYS = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "es512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ps256": lambda: rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


def made(folder, **options):
    write_trial_certificate(folder, **options)
    return folder / "certificate.pem", folder / "key.pem"


def refusal(certificate, key, **options):
    with pytest.raises(InvalidInput) as refused:
        Credential.read(certificate, key, **options)
    return refused.value.message


@pytest.mark.parametrize("algorithm", KEYS)
def test_every_kind_of_key_signs_by_its_own_algorithm(tmp_path, algorithm):
    credential = Credential.read(*made(tmp_path, key=KEYS[algorithm]()))
    assert credential.algorithm == algorithm
    Marker(credential)  # which the library tries


def test_a_key_is_read_in_the_older_form_too(tmp_path):
    certificate, key = made(tmp_path)
    private = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    Marker(Credential.read(certificate, key))


def test_only_its_owner_may_read_a_key_that_was_made_and_none_is_overwritten(tmp_path):
    _, key = made(tmp_path)
    assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_bytes()
    with pytest.raises(InvalidInput, match=r"cannot write .*certificate.pem: File exists"):
        write_trial_certificate(tmp_path)
    assert key.read_bytes() == before


def test_files_that_are_missing_or_hold_something_else_are_refused_by_the_settings_name(tmp_path):
    certificate, key = made(tmp_path)
    assert refusal(tmp_path / "none.pem", key).startswith("marking_certificate: cannot read ")
    assert refusal(certificate, tmp_path / "none.pem").startswith("marking_key: cannot read ")
    assert refusal(key, key) == f"marking_certificate: {key} holds no certificate in PEM, or a damaged one"
    assert refusal(certificate, certificate) == f"marking_key: {certificate} is not a private key in PEM"


def test_an_encrypted_key_is_refused(tmp_path):
    certificate, key = made(tmp_path)
    private = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2")))
    assert "is encrypted: decrypt it first" in refusal(certificate, key)


@pytest.mark.parametrize(
    "weak", [lambda: rsa.generate_private_key(65537, 1024), lambda: ec.generate_private_key(ec.SECP256K1())]
)
def test_a_key_that_c2pa_knows_no_algorithm_for_is_refused(tmp_path, weak):
    assert "holds none of Ed25519" in refusal(*made(tmp_path, key=weak()))


def test_a_key_of_another_certificate_is_refused(tmp_path):
    certificate, _ = made(tmp_path / "one")
    _, key = made(tmp_path / "other")
    assert refusal(certificate, key).startswith("marking_key: the first certificate of ")


def test_a_chain_in_the_wrong_order_or_of_strangers_is_refused(tmp_path):
    certificate, key = made(tmp_path / "one")
    other, _ = made(tmp_path / "other")
    first = certificate.read_text().split("-----END CERTIFICATE-----\n")[0] + "-----END CERTIFICATE-----\n"
    certificate.write_text(first + other.read_text())
    assert "was not issued by the next certificate" in refusal(certificate, key)


def test_a_certificate_that_is_over_or_has_not_begun_is_refused_with_the_times_of_its_validity(tmp_path):
    certificate, key = made(tmp_path)
    for when in (datetime.now(UTC) + timedelta(days=31), datetime.now(UTC) - timedelta(days=2)):
        assert " is not valid now: it is from 20" in refusal(certificate, key, now=when)


def test_what_only_the_library_refuses_is_refused_with_its_reason(tmp_path):
    """The issuer itself may sign nothing but certificates."""
    credential = Credential.read(*made(tmp_path))
    with pytest.raises(InvalidInput, match=r"^marking_certificate: .* cannot sign image files: .*self-signed"):
        Marker(credential._replace(chain=(tmp_path / "root.pem").read_bytes()))

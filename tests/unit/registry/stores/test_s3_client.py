"""Checksums, addresses and certificates of S3 stores that are not AWS, and what the first use finds out about them."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import boto3
import pytest
from any_answers import AnyAnswer, any_server, hasty_client
from dict_s3 import DictS3, dict_s3

from registry.errors import Conflict, FlexiError, StoreUnavailable, Unsupported
from registry.stores.s3 import PROBE, PROBES, S3Store, open_s3, refuse_without_conditional_writes
from registry.stores.s3_client import make_client

URL = "s3://bucket/p"
HINT = "AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
SUPPORTED = "AWS_REQUEST_CHECKSUM_CALCULATION"


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Credentials, and nothing of this machine's own AWS settings."""
    for name in (
        "AWS_PROFILE",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "FLEXI_S3_ENDPOINT",
        SUPPORTED,
    ):
        monkeypatch.delenv(name, raising=False)
    settings = {"AWS_CONFIG_FILE": "config", "AWS_SHARED_CREDENTIALS_FILE": "credentials"}
    for name, file in settings.items():
        monkeypatch.setenv(name, str(tmp_path / file))
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    return monkeypatch


@pytest.fixture
def s3(variables: pytest.MonkeyPatch) -> Iterator[DictS3]:
    """A store of one's own, named by FLEXI_S3_ENDPOINT."""
    with dict_s3() as server:
        variables.setenv("FLEXI_S3_ENDPOINT", server.endpoint)
        yield server


@pytest.mark.parametrize("name", ["FLEXI_S3_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_a_store_of_ones_own_gets_no_checksums_that_it_may_not_know(variables: pytest.MonkeyPatch, name: str) -> None:
    with dict_s3() as server:
        variables.setenv(name, server.endpoint)
        open_s3(URL).create("m/a", b"1")
    said = {header for _, headers in server.heard for header in headers}
    assert {"x-amz-content-sha256", "if-none-match"} <= said
    assert not [
        header for header in said if "checksum" in header or "trailer" in header or header == "x-amz-decoded-content-length"
    ]


def test_aws_and_who_asks_for_them_get_checksums(variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def chosen() -> tuple[str, str]:
        boto3.DEFAULT_SESSION = None
        config = make_client(URL).meta.config
        return config.request_checksum_calculation, config.response_checksum_validation

    assert chosen() == ("when_supported", "when_supported")
    variables.setenv("FLEXI_S3_ENDPOINT", "https://s3.eu-central-1.amazonaws.com")
    assert chosen() == ("when_supported", "when_supported")
    variables.setenv("FLEXI_S3_ENDPOINT", "https://amazonaws.com.example.org")
    assert chosen() == ("when_required", "when_required")
    variables.setenv(SUPPORTED, "when_supported")
    assert chosen() == ("when_supported", "when_required")
    variables.delenv(SUPPORTED)
    (tmp_path / "config").write_text("[default]\nresponse_checksum_validation = when_supported\n")
    assert chosen() == ("when_required", "when_supported")


def framed(body: bytes) -> bytes:
    """As a store keeps it that does not know aws-chunked."""
    return b"%x\r\n%s\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize("keep", [framed, lambda body: b"", lambda body: body[:-1], lambda body: body.upper()])
def test_a_store_that_does_not_keep_what_is_written_is_refused(variables: pytest.MonkeyPatch, s3: DictS3, keep) -> None:
    s3.keep = keep
    for _ in range(2):
        with pytest.raises(Unsupported, match="does not keep what is written") as refused:
            open_s3(URL)
        assert HINT not in refused.value.message, "it is set already"
    variables.setenv(SUPPORTED, "when_supported")
    with pytest.raises(Unsupported, match=HINT):
        open_s3(URL)
    s3.keep = bytes
    open_s3(URL)


def test_a_probe_of_other_checksums_vouches_for_nothing(variables: pytest.MonkeyPatch, s3: DictS3) -> None:
    open_s3(URL)
    s3.keep = framed
    variables.setenv(SUPPORTED, "when_supported")
    with pytest.raises(Unsupported, match="does not keep what is written"):
        open_s3(URL)


def test_what_an_older_version_or_a_broken_writer_left_as_the_probe_is_replaced(s3: DictS3) -> None:
    for left in (b"{}", framed(b"{}"), b""):
        s3.objects[f"/bucket/p/{PROBE}"] = left
        open_s3(URL)
        assert s3.objects[f"/bucket/p/{PROBE}"] in PROBES.values()


def test_a_store_that_was_tried_before_is_asked_three_times(s3: DictS3) -> None:
    open_s3(URL)
    s3.heard.clear()
    open_s3(URL)
    assert [method for method, _ in s3.heard] == ["PUT", "PUT", "GET"]


def test_a_store_that_lets_nothing_be_replaced_is_refused(s3: DictS3) -> None:
    s3.matches = lambda etag, wanted: False
    for _ in range(2):  # what the first one leaves vouches for nothing
        with pytest.raises(Unsupported, match="does not let an object be replaced by its own etag"):
            open_s3(URL)


def test_an_etag_that_a_proxy_has_weakened_still_replaces(s3: DictS3) -> None:
    plain = s3.etag
    s3.etag = lambda body: f"W/{plain(body)}"
    s3.matches = lambda etag, wanted: etag == f"W/{wanted}"
    store = open_s3(URL)
    etag = store.create("m/a", b"1")
    assert store.swap("m/a", b"2", etag) == store.get("m/a").etag
    with pytest.raises(Conflict):
        store.swap("m/a", b"3", etag)


def test_a_write_whose_answer_lacks_the_etag_is_looked_for(s3: DictS3) -> None:
    store = open_s3(URL)
    s3.etag = lambda body: ""
    with pytest.raises(StoreUnavailable, match="does not speak S3"):
        store.create("m/a", b"1")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (AnyAnswer(307, (("Location", "https://other.example/bucket?key=hunter2"),)), "sends us to https://other.example/bucket"),
        (AnyAnswer(301, (("Location", "https://127.0.0.1:1/x"),)), "set FLEXI_S3_ENDPOINT to the address itself"),
        (AnyAnswer(403, (("Content-Type", "text/html"),), b"<html>Forbidden"), "a web page answers, no store"),
        (AnyAnswer(502, (("Content-Type", "text/html"),), b"<html>Bad Gateway"), "fault of its own"),
        (AnyAnswer(200, (("Content-Type", "text/html"),), b"<html></html>"), "check FLEXI_S3_ENDPOINT"),
        (AnyAnswer(400, (), b"Client sent an HTTP request to an HTTPS server.\n"), "http or https"),
        (AnyAnswer(429), "asks for fewer requests"),
        (AnyAnswer(404), "does not speak S3"),
        (AnyAnswer(sent=0), "no answer"),
        (AnyAnswer(sent=9), "no answer"),
        (AnyAnswer(400, (), b"<Error><Code>InvalidRequest</Code><Message>Content-MD5 is required</Message></Error>"),
         "AWS_REQUEST_CHECKSUM_CALCULATION=when_supported"),
    ],
)  # fmt: skip
def test_what_no_store_would_say_is_told_with_what_to_do(variables: pytest.MonkeyPatch, answer: AnyAnswer, words: str) -> None:
    with any_server(lambda command: answer) as server:
        variables.setenv("FLEXI_S3_ENDPOINT", server.endpoint)
        with pytest.raises(StoreUnavailable, match=words) as told:
            refuse_without_conditional_writes(S3Store(hasty_client(), "bucket"))
        assert len(server.log) <= 3, "nobody runs after redirects"
    assert "hunter2" not in told.value.message
    assert "\n" not in told.value.message


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed."),
        (501, "NotImplemented", "A header you provided implies functionality that is not implemented"),
        (400, "InvalidArgument", "Unsupported header 'x-amz-sdk-checksum-algorithm' received for this API call."),
        (411, "MissingContentLength", "You must provide the Content-Length HTTP header."),
        (400, "BadDigest", "The Content-MD5 you specified did not match what we received."),
        (400, "UnsupportedHeader", "x-amz-trailer"),
    ],
)
def test_a_store_that_refuses_the_users_checksums_says_which_setting_ends_that(
    variables: pytest.MonkeyPatch, status: int, code: str, message: str
) -> None:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    with any_server(lambda command: AnyAnswer(status, (), body)) as server:
        variables.setenv("FLEXI_S3_ENDPOINT", server.endpoint)
        with pytest.raises(FlexiError) as told:
            open_s3(URL)
        assert HINT not in told.value.message
        variables.setenv(SUPPORTED, "when_supported")
        with pytest.raises(FlexiError, match=HINT):
            open_s3(URL)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("FLEXI_S3_ENDPOINT", "127.0.0.1:9000", "FLEXI_S3_ENDPOINT: give a URL"),
        ("FLEXI_S3_ENDPOINT", "http://[", "FLEXI_S3_ENDPOINT: give a URL"),
        ("FLEXI_S3_ENDPOINT", "ftp://127.0.0.1", "not a valid URI"),
        ("AWS_ENDPOINT_URL", "localhost", "AWS_ENDPOINT_URL: give a URL"),
        ("FLEXI_S3_ENDPOINT", "http://no-such-host.invalid", "no answer.*check the network"),
        ("AWS_PROFILE", "nobody", "profile"),
        (SUPPORTED, "sometimes", "request_checksum_calculation"),
    ],
)
def test_wrong_settings_are_named(variables: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    variables.setenv("FLEXI_S3_ENDPOINT", "http://127.0.0.1:1")
    if name == "AWS_ENDPOINT_URL":
        variables.delenv("FLEXI_S3_ENDPOINT")
    variables.setenv(name, value)
    with pytest.raises(FlexiError, match=words):
        open_s3(URL)


def test_a_name_that_no_bucket_can_have_is_told(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("FLEXI_S3_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(StoreUnavailable, match="no name of a bucket: correct the registry's address"):
        open_s3("s3://My Bucket/p")


def test_a_certificate_that_nobody_vouches_for_is_told(variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -days 2 -subj /CN=localhost"
    subprocess.run(command.split(), check=True, capture_output=True)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        variables.setenv("FLEXI_S3_ENDPOINT", f"https://127.0.0.1:{server.server_port}")
        store = S3Store(make_client(URL), "bucket")
        with pytest.raises(StoreUnavailable, match=r"no trusted connection.*self-signed.*AWS_CA_BUNDLE"):
            store.get("m/a")
        server.shutdown()

"""What only a store behind a network can do to us, shown by a real S3 server."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from seaweed import S3Server

from registry.errors import Conflict, InvalidInput, NotFound, StoreUnavailable, Unsupported
from registry.stores.address import open_store
from registry.stores.s3 import S3Store, refuse_without_conditional_writes


def _drop(header: str) -> Callable[..., None]:
    """A hook that makes the client forget a header: the server then behaves as one that does not know it."""

    def forget(params: dict[str, Any], **_: object) -> None:
        params["headers"].pop(header, None)

    return forget


class _LostAnswer:
    """A client whose first answer to each write is lost, so that it writes once more: as botocore's retries do."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def put_object(self, **arguments: Any) -> Any:
        self._client.put_object(**arguments)
        return self._client.put_object(**arguments)


class _NoStore(BaseHTTPRequestHandler):
    """Says 200 to everything, as the web page of some console does."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    do_PUT = do_GET  # noqa: N815 - the standard library looks methods up by these names

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The real server, as an operator's variables name it; nothing of this machine's own AWS settings."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it remembers credentials
    return monkeypatch


@pytest.fixture
def url(s3_server: S3Server) -> str:
    return f"s3://{s3_server.bucket}/{uuid.uuid4().hex}"


def test_opens_by_address(environment: pytest.MonkeyPatch, url: str, s3_server: S3Server) -> None:
    for _ in range(2):  # the second time the probe is there already
        store = open_store(url)
        assert list(store.list("")) == []
    store.create("m/a", b"1")
    key = url.removeprefix(f"s3://{s3_server.bucket}/") + "/m/a"
    assert s3_server.client().get_object(Bucket=s3_server.bucket, Key=key)["Body"].read() == b"1"


def test_prefixes_are_worlds_of_their_own(environment: pytest.MonkeyPatch, url: str) -> None:
    one, other = open_store(url), open_store(f"{url}2")
    one.create("m/a", b"1")
    assert list(other.list("")) == []
    with pytest.raises(NotFound):
        other.get("m/a")


def test_a_reader_reads_and_is_told_why_she_cannot_write(
    environment: pytest.MonkeyPatch, url: str, s3_server: S3Server
) -> None:
    etag = open_store(url).create("m/a", b"1")
    environment.setenv("AWS_ACCESS_KEY_ID", s3_server.reader_access_key)
    environment.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader_secret_key)
    environment.setattr("boto3.DEFAULT_SESSION", None)
    store = open_store(url)
    assert store.get("m/a").data == b"1"
    with pytest.raises(StoreUnavailable, match=r"access denied.*s3:PutObject"):
        store.create("m/b", b"1")
    with pytest.raises(StoreUnavailable, match=r"access denied.*s3:PutObject"):
        store.swap("m/a", b"2", etag)


@pytest.mark.parametrize(
    ("variables", "advice"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "does not accept these credentials"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "does not accept these credentials"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials found"),
        ({"AWS_PROFILE": "nobody"}, "profile"),
        ({"FLEXI_S3_ENDPOINT": "http://127.0.0.1:1"}, "no answer.*FLEXI_S3_ENDPOINT"),
    ],
)
def test_wrong_settings_are_told_at_opening(
    environment: pytest.MonkeyPatch, url: str, variables: dict[str, str], advice: str
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value) if value else environment.delenv(name)
    with pytest.raises(StoreUnavailable, match=advice) as caught:
        open_store(url)
    assert "\n" not in caught.value.message


def test_a_malformed_endpoint_is_named(environment: pytest.MonkeyPatch, url: str) -> None:
    environment.setenv("FLEXI_S3_ENDPOINT", "not a url")
    with pytest.raises(InvalidInput, match="FLEXI_S3_ENDPOINT"):
        open_store(url)


def test_a_missing_bucket_is_named(environment: pytest.MonkeyPatch, s3_server: S3Server) -> None:
    with pytest.raises(StoreUnavailable, match=r"s3://no-such-bucket/.*does not exist: create it"):
        open_store("s3://no-such-bucket/x")
    store = S3Store(s3_server.client(), "no-such-bucket")
    for verb in (
        lambda: store.get("m/a"),
        lambda: store.create("m/a", b""),
        lambda: list(store.list("m/")),
    ):
        with pytest.raises(StoreUnavailable, match="the bucket does not exist"):
            verb()


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_a_store_without_conditional_writes_is_refused(s3_server: S3Server, header: str) -> None:
    client = s3_server.client()
    client.meta.events.register("before-call.s3.PutObject", _drop(header))
    for _ in range(2):
        with pytest.raises(Unsupported, match="no conditional writes"):
            refuse_without_conditional_writes(S3Store(client, s3_server.bucket, f"refused-{header}"))


def test_a_lost_answer_is_no_conflict(s3_server: S3Server) -> None:
    prefix = uuid.uuid4().hex
    store = S3Store(_LostAnswer(s3_server.client()), s3_server.bucket, prefix)
    etag = store.create("m/a", b"1")
    etag = store.swap("m/a", b"2", etag)
    assert store.get("m/a") == (b"2", etag)
    with pytest.raises(Conflict):
        S3Store(s3_server.client(), s3_server.bucket, prefix).create("m/a", b"2")


def test_lists_page_by_page(s3_server: S3Server) -> None:
    pages = []

    def two_a_page(params: dict[str, Any], **_: object) -> None:
        pages.append(params)
        params["MaxKeys"] = 2

    client = s3_server.client()
    client.meta.events.register("provide-client-params.s3.ListObjectsV2", two_a_page)
    store = S3Store(client, s3_server.bucket, uuid.uuid4().hex)
    keys = [f"m/{i}" for i in range(7)]
    for key in keys:
        store.create(key, b"")
    assert list(store.list("m/")) == keys
    assert len(pages) == 4


def test_silence_is_told(s3_server: S3Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        client = replace(s3_server, endpoint=endpoint).client(read_timeout=0.2)
        with pytest.raises(StoreUnavailable, match=r"no answer.*timeout"):
            S3Store(client, s3_server.bucket).get("m/a")


def test_what_is_no_store_is_told(s3_server: S3Server) -> None:
    with HTTPServer(("127.0.0.1", 0), _NoStore) as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        client = replace(s3_server, endpoint=f"http://127.0.0.1:{page.server_port}").client()
        store = S3Store(client, s3_server.bucket)
        for verb in (lambda: store.create("m/a", b"1"), lambda: store.get("m/a"), lambda: list(store.list("m/"))):
            with pytest.raises(StoreUnavailable, match="FLEXI_S3_ENDPOINT"):
                verb()
        page.shutdown()

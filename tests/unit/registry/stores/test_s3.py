"""Faults of an S3 store that a real server cannot be made to show: told in words that say what to do."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.response import StreamingBody
from botocore.stub import ANY, Stubber

from registry.errors import Conflict, InvalidInput, StoreUnavailable, Unsupported
from registry.stores.address import open_store
from registry.stores.s3 import ATTEMPTS_WHEN_BUSY, S3Store, open_s3, refuse_without_conditional_writes

VERBS: dict[str, tuple[str, Callable[[S3Store], object]]] = {
    "get": ("get_object", lambda store: store.get("m/a")),
    "get_if_changed": ("get_object", lambda store: store.get_if_changed("m/a", '"e"')),
    "create": ("put_object", lambda store: store.create("m/a", b"")),
    "swap": ("put_object", lambda store: store.swap("m/a", b"", '"e"')),
    "list": ("list_objects_v2", lambda store: list(store.list("m/"))),
}
SAID = {"ResponseMetadata": {"HTTPStatusCode": 200}}
FAULTS = [
    ("InternalError", 500, "fault of its own"),
    ("SlowDown", 503, "asks for fewer requests"),
    ("AccessDenied", 403, "access denied"),
    ("ExpiredToken", 400, "does not accept these credentials"),
    ("InvalidAccessKeyId", 403, "does not accept these credentials"),
    ("SignatureDoesNotMatch", 403, "does not accept these credentials"),
    ("RequestTimeTooSkewed", 403, "clock"),
    ("PermanentRedirect", 301, "another region: set AWS_REGION"),
    ("AuthorizationHeaderMalformed", 400, "another region: set AWS_REGION"),
    ("NoSuchBucket", 404, "the bucket does not exist"),
    ("RequestExpired", 400, "clock"),
    ("SomethingNew", 400, "refuses the request .SomethingNew 400: .*check FLEXI_S3_ENDPOINT"),
]


@pytest.fixture
def client() -> Any:
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url="http://127.0.0.1:1", config=Config(retries={"total_max_attempts": 1}), **keys)


@pytest.fixture
def server(client: Any) -> Iterator[Stubber]:
    """What the client gets for an answer, in order; every answer must have been asked for."""
    with Stubber(client) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


@pytest.fixture
def store(client: Any) -> S3Store:
    return S3Store(client, "bucket", "some/prefix")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("code", "status", "advice"), FAULTS, ids=[code for code, *_ in FAULTS])
def test_faults_say_what_to_do(store: S3Store, server: Stubber, verb: str, code: str, status: int, advice: str) -> None:
    operation, call = VERBS[verb]
    server.add_client_error(operation, service_error_code=code, http_status_code=status)
    with pytest.raises(StoreUnavailable, match=advice) as caught:
        call(store)
    assert "s3://bucket/some/prefix/m/" in caught.value.message
    assert "http://127.0.0.1:1" in caught.value.message
    assert caught.value.status == 503


@pytest.mark.parametrize("verb", VERBS)
def test_a_refused_connection_says_so(store: S3Store, verb: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"no answer.*FLEXI_S3_ENDPOINT"):
        VERBS[verb][1](store)


def test_an_answer_that_breaks_off_says_so(store: S3Store, server: Stubber) -> None:
    for expected in ({}, {"IfNoneMatch": '"e"'}):
        body = StreamingBody(io.BytesIO(b"12345"), 10)
        server.add_response("get_object", {"Body": body, "ETag": '"new"', **SAID}, {"Bucket": ANY, "Key": ANY, **expected})
        with pytest.raises(StoreUnavailable, match="broke off"):
            store.get_if_changed("m/a", '"e"') if expected else store.get("m/a")


def test_what_did_not_change_is_not_read(store: S3Store, server: Stubber) -> None:
    server.add_client_error("get_object", service_error_code="304", http_status_code=304)
    assert store.get_if_changed("m/a", '"e"') is None


@pytest.mark.parametrize("name", ["FLEXI_S3_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("url", ["http://ada:hunter2@127.0.0.1:1", "http://ada:hunter2@ 1", "http://127.0.0.1:1/?t=hunter2"])
def test_a_secret_in_an_endpoint_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv(name, url)
    with pytest.raises(InvalidInput) as refused:
        open_s3("s3://bucket/prefix")
    assert "hunter2" not in refused.value.message


def test_a_secret_in_the_registrys_address_is_refused_and_not_repeated() -> None:
    for url in ("s3://key:hunter2@bucket/prefix", "http://ada:hunter2@host/x"):
        with pytest.raises(InvalidInput) as refused:
            open_store(url)
        assert "hunter2" not in refused.value.message


def test_what_a_credential_process_prints_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text("[default]\ncredential_process = sh -c 'echo hunter2 >&2; exit 1'\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    settings = {"AWS_CONFIG_FILE": "config", "AWS_SHARED_CREDENTIALS_FILE": "none"}
    for name, file in settings.items():
        monkeypatch.setenv(name, str(tmp_path / file))
    monkeypatch.setenv("FLEXI_S3_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it has read the settings of another test
    with pytest.raises(StoreUnavailable, match="no credentials came from custom-process") as failed:
        open_s3("s3://bucket/prefix")
    assert "hunter2" not in failed.value.message


@pytest.mark.parametrize("verb", ["list", "folders"])
def test_a_listing_that_breaks_off_is_not_taken_for_a_whole_one(store: S3Store, server: Stubber, verb: str) -> None:
    """As stores say it that know only the first version of the listing: there is more, and no token for it."""
    page = {"IsTruncated": True, "Contents": [{"Key": "some/prefix/m/a"}], "CommonPrefixes": [{"Prefix": "some/prefix/m/"}]}
    server.add_response("list_objects_v2", page | SAID)
    with pytest.raises(StoreUnavailable, match=r"does not speak S3.*NextContinuationToken"):
        list(getattr(store, verb)(""))


@pytest.mark.parametrize("entries", [[], [{"Key": "some/prefix/m/a"}]])
def test_a_listing_without_end_ends(
    store: S3Store, server: Stubber, monkeypatch: pytest.MonkeyPatch, entries: list[dict[str, str]]
) -> None:
    monkeypatch.setattr("registry.stores.s3.BARREN_PAGES", 9)
    for number in range(10 + len(entries)):
        page = {"IsTruncated": True, "NextContinuationToken": str(number), "Contents": entries}
        server.add_response("list_objects_v2", page | SAID)
    with pytest.raises(StoreUnavailable, match="a listing without end"):
        list(store.list("m/"))


def test_a_listing_goes_on_where_it_says_and_leaves_out_what_lies_elsewhere(store: S3Store, server: Stubber) -> None:
    pages = [["some/prefix/m/b", "other/m/x", "some/prefix/m/../y"], [], ["some/prefix/m/a", "some/prefix/n/z"]]
    for number, keys in enumerate(pages):
        more = {"IsTruncated": True, "NextContinuationToken": str(number)} if number < 2 else {"IsTruncated": False}
        server.add_response("list_objects_v2", {"Contents": [{"Key": key} for key in keys], **more, **SAID})
    assert list(store.list("m/")) == ["m/a", "m/b"]


def test_two_writers_in_one_moment_ask_again(store: S3Store, server: Stubber) -> None:
    server.add_client_error("put_object", service_error_code="ConditionalRequestConflict", http_status_code=409)
    server.add_response("put_object", {"ETag": '"new"', **SAID})
    assert store.create("m/a", b"") == '"new"'


def test_asking_again_has_an_end(store: S3Store, server: Stubber) -> None:
    for _ in range(ATTEMPTS_WHEN_BUSY):
        server.add_client_error("put_object", service_error_code="ConditionalRequestConflict", http_status_code=409)
    with pytest.raises(Conflict, match="try again"):
        store.swap("m/a", b"", '"old"')


def test_a_missing_key_cannot_be_swapped_at_aws_either(store: S3Store, server: Stubber) -> None:
    """AWS answers 404 where SeaweedFS answers 412."""
    server.add_client_error("put_object", service_error_code="NoSuchKey", http_status_code=404)
    server.add_client_error("head_object", service_error_code="404", http_status_code=404)
    with pytest.raises(Conflict):
        store.swap("m/a", b"", '"old"')


def test_a_fault_while_asking_who_won_is_no_conflict(store: S3Store, server: Stubber) -> None:
    server.add_client_error("put_object", service_error_code="PreconditionFailed", http_status_code=412)
    server.add_client_error("head_object", service_error_code="500", http_status_code=500)
    with pytest.raises(StoreUnavailable, match="fault of its own"):
        store.create("m/a", b"")


def test_a_store_that_knows_no_conditions_is_refused(store: S3Store, server: Stubber) -> None:
    server.add_client_error("put_object", service_error_code="NotImplemented", http_status_code=501)
    with pytest.raises(Unsupported, match="no conditional writes"):
        refuse_without_conditional_writes(store)


def test_a_store_with_a_fault_is_not_called_unfit(store: S3Store, server: Stubber) -> None:
    server.add_client_error("put_object", service_error_code="InternalError", http_status_code=500)
    with pytest.raises(StoreUnavailable):
        refuse_without_conditional_writes(store)

"""A store may answer anything at all: what comes out is an error of ours, in one line, or what was really said."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import boto3
import pytest
from any_answers import AnyAnswer, AnyServer, any_server, hasty_client
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from registry.errors import FlexiError
from registry.stores.s3 import S3Store, refuse_without_conditional_writes

SECRET, TOKEN = "hunter2hunter2", "session0session0"
LIST = b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>p/m/a</Key></Contents></ListBucketResult>"
ENDLESS = (
    b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>1</NextContinuationToken></ListBucketResult>"
)
BODIES = (
    b"", b"{}", b"<html><body>Sign in</body></html>", b"<!DOCTYPE html><title>502 Bad Gateway</title>", b"null", LIST, ENDLESS,
    b"<Error><Code>InternalError</Code><Message>no</Message></Error>", b"<Error><Code>NoSuchKey</Code></Error>", b"<Error>",
    b"<Error><Code>SlowDown</Code><Message>Please reduce\nyour rate</Message></Error>", b"<Error><Code/><Message/></Error>",
    b"<Error><Code>PreconditionFailed</Code></Error>", b"<Error><Code>ConditionalRequestConflict</Code></Error>",
    b"<Error><Code>NotImplemented</Code><Message>A header you provided implies functionality</Message></Error>",
    b"<EnumerationResults><Blobs><Blob><Name>a</Name></Blob></Blobs></EnumerationResults>", b"\xff\xfe\x00garbage",
    b"<ListBucketResult><Contents><Size>many</Size></Contents><IsTruncated>perhaps</IsTruncated></ListBucketResult>",
    b'<?xml version="1.0"?><ErrorResponse><Error><Code>1</Code></Error><RequestId>r</RequestId></ErrorResponse>',
)  # fmt: skip
HEADERS = (
    ("ETag", '"abc"'), ("ETag", 'W/"abc"'), ("ETag", ""), ("Content-Type", "text/html"), ("Content-Type", "application/xml"),
    ("Location", "https://127.0.0.1:1/elsewhere?X-Amz-Signature=hunter2hunter2"), ("x-amz-bucket-region", "mars-north-1"),
    ("Last-Modified", "yesterday"), ("x-amz-meta-writer", "{writer}"), ("x-amz-meta-writer", "somebody"), ("Retry-After", "x"),
    ("x-amz-checksum-crc32", "AAAAAA=="), ("Content-Range", "bytes 0-1/9"), ("Transfer-Encoding", "chunked"),
    ("Content-Encoding", "gzip"), ("x-amz-expiration", "?"), ("Date", "Thu, 01 Jan 1970 00:00:00 GMT"), ("X-Odd", "ä"),
    ("x-amz-missing-meta", "many"), ("x-amz-error-message", "{token}"),
)  # fmt: skip
STATUSES = (
    200, 200, 200, 200, 201, 202, 204, 206, 300, 301, 302, 304, 307, 308, 400, 401, 403, 404, 405, 409, 411, 412, 413, 416, 418,
    429, 500, 501, 502, 503, 504, 599, 999,
)  # fmt: skip
ANSWERS = st.builds(
    AnyAnswer,
    status=st.sampled_from(STATUSES),
    headers=st.lists(st.sampled_from(HEADERS), max_size=4).map(tuple),
    body=st.sampled_from(BODIES) | st.binary(max_size=40),
    length=st.none() | st.integers(0, 200),
    sent=st.none() | st.none() | st.integers(0, 300),
)
VERBS: dict[str, Callable[[S3Store], object]] = {
    "get": lambda store: store.get("m/a"),
    "get_if_changed": lambda store: store.get_if_changed("m/a", '"e"'),
    "create": lambda store: store.create("m/a", b"written"),
    "swap": lambda store: store.swap("m/a", b"written", '"e"'),
    "delete": lambda store: store.delete("m/a"),
    "list": lambda store: list(store.list("m/")),
    "folders": lambda store: list(store.folders("")),
    "probe": refuse_without_conditional_writes,
}


@pytest.fixture(scope="module")
def server() -> Iterator[AnyServer]:
    with pytest.MonkeyPatch.context() as patch, any_server() as started:
        for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE"):
            patch.delenv(name, raising=False)
        variables = {
            "FLEXI_S3_ENDPOINT": started.endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": TOKEN,
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        yield started


@pytest.fixture(scope="module")
def store(server: AnyServer) -> S3Store:
    return S3Store(hasty_client(), "bucket", "p")


def is_written(server: AnyServer) -> bool:
    """Whether the server has said so as S3 does: an etag and no body, or the writer's own token on the object.

    Of an answer that ends among its headers nobody sees whether there would have been a body.
    """
    (command, last) = server.log[-1]
    etags = [value for name, value in last.headers if name == "ETag"]
    if command == "PUT" and b"\r\n\r\n" not in (seen := last.wire(command, {"writer": "", "token": ""})):
        return last.status == 200 and b"ETag:" in seen
    if command == "PUT":
        return last.status == 200 and bool(etags) and last.length in (None, 0) and not (last.body and last.length is None)
    return command == "HEAD" and last.status == 200 and ("x-amz-meta-writer", "{writer}") in last.headers


@pytest.mark.parametrize("verb", VERBS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=st.lists(ANSWERS, min_size=1, max_size=4))
@example(answers=[AnyAnswer(200, (("ETag", '"e"'),), BODIES[2])])
@example(answers=[AnyAnswer(206, (("ETag", '"e"'),), b"wr")])
@example(answers=[AnyAnswer(200, (), BODIES[15])])
@example(answers=[AnyAnswer(200, (), ENDLESS)])
@example(answers=[AnyAnswer(sent=0)])
@example(answers=[AnyAnswer(200, (("ETag", '"abc"'),), b"{}", sent=26)])
@example(answers=[AnyAnswer(200, (), BODIES[2]), AnyAnswer(200, (("ETag", '"e"'), ("x-amz-meta-writer", "{writer}")))])
@example(
    answers=[
        AnyAnswer(400, (("x-amz-error-message", "{token}"),), b"<Error><Message>token: %s</Message></Error>" % TOKEN.encode())
    ]
)
def test_whatever_a_store_answers_only_our_errors_come_out_and_no_write_is_made_up(
    server: AnyServer, store: S3Store, verb: str, answers: list[AnyAnswer]
) -> None:
    queue = list(answers)
    server.answer, server.log = (lambda command: queue.pop(0) if len(queue) > 1 else queue[0]), []
    result, refusal = None, ""
    try:
        result = VERBS[verb](store)
    except FlexiError as error:
        refusal = error.message
    if refusal:
        assert "\n" not in refusal
        assert SECRET not in refusal
        assert TOKEN not in refusal
        return
    if verb in ("create", "swap"):
        assert result
        assert is_written(server)
    _, last = server.log[-1]
    if verb == "get_if_changed" and result is None:
        assert last.status == 304
    elif verb in ("get", "get_if_changed"):
        assert last.status == 200
        assert last.sent is None or last.sent >= len(last.body)

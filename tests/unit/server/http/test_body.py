"""The body of a request: what comes in, what does not, and what the answer says."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.datastructures import Headers

from registry.errors import FlexiError
from server.errors import ClientGone
from server.http import body
from server.http.openai import ImagesRequest


def read(*chunks, ends=True, path="", forms=False, **headers):
    """What the application reads of a body that comes in these chunks."""
    given = Headers({name.replace("_", "-"): value for name, value in ({"transfer_encoding": "chunked"} | headers).items()})
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False} if ends else {"type": "http.disconnect"})

    async def receive():
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def go():
        again = await body.checked(receive, given, path, forms)
        return await again()

    return asyncio.run(go())


def refused(*chunks, **headers):
    with pytest.raises(FlexiError) as error:
        read(*chunks, **({"content_type": "application/json"} | headers))
    return error.value.status, error.value.code


def test_chunks_become_one_message():
    message = read(b'{"a":', b" 1", b"}", content_type="application/json; charset=utf-8")
    assert message == {"type": "http.request", "body": b'{"a": 1}', "more_body": False}


def test_a_client_that_leaves_in_the_middle():
    with pytest.raises(ClientGone):
        read(b'{"a":', ends=False, content_type="application/json")


@pytest.mark.parametrize(
    "text",
    [
        b"{bad",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        '{"a": "\ud800"}'.encode("utf-8", "surrogatepass"),
        b'{"a": "\xff"}',
        b'\xef\xbb\xbf{"a": 1}',
        b"[" * 30000 + b"]" * 30000,
        b'{"a":' * 9000 + b"1" + b"}" * 9000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\x00",
    ],
    ids=lambda text: str(text[:24]),
)
def test_other_json(text):
    assert refused(text) == (400, "invalid_json")


@pytest.mark.parametrize("kind", ["", "text/plain", "multipart/form-data; boundary=x", "application/vnd.bentoml+pickle"])
def test_other_types(kind):
    assert refused(b"{}", content_type=kind) == (415, "unsupported_media_type")


def test_compressed_bodies():
    assert refused(b"{}", content_encoding="gzip") == (415, "unsupported_media_type")


def test_too_long():
    assert refused(*[b" " * 1024] * (body.MAX_BYTES // 1024 + 1)) == (413, "body_too_large")


def test_only_routes_that_start_from_images_take_long_bodies_and_one_of_them_forms():
    text = json.dumps({"image": "A" * (2 * body.MAX_BYTES)}).encode()
    for path in body.WITH_IMAGES:
        assert read(text, path=path, content_type="application/json")["body"] == text
        assert refused(*[b" " * 2**20] * 22, path=path) == (413, "body_too_large")
    assert refused(text, path="/v1/images/generations") == (413, "body_too_large")
    form = {"content_type": "multipart/form-data; boundary=x"}
    assert read(b"--x--", path=body.EDITS, forms=True, **form)["body"] == b"--x--"
    for path, forms in ((body.EDITS, False), ("/generate", True), ("/v1/images/generations", True)):
        assert refused(b"--x--", path=path, forms=forms, **form) == (415, "unsupported_media_type")


@pytest.mark.parametrize("length", [body.MAX_BYTES + 1, 10**30])
def test_too_long_by_its_own_word(length):
    """Before anything of it is read."""

    async def receive():
        raise AssertionError("the body was read")

    headers = Headers({"content-type": "application/json", "content-length": str(length)})
    with pytest.raises(FlexiError) as error:
        asyncio.run(body.checked(receive, headers))
    assert error.value.status == 413


def test_too_slow(monkeypatch):
    monkeypatch.setattr(body, "SECONDS", 0.05)

    async def receive():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    with pytest.raises(FlexiError) as error:
        asyncio.run(body.checked(receive, Headers({"content-type": "application/json", "transfer-encoding": "chunked"})))
    assert (error.value.status, error.value.code) == (408, "body_too_slow")


@pytest.mark.parametrize("as_ascii", [True, False])
def test_the_longest_request_fits_however_it_is_written(as_ascii):
    """Every field at its longest, in characters that take 4 bytes in UTF-8 and 12 in escapes."""
    face = "\N{GRINNING FACE}"
    longest = {"prompt": face * 4000, "negative_prompt": face * 4000, "user": face * 128, "safety_identifier": face * 128}
    longest |= {"tier": face * 64, "model": face * 128, "size": face * 32}
    body_of = ImagesRequest.model_validate(longest).model_dump(exclude_none=True)
    assert len(json.dumps(body_of, indent=8, ensure_ascii=as_ascii).encode()) < body.MAX_BYTES

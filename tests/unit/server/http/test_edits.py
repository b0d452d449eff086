"""Forms of OpenAI's image edits that cannot be read: each is the client's fault, and said so."""

from __future__ import annotations

import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from registry.errors import FlexiError
from server.errors import problem
from server.http.edits import edits_request

FIELD = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.add_exception_handler(FlexiError, lambda _, error: problem(error))

    @app.post("/")
    async def edits(request: Request) -> str:
        return (await edits_request(request)).prompt

    return TestClient(app, raise_server_exceptions=False)


def form(*fields: tuple[bytes, bytes]) -> bytes:
    return b"".join(FIELD % field for field in fields) + b"--x--\r\n"


@pytest.mark.parametrize(
    ("charset", "body", "said"),
    [
        ("utf-8", b"--y", "multipart"),
        ("utf-8", FIELD.replace(b'; name="%s"', b"") % b"cat" + b"--x--\r\n", "name"),
        ("utf-8", form(*((b"a", b"b"),) * 65), "64"),
        ("idna", form((b"prompt", b"xn--zzzz")), "idna"),
        ("punycode", form((b"prompt", b"\\x")), "punycode"),
        ("undefined", form((b"prompt", b"cat")), "undefined"),
    ],
)
def test_a_form_that_cannot_be_read_is_refused_and_why(client: TestClient, charset: str, body: bytes, said: str) -> None:
    headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    answer = client.post("/", content=body, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_input", "body")
    assert said in error["message"]


def test_a_form_of_another_charset_is_read(client: TestClient) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x; charset=latin-1"}
    answer = client.post("/", content=form((b"prompt", b"caf\xe9"), (b"image", b"AA==")), headers=headers)
    assert (answer.status_code, answer.json()) == (200, "café")

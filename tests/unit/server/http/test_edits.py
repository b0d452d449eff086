"""Forms of OpenAI's image edits that cannot be read: each is the client's fault, and said so."""

from __future__ import annotations

import json

import jsonschema_rs
import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from registry.errors import FlexiError
from server.errors import problem
from server.http.edits import EditsRequest, edits_request, form_schema

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


@pytest.mark.parametrize("name", [b"loras[][name]", b"loras[0][scale]", b"loras[]"])
def test_loras_in_brackets_are_refused_with_what_a_form_takes(client: TestClient, name: bytes) -> None:
    body = form((b"prompt", b"cat"), (b"image", b"AA=="), (name, b"grey"))
    answer = client.post("/", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "loras")
    assert error["message"].startswith("loras: in a form it is one text field with JSON, such as [{")


def test_the_schema_of_the_form_has_every_field_that_a_form_may_have(client: TestClient) -> None:
    schema = form_schema(EditsRequest.published_schema())
    jsonschema_rs.meta.validate(schema)
    fields = schema["properties"]
    assert (fields.keys(), schema["required"]) == (EditsRequest.model_fields.keys(), ["prompt", "image"])
    assert all(of["description"] and None not in of.get("enum", []) for of in fields.values())
    assert [name for name, of in fields.items() if of.get("format") == "binary"] == ["image", "mask"]
    assert (fields["n"]["type"], fields["stream"]["type"], fields["strength"]["maximum"]) == ("integer", "boolean", 1)
    (example,) = fields["loras"]["contentSchema"]["examples"]
    texts = {
        "prompt": "cat",
        "image": "AA==",
        "n": "2",
        "seed": "7",
        "stream": "true",
        "strength": "0.5",
        "loras": json.dumps(example),
    }
    body = form(*((name.encode(), text.encode()) for name, text in texts.items()))
    assert client.post("/", content=body, headers={"content-type": "multipart/form-data; boundary=x"}).json() == "cat"


def test_a_form_of_another_charset_is_read(client: TestClient) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x; charset=latin-1"}
    answer = client.post("/", content=form((b"prompt", b"caf\xe9"), (b"image", b"AA==")), headers=headers)
    assert (answer.status_code, answer.json()) == (200, "café")

"""The pages' files as browsers get them, and what they may load."""

import gzip
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from registry.errors import FlexiError
from registry.site import ASSETS
from server.errors import problem
from server.http.pages.assets import assets_in
from server.http.pages.routes import FOLDER, HERE, PAGES, is_page, no_pages, pages

SERVED = assets_in(ASSETS, HERE / "assets")


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_exception_handler(FlexiError, lambda _, error: problem(error))
    app.include_router(pages())
    return TestClient(app)


@pytest.mark.parametrize("path", [*PAGES, *(FOLDER + name for name in SERVED)])
def test_nothing_from_elsewhere_and_nothing_inline_may_run(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert set(answer.headers["content-security-policy"].split("; ")) == {
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    }
    assert (answer.headers["x-content-type-options"], answer.headers["referrer-policy"]) == ("nosniff", "no-referrer")


@pytest.mark.parametrize("path", PAGES)
def test_all_that_a_page_and_its_scripts_name_is_there(client: TestClient, path: str) -> None:
    text = client.get(path).text
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", text)
    waiting, seen = set(re.findall(r'(?:src|href)="(assets/[^"]+)"', text)), set[str]()
    assert waiting
    while waiting:
        name = waiting.pop().removeprefix("assets/")
        seen.add(name)
        if name.endswith(".js"):
            imported = re.findall(r"""(?:from\s*|import\(?)["'](\.[^"']+)["']""", SERVED[name].content.decode())
            named = {(Path("/") / name).parent.joinpath(one).as_posix() for one in imported}
            waiting |= {re.sub(r"/(\./)+|/[^/]+/\.\./", "/", one).lstrip("/") for one in named} - seen
        assert name in SERVED


@pytest.mark.parametrize(
    ("name", "media_type"), [("base.css", "text/css"), ("ui.js", "text/javascript"), ("icon.svg", "image/svg+xml")]
)
def test_a_file_has_its_type_and_comes_zipped_where_that_is_taken(client: TestClient, name: str, media_type: str) -> None:
    plain = client.get(FOLDER + name, headers={"accept-encoding": "identity"})
    zipped = client.get(FOLDER + name, headers={"accept-encoding": "br;q=1, gzip;q=0.5"})
    assert plain.headers["content-type"].partition(";")[0] == media_type
    assert plain.content == zipped.content == (ASSETS / name).read_bytes()
    assert ("content-encoding" in plain.headers, zipped.headers["content-encoding"]) == (False, "gzip")
    assert plain.headers["vary"] == zipped.headers["vary"] == "Accept-Encoding"


def test_a_browser_that_has_a_file_is_not_sent_it_again(client: TestClient) -> None:
    first = client.get("/")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/", headers={"if-none-match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/", headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("accepted", "zipped"),
    [("gzip", True), ("GZIP;q=0.001", True), ("*", True), ("*;q=0", False), ("br", False), ("", False), ("gzip;q=0", False),
     ("gzip; q=0.0, *", False), ("gzip, *;q=0", True)],
)  # fmt: skip
def test_gzip_is_for_who_takes_it(client: TestClient, accepted: str, zipped: bool) -> None:
    answer = client.get(FOLDER + "ui.js", headers={"accept-encoding": accepted})
    assert ("content-encoding" in answer.headers) == zipped
    assert answer.headers["etag"].startswith('W/"'), "a strong one would be of these bytes alone"


@pytest.mark.parametrize(
    "path", ["vendor/README.md", "vendor/preact.d.ts", "%2e%2e/playground.html", "%2e%2e/routes.py", "nope.js"]
)
def test_what_is_no_asset_is_not_found(client: TestClient, path: str) -> None:
    answer = client.get(FOLDER + path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_no_two_folders_have_a_file_of_one_name() -> None:
    assert len(SERVED) == len(assets_in(ASSETS)) + len(assets_in(HERE / "assets"))


def test_all_pages_with_all_that_they_load_are_small() -> None:
    files = [asset.content for asset in SERVED.values()] + [path.read_bytes() for path in HERE.glob("*.html")]
    assert sum(len(gzip.compress(content)) for content in files) < 300_000


@pytest.mark.parametrize("path", ["/generate", "/v1/tiers", "/docs.json", "/metrics", "/assets", "/asset/x"])
def test_only_pages_are_public(path: str) -> None:
    assert not is_page(path)


def test_a_server_without_pages_shows_its_document() -> None:
    app = FastAPI(openapi_url=None)
    app.include_router(no_pages())
    client = TestClient(app, follow_redirects=False)
    assert client.get("/").headers["location"] == "/docs.json"
    assert client.get("/assets/ui.js").status_code == 404

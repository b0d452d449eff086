"""The static site: what it holds, what it leaves alone, and that it is replaced in one go."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections import Counter
from datetime import UTC, datetime

import pytest
from memory_store import MemoryStore
from schedule_strategies import MODEL, schedule
from typer.testing import CliRunner

from registry.__main__ import app
from registry.catalog import Catalog
from registry.diff import Difference
from registry.errors import InvalidInput, StoreUnavailable
from registry.experiments.candidates import CandidateCatalog, candidate_of
from registry.schedule import Cost, Fidelity
from registry.site import ASSETS
from registry.site.export import ENTRY, PAGE, REPORTS, Site
from registry.site.modules import import_map, name_of
from registry.stores.address import open_store

NOW = datetime(2026, 11, 28, tzinfo=UTC)
SPITEFUL = "</script><script>alert(1)</script><!--"
FIRST = schedule(5, cost=Cost(macs=5, rows=1, relative=0.5), fidelity=Fidelity(rfid=2, psnr=20, images=4))
SECOND = schedule(cost=Cost(macs=3, rows=1, relative=0.3), fidelity=Fidelity(rfid=4, psnr=20, images=4))


@pytest.fixture
def catalog():
    catalog = Catalog(MemoryStore(), MODEL.name, author="ada")
    for one in (FIRST, SECOND):
        catalog.publish(one, SPITEFUL)
    catalog.promote("balanced", FIRST.digest, SPITEFUL)
    return catalog


def site(*catalogs):
    made = Site("memory", NOW)
    for catalog in catalogs:
        made.add_model(catalog, 10)
    return made


def documents(page: str):
    (text,) = re.findall(r'<script type="application/json" id="documents">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_it_holds_what_a_server_would_answer(catalog, tmp_path):
    page = site(catalog).write(tmp_path / "out").read_text()
    held = documents(page)["models"][MODEL.name]
    assert [version["version"] for version in held["front"]["versions"]] == [2, 1]
    assert held["tiers"]["tiers"][0]["history"][0]["reason"] == SPITEFUL
    for one in (FIRST, SECOND):
        assert held[f"schedules/{one.digest}"]["document"]["segments"]
    compared = held[f"schedules/{FIRST.digest}/difference?to={SECOND.digest}"]
    assert compared["steps"] == Difference(FIRST, SECOND).steps
    assert [path for path in held if path.startswith(f"schedules/{SECOND.digest}/")] == [], "of tiers only"


def test_a_tiers_candidate_is_held_with_its_schedule_however_old(catalog):
    until = datetime(2999, 1, 1, tzinfo=UTC)
    CandidateCatalog(catalog.store, MODEL.name).start(candidate_of(catalog, "balanced", SECOND.digest, 0.1, until))
    catalog.publish(schedule(3))
    made = Site("memory", NOW)
    made.add_model(catalog, 1)
    held = made._models[MODEL.name]
    assert held["tiers"]["tiers"][0]["candidate"]["status"] == "running"
    assert f"schedules/{SECOND.digest}" in held


def test_what_people_wrote_ends_no_script(catalog, tmp_path):
    page = site(catalog).write(tmp_path / "out").read_text()
    assert SPITEFUL not in page
    assert page.count("</script>") == 3
    assert documents(page)["models"][MODEL.name]["front"]["versions"][0]["note"] == SPITEFUL


def test_the_page_needs_nothing_beside_itself(catalog, tmp_path):
    page = site(catalog).write(tmp_path / "out").read_text()
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.split('id="documents"')[0])
    assert {address.partition(":")[0] for address in loaded if not address.startswith("#")} == {"data"}
    assert not re.search(r"@import|url\(", page.split("</style>")[0])


def test_each_module_is_what_it_was_and_imports_only_others_of_the_map():
    urls = import_map(ENTRY)
    assert {name_of(ENTRY), name_of("ui.js"), name_of("vendor/preact.js")} <= urls.keys()
    for name, url in urls.items():
        text = b64decode(url.removeprefix("data:text/javascript;base64,")).decode()
        imported = re.findall(r'^(?:import|export|\}) .*?from "([^"]+)"|^import\{[^}]*\}from "([^"]+)"', text, re.MULTILINE)
        assert {one or other for one, other in imported} <= urls.keys()
        assert not re.findall(r'from\s*"\.', text)
        whole = (ASSETS / name.removeprefix("flexi/")).read_text()
        assert len(re.findall(r'from\s*"', text)) == len(re.findall(r'from\s*"', whole))


def test_an_older_site_is_replaced_and_its_reports_go(catalog, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "report.html").write_text("<h1>a search</h1>")
    first = site(catalog)
    first.add_run(run)
    first.write(tmp_path / "out")
    (report,) = (tmp_path / "out" / REPORTS).iterdir()
    assert report.read_text() == "<h1>a search</h1>"
    said = documents((tmp_path / "out" / PAGE).read_text())["reports"]
    assert (tmp_path / "out" / said[0]["href"]) == report
    (tmp_path / "out" / REPORTS / "mine.txt").write_text("kept")
    site().write(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / REPORTS).iterdir()] == ["mine.txt"]
    assert documents((tmp_path / "out" / PAGE).read_text())["models"] == {}


def test_reports_beside_schedules_are_copied_once(catalog, tmp_path):
    for one in (FIRST, SECOND):
        catalog.attach(one.digest, "report.html", b"<h1>the same search</h1>")
    site(catalog).write(tmp_path / "out")
    assert [path.read_bytes() for path in (tmp_path / "out" / REPORTS).iterdir()] == [b"<h1>the same search</h1>"]


@pytest.mark.parametrize("name", ["index.html", "thesis.txt"])
def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(InvalidInput, match="something else than a site"):
        site().write(out)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, "mine")]


def test_a_disk_that_takes_nothing_leaves_the_old_page(catalog, tmp_path, monkeypatch):
    out = tmp_path / "out"
    before = site(catalog).write(out).read_bytes()

    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("registry.site.export.replace_file", full)
    with pytest.raises(StoreUnavailable, match="No space left"):
        site().write(out)
    assert (out / PAGE).read_bytes() == before


def test_the_command_makes_it_of_all_models_and_says_where(tmp_path):
    store = open_store(str(tmp_path / "registry"))
    Catalog(store, MODEL.name).publish(FIRST)
    done = CliRunner().invoke(app, ["site", str(tmp_path / "out"), "--registry", str(tmp_path / "registry")])
    assert (done.exit_code, done.output.strip()) == (0, str(tmp_path / "out" / PAGE)), done.output
    assert list(documents((tmp_path / "out" / PAGE).read_text())["models"]) == [MODEL.name]
    done = CliRunner().invoke(
        app, ["site", str(tmp_path / "out"), "--run", str(tmp_path), "--registry", str(tmp_path / "registry")]
    )
    assert done.exit_code == 1
    assert "report.html" in done.output


def test_each_document_is_read_once_however_many_it_is_compared_with() -> None:
    """Beside the newest reading of each that the schedule's own page makes."""
    store, read = MemoryStore(), Counter[str]()
    catalog = Catalog(store, MODEL.name, author="ada")
    for count in range(3, 9):
        catalog.publish(schedule(count))
        catalog.promote(f"tier{count}", catalog.versions(1)[0].digest)
    get = store.get
    store.get = lambda key: (read.update([key]), get(key))[1]
    site(catalog)
    documents_read = [count for key, count in read.items() if "/schedules/" in key]
    assert len(documents_read) == 6
    assert max(documents_read) == 2

"""The console at `/console`, as operators use it: in Chromium, against a real service whose tiers and traffic really move."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_keys import keys
from browser import NARROW, WIDE, overflow, violations, violations_everywhere, visiting
from playwright.sync_api import Browser, Page, expect
from served import PATIENCE, SETTINGS, publish
from typer.testing import CliRunner

from examples.launch import serving
from registry.__main__ import app as registry_app
from registry.audit_trail import audited_moves
from registry.catalog import Catalog
from registry.experiments.candidates import CandidateCatalog, candidate_of
from registry.experiments.catalog import ExperimentCatalog
from registry.experiments.declaration import Experiment
from registry.schedule import Cost, Fidelity, Schedule
from registry.stores.address import open_store
from server.experiments.events import pair_stream

KEYLESS = (401,)  # what a console without a key is answered first
MEASURED = {"draft": (0.1, 9.0), "fast": (0.2, 5.0), "balanced": (0.4, 3.0), "best": (0.6, 1.0)}


@dataclass
class Guarded:
    """A server with keys, and a registry whose schedules say what they cost and are worth."""

    address: str
    registry: Path
    catalog: Catalog
    schedules: dict[str, Schedule]
    olga: str
    shop: str

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        headers = {"X-API-Key": self.shop}
        sent = {"json": body} if body else {}
        reply = httpx.request("POST" if body else "GET", self.address + path, headers=headers, timeout=120, **sent)
        return reply.raise_for_status().json()

    def until(self, holds: Any, otherwise: str) -> None:
        end = time.monotonic() + 90
        while not holds():
            assert time.monotonic() < end, otherwise
            time.sleep(0.1)

    def enter(self, page: Page) -> None:
        page.goto(f"{self.address}/console")
        page.get_by_label("Operator’s key").fill(self.olga)
        page.get_by_role("button", name="Open").click()
        page.get_by_text("acting as olga").wait_for()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("console")
    registry, file = folder / "registry", folder / "keys.json"
    schedules = publish(open_store(str(registry)))
    catalog = Catalog(open_store(str(registry)), "emoji64", author="ada")
    for tier, (relative, rfid) in MEASURED.items():  # the same schedules with another description would be the old ones
        said = {"cost": Cost(macs=int(1e9 * relative), rows=2, relative=relative)}
        said |= {"fidelity": Fidelity(rfid=rfid, psnr=20, images=64), "provenance": {"job": "by hand"}}
        described = schedules[tier].model_copy(update=said)
        solver = described.solver.model_copy(update={"spacing": "leading"})
        schedules[f"{tier}-measured"] = described.model_copy(update={"solver": solver})
        catalog.publish(schedules[f"{tier}-measured"], f"measured {tier}")
        catalog.promote(tier, schedules[f"{tier}-measured"].digest, "measured")
    olga, shop = keys("new", "olga", "--role", "operator", "--file", file), keys("new", "shop", "--file", file)
    settings = {"FLEXI_REGISTRY": str(registry), "FLEXI_STATE": str(folder / "state"), "FLEXI_API_KEYS": str(file)}
    with serving(SETTINGS | settings, folder / "server.log", patience=PATIENCE) as address:
        yield Guarded(address, registry, catalog, schedules, olga, shop)


@pytest.fixture
def page(chromium: Browser, guarded: Guarded) -> Iterator[Page]:
    """An operator's, inside."""
    with visiting(chromium, guarded.address, (*KEYLESS, 409), viewport=WIDE) as page:
        guarded.enter(page)
        yield page


def tier(page: Page, name: str) -> Any:
    return page.get_by_role("article", name=f"Tier {name}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", [WIDE, NARROW], ids=["wide", "narrow"])
def test_without_keys_it_is_there_for_everybody_and_read_only(chromium, server, window, scheme):
    with visiting(chromium, server.address, viewport=window, color_scheme=scheme) as page:
        page.goto(f"{server.address}/console")
        page.get_by_text("python -m server.access new NAME --role operator").wait_for()
        tier(page, "balanced").wait_for()
        page.get_by_text("No version shown has both").wait_for()
        page.get_by_role("region", name="All versions").wait_for()
        page.get_by_text("Asking …").wait_for(state="detached")
        assert page.get_by_role("button", name="Promote").count() == page.get_by_role("button", name="Roll back").count() == 0
        assert violations(page) == []
        assert overflow(page) <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_with_keys_it_opens_to_an_operators_only(chromium, guarded, scheme):
    with visiting(chromium, guarded.address, (401, 403), viewport=NARROW, color_scheme=scheme) as page:
        page.goto(f"{guarded.address}/console")
        for key, said in (("wrong", "give a valid API key"), (guarded.shop, "the key shop does not have the role operator")):
            page.get_by_label("Operator’s key").fill(key)
            page.get_by_role("button", name="Open").click()
            expect(page.get_by_role("alert")).to_contain_text(said)
        assert violations(page) == []
        guarded.enter(page)
        tier(page, "draft").wait_for()
        assert violations(page) == []
        assert overflow(page) <= 0
        page.reload()
        page.get_by_text("acting as olga").wait_for()
        page.get_by_role("button", name="Forget the key").click()
        page.get_by_label("Operator’s key").wait_for()


def test_a_tier_is_promoted_and_rolled_back_in_the_page_and_the_alias_really_moves(guarded, page):
    before, target = guarded.catalog.alias("fast"), guarded.schedules["draft-measured"].digest
    version = guarded.catalog.version_log.of(target).number
    tier(page, "fast").get_by_role("button", name="Promote …").click()
    dialog = page.get_by_role("dialog", name="Promote fast")
    do = dialog.get_by_role("button", name="Promote", exact=True)
    expect(do).to_be_disabled()
    dialog.get_by_label("To", exact=True).select_option(str(version))
    dialog.get_by_text("steps differ").wait_for()
    expect(dialog.get_by_role("row", name="rFID")).to_contain_text("+4 (+80.0 %)")
    do = dialog.get_by_role("button", name=f"Let fast mean version {version}")
    expect(do).to_be_disabled()
    dialog.get_by_label("Reason").fill("half the cost is worth it")
    assert violations_everywhere(page) == []
    do.click()
    dialog.wait_for(state="detached")
    expect(tier(page, "fast").get_by_role("button", name="Promote …")).to_be_focused()
    moved = guarded.catalog.alias("fast")
    assert (moved.digest, moved.moves) == (target, before.moves + 1)
    newest = audited_moves(guarded.catalog, "fast")[-1].audit
    assert (newest.author, newest.reason, newest.action) == ("olga", "half the cost is worth it", "promote")
    guarded.until(lambda: served(guarded, "fast") == target, "the server does not follow")
    expect(tier(page, "fast")).to_contain_text(f"version {version}")

    tier(page, "fast").get_by_role("button", name="Roll back …").click()
    dialog = page.get_by_role("dialog", name="Roll back fast")
    dialog.get_by_text("steps differ").wait_for()
    dialog.get_by_label("Reason").fill("it was not")
    dialog.get_by_role("button", name=f"Let fast mean version {before.version} again").click()
    dialog.wait_for(state="detached")
    assert guarded.catalog.alias("fast").digest == before.digest
    guarded.until(lambda: served(guarded, "fast") == before.digest, "the server does not follow")
    tier(page, "fast").get_by_text("History", exact=True).click()
    expect(tier(page, "fast").get_by_role("listitem").first).to_contain_text("rolled back")


def served(guarded: Guarded, name: str) -> str:
    return next(one["digest"] for one in guarded.ask("/v1/tiers")["tiers"] if one["tier"] == name)


def test_who_confirms_what_is_not_so_any_more_is_told_and_may_look_again(guarded, page):
    tier(page, "best").get_by_role("button", name="Roll back …").click()
    dialog = page.get_by_role("dialog", name="Roll back best")
    dialog.get_by_text("now: version").wait_for()
    guarded.catalog.promote("best", guarded.schedules["balanced-measured"].digest, "meanwhile")
    before = guarded.catalog.alias("best")
    dialog.get_by_label("Reason").fill("a drill")
    confirm = dialog.get_by_role("button", name="Let best mean version")
    confirm.click()
    expect(dialog.get_by_role("alert")).to_contain_text("by ada")
    expect(confirm).to_be_disabled()
    assert guarded.catalog.alias("best") == before
    dialog.get_by_role("button", name="Show the current state").click()
    expect(confirm).to_be_enabled()
    expect(dialog).to_contain_text(f"now: version {before.version}")
    confirm.click()
    dialog.wait_for(state="detached")
    assert guarded.catalog.alias("best").digest == guarded.schedules["best-measured"].digest


def test_a_question_that_is_open_stays_what_it_was_while_the_page_goes_on(guarded, page):
    was = guarded.catalog.alias("balanced")
    tier(page, "balanced").get_by_role("button", name="Promote …").click()
    dialog = page.get_by_role("dialog", name="Promote balanced")
    dialog.get_by_label("To", exact=True).select_option(
        str(guarded.catalog.version_log.of(guarded.schedules["fast"].digest).number)
    )
    dialog.get_by_text("steps differ").wait_for()
    dialog.get_by_label("Reason").fill("it is cheaper")
    guarded.catalog.promote("balanced", guarded.schedules["best-measured"].digest, "meanwhile")
    now = guarded.catalog.alias("balanced")
    expect(page.locator("article.tier", has_text="balanced").locator(".figures")).to_contain_text(now.digest[:8])
    expect(dialog).to_contain_text(f"now: version {was.version},")
    confirm = dialog.get_by_role("button", name="Let balanced mean version")
    confirm.click()
    expect(dialog.get_by_role("alert")).to_contain_text("meanwhile")
    expect(confirm).to_be_disabled()
    assert guarded.catalog.alias("balanced") == now
    dialog.get_by_role("button", name="Show the current state").click()
    expect(dialog).to_contain_text(f"now: version {now.version},")
    expect(confirm).to_be_enabled()
    expect(dialog.get_by_label("Reason")).to_have_value("it is cheaper")


def test_a_candidate_is_made_for_nobodys_eyes_and_shown_beside_its_tier(guarded, chromium):
    candidates, candidate = CandidateCatalog(guarded.catalog.store, "emoji64"), guarded.schedules["draft"]
    active = guarded.catalog.alias("best")
    guarded.until(lambda: served(guarded, "best") == active.digest, "the server does not follow")
    candidates.start(candidate_of(guarded.catalog, "best", candidate.digest, 1.0, datetime(2999, 1, 1, tzinfo=UTC)), "cheap")
    info = f'flexi_candidate_info{{digest="{candidate.digest}"'
    guarded.until(lambda: info in httpx.get(f"{guarded.address}/metrics").text, "the server does not follow the candidate")
    answer = guarded.ask("/generate", prompt="red heart", tier="best", seed=1)
    assert answer["schedule"] == active.digest
    stored = f"emoji64/{pair_stream('best')}/"
    guarded.until(lambda: list(guarded.catalog.store.list(stored)), "no pair is recorded")
    assert {one["digest"] for one in guarded.ask("/v1/tiers")["tiers"]}.isdisjoint({candidate.digest})
    with visiting(chromium, guarded.address, KEYLESS, viewport=WIDE) as page:
        guarded.enter(page)
        shown = page.get_by_role("region", name="Candidate of best", exact=True)
        expect(shown).to_contain_text("running")
        expect(shown).to_contain_text("100 % of the images")
        expect(shown).to_contain_text("1 pair")
        expect(shown).to_contain_text("of 1 request")
        expect(shown.get_by_role("row", name="MACs of an image")).to_contain_text("too few yet")
        assert violations(page) == []
        assert overflow(page) <= 0
        candidates.stop("best")
        expect(shown).to_contain_text("stopped")


def test_an_experiment_is_killed_in_the_page_and_traffic_really_moves(guarded, page):
    arms = {"control": "draft-measured", "other": "fast-measured"}
    document = {
        "name": "drill",
        "version": 1,
        "hypothesis": "other may become draft",
        "tier": "draft",
        "arms": [{"name": arm, "digest": guarded.schedules[name].digest, "weight": 1} for arm, name in arms.items()],
        "control": "control",
        "salt": "drill",
        "ramp": [{"share": 50, "minutes": 60}, {"share": 100}],
        "primary": {"metric": "service_seconds", "minimal_effect": 0.05},
        "guardrails": [{"metric": "errors", "compare": "difference", "limit": 0.1}],
        "maximum_units": 1000,
        "end": "2099-01-01T00:00:00Z",
    }
    experiments = ExperimentCatalog(guarded.catalog.store, "emoji64")
    experiments.declare(Experiment.model_validate(document))
    experiments.act("drill", "start")
    page.reload()
    card = page.get_by_role("article", name="Experiment drill")
    card.get_by_text("Keep collecting").wait_for()
    expect(card).to_contain_text("of 60 minutes at 50 %")

    card.get_by_role("button", name="Stop …").click()
    dialog = page.get_by_role("dialog", name="Stop drill")
    dialog.get_by_label("Reason").fill("a drill")
    experiments.act("drill", "pause", "meanwhile")
    expect(page.locator("article.experiment .chip")).to_have_text("paused")
    expect(dialog).to_contain_text("It is running at 50 %")
    dialog.get_by_role("button", name="Stop it").click()
    expect(dialog.get_by_role("alert")).to_contain_text("meanwhile")
    dialog.get_by_role("button", name="Show the current state").click()
    expect(dialog).to_contain_text("It is paused")
    dialog.get_by_role("button", name="Cancel").click()
    experiments.act("drill", "start")

    card.get_by_role("button", name="Ramp …").click()
    dialog = page.get_by_role("dialog", name="Ramp drill")
    dialog.get_by_label("Reason").fill("a drill")
    raise_it = dialog.get_by_role("button", name="Raise the share to 100 %")
    expect(raise_it).to_be_disabled()
    dialog.get_by_label("Go on all the same").check()
    raise_it.click()
    dialog.wait_for(state="detached")
    assert (experiments.state("drill").stage, experiments.state("drill").history[-1].author) == (1, "olga")

    def arm() -> str | None:
        return guarded.ask("/generate", prompt="red heart", tier="draft", seed=1, unit="u1")["arm"]

    guarded.until(arm, "it does not split traffic")
    card.get_by_role("button", name="Kill …").click()
    dialog = page.get_by_role("dialog", name="Kill drill")
    dialog.get_by_label("Reason").fill("enough")
    assert violations_everywhere(page) == []
    dialog.get_by_role("button", name="Kill it").click()
    dialog.wait_for(state="detached")
    assert (experiments.state("drill").status, experiments.state("drill").history[-1].reason) == ("killed", "enough")
    guarded.until(lambda: arm() is None, "it was killed and splits traffic")
    expect(card).to_contain_text("killed")
    expect(card.get_by_role("button", name="Kill …")).to_have_count(0)


def test_a_guardrail_has_tripped_only_where_it_ended_the_version_that_is_shown(page):
    draw = """async () => {
      const {html, render} = await import("/assets/ui.js");
      const {Experiments} = await import("/assets/console/experiments.js");
      const time = "2026-11-01T00:00:00Z";
      const evidence = {metric: "macs", compare: "ratio", limit: 1.2, arm: "cheap", seen: 1.31};
      const entry = (version, action, status, more) => ({version, action, status, time, author: "ada", reason: "", ...more});
      const ended = [entry(1, "roll_back", "rolled_back", {evidence}), entry(1, "start", "running")];
      const anew = [entry(2, "ramp", "running", {evidence: {automatic: true}}), entry(2, "start", "running"), ...ended];
      const arms = ["control", "cheap", "cheaper"].map((name) => ({name, digest: "0".repeat(64), weight: 1}));
      const guardrails = [["ratio", 1.2], ["difference", 1e9]].map(([compare, limit]) => ({metric: "macs", compare, limit}));
      const primary = {metric: "macs"}, ramp = [{share: 50}];
      const declaration = {hypothesis: "", tier: "best", arms, control: "control", ramp, primary, guardrails, end: time};
      const experiments = [["ended", ended], ["anew", anew]].map(([name, history]) =>
        ({name, history, declaration, status: history[0].status, version: history[0].version, stage: 0, share: 50}));
      const comparisons = [["cheap", 1.25], ["cheaper", 0.8]].map(([arm, estimate]) =>
        ({metric: "macs", arm, value: 1, control: 1, ratio: {estimate, low: 0.5, high: 1.5}, difference: null}));
      const report = {arms, comparisons, verdict: {outcome: "collecting", reason: ""}};
      const get = async () => ({report, course: [], by_ratio: true, gate: null, events: 0, damaged: [], time});
      const place = document.body.appendChild(document.createElement("div"));
      const shown = {experiments, faults: []};
      render(html`<${Experiments} experiments=${shown} source=${{live: true, get}} query="" mayAct=${false} />`, place);
    }"""
    page.evaluate(draw)
    page.get_by_role("article", name="Experiment ended").get_by_text("Arms, guardrails and report").click()
    ended, anew = (page.get_by_role("list", name=f"Guardrails of {name}").get_by_role("listitem") for name in ("ended", "anew"))
    expect(ended).to_have_class(["bad", ""])
    expect(ended.first).to_contain_text("tripped at 1.31")
    expect(anew).to_have_class(["", ""])
    expect(anew.first).to_contain_text("(now cheap: ×1.250 [×0.500, ×1.500]; cheaper: ×0.800 [×0.500, ×1.500])")
    expect(anew.first).not_to_contain_text("tripped")


def test_a_repeat_is_an_answer_too(page):
    draw = """async () => {
      const {html, render} = await import("/assets/ui.js"), {LiveView} = await import("/assets/console/live.js");
      const steps = {full: 0, partial: 0, null: 0}, latency = {count: 0, sum: 0, bounds: [], counts: []};
      let time = 0; // at each look a second later, with two answers more, and a refusal
      const get = async () => {
        time += 1;
        const requests = {ok: time, repeat: time, rejected: time};
        const tiers = [{tier: "best", requests, latency, images: 0, macs: 0, teacher_macs: 0, steps}];
        const models = [{model: "emoji64", state: "loaded", queue_images: 0, inflight_images: 0, waves: [], tiers}];
        return {time, of: "this process", queue_seconds: 0, background_seconds: 0, refused: {}, jobs: {}, models};
      };
      const place = document.body.appendChild(document.createElement("div"));
      place.id = "repeats";
      render(html`<${LiveView} source=${{get}} />`, place);
    }"""
    page.evaluate(draw)
    expect(page.locator("#repeats .tile", has_text="answers")).to_contain_text("2.0 /s")


def test_what_the_server_does_is_shown_as_it_does_it(guarded, page):
    for name in ("draft", "reference"):
        guarded.ask("/generate", prompt="red heart", tier=name, seed=1)
    late = {"prompt": "red heart", "tier": "reference", "deadline_ms": 1}
    assert httpx.post(f"{guarded.address}/generate", json=late, headers={"X-API-Key": guarded.shop}).status_code == 504
    table = page.get_by_role("region", name="Tiers of emoji64 now")
    table.wait_for()
    expect(table.get_by_role("row", name="reference")).to_contain_text("0 %")
    assert table.get_by_role("columnheader").all_inner_texts()[1:4] == ["requests", "errors", "not done"]
    late = table.locator("tr", has=page.locator("td[title$=', 1 past their deadline']"))
    expect(late.get_by_role("cell").nth(1)).to_have_text("0")  # a client's own limit is no error of the server
    expect(late.get_by_role("cell").nth(2)).to_have_text("1")
    expect(page.get_by_role("region", name="Now", exact=True)).to_contain_text("of this server")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Go on").wait_for()


def test_the_front_shows_what_it_is_pointed_at_and_opens_it(guarded, page):
    plot = page.locator(".plot .u-over")
    plot.wait_for()
    box = plot.bounding_box()
    for x in range(0, int(box["width"]), 6):  # the cheapest on the front lies in the upper half
        page.mouse.move(box["x"] + x, box["y"] + 4)
        if page.locator(".pointed").count():
            break
    expect(page.locator(".pointed")).to_contain_text("draft")
    assert page.locator(".pointed .strip i").count() == 10
    page.mouse.down()
    page.mouse.up()
    digest = guarded.schedules["draft-measured"].digest
    dialog = page.get_by_role("dialog", name=f"Schedule {digest[:8]}")
    dialog.get_by_text(digest).first.wait_for()
    dialog.get_by_text("Provenance", exact=True).click()
    expect(dialog).to_contain_text("by hand")
    dialog.get_by_label("Compare with").select_option(guarded.schedules["best-measured"].digest)
    dialog.get_by_text("steps differ").wait_for()
    assert violations_everywhere(page) == []
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")


def test_each_arm_but_control_has_its_interval_over_time(page):
    draw = """async () => {
      const {html, render} = await import("/assets/ui.js"), {Course} = await import("/assets/console/course.js");
      const arms = ["control", "cheap", "cheaper", "new"].map((name) => ({name}));
      const experiment = {declaration: {primary: {metric: "macs"}, arms, control: "control"}};
      const effect = (estimate) => ({estimate, low: estimate - 0.1, high: estimate + 0.1});
      const course = [["cheap", 0.8], ["cheaper", 0.6]].flatMap(([arm, estimate]) =>
        [1, 2].map((day) => ({time: `2026-11-0${day}T00:00:00Z`, arm, units: 200 * day, effect: effect(estimate)})));
      const place = document.body.appendChild(document.createElement("div"));
      place.id = "courses";
      render(html`<${Course} experiment=${experiment} report=${{course, by_ratio: true}} />`, place);
    }"""
    page.evaluate(draw)
    charts = page.locator("#courses .chart")
    expect(charts).to_have_count(2)
    for arm, chart in (("cheap: ×0.800", charts.first), ("cheaper: ×0.600", charts.last)):
        expect(chart).to_have_accessible_name(re.compile(f"macs of {arm} .* over 2 times"))
    expect(page.locator("#courses")).to_contain_text("of new appears when it and control have 200 units")


def test_words_say_what_they_mean_by_keyboard_too(page):
    word = page.get_by_role("region", name="All versions").get_by_role("button", name="rFID")
    word.focus()
    expect(page.locator(".bubble")).to_contain_text("Fréchet distance between features")
    expect(word).to_have_accessible_description(re.compile("^Fréchet distance between features"))
    page.keyboard.press("Escape")
    expect(page.locator(".bubble")).to_have_count(0)


def test_a_store_that_is_away_is_said_to_be_and_nothing_is_lost(chromium, guarded):
    with visiting(chromium, guarded.address, (*KEYLESS, 503), viewport=WIDE) as page:
        guarded.enter(page)
        tier(page, "draft").wait_for()
        away = {"error": {"code": "store_unavailable", "message": "registry: cannot be reached", "param": "registry"}}
        page.route("**/v1/operator/tiers*", lambda route: route.fulfill(status=503, json=away))
        page.get_by_text("registry: cannot be reached").wait_for()
        assert tier(page, "draft").count() == 1, "what was known is still shown"


def test_a_site_is_a_page_that_needs_no_server(chromium, guarded, tmp_path):
    done = CliRunner().invoke(registry_app, ["site", str(tmp_path / "site"), "--registry", str(guarded.registry)])
    assert done.exit_code == 0, done.output
    with visiting(chromium, tmp_path.as_uri(), viewport=NARROW, color_scheme="dark") as page:
        page.goto((tmp_path / "site" / "index.html").as_uri())
        tier(page, "balanced").wait_for()
        assert page.get_by_role("button", name="Promote").count() == 0
        assert (violations(page), max(overflow(page), 0)) == ([], 0)
        digest = guarded.schedules["draft-measured"].digest
        page.get_by_role("button", name=f"Schedule {digest[:8]} of draft").click()
        page.get_by_label("Compare with").select_option(guarded.schedules["best-measured"].digest)
        page.get_by_text("steps differ").wait_for()
        assert violations(page) == []


def test_a_page_that_is_opened_behind_another_one_is_there_when_it_is_looked_at(chromium, guarded, tmp_path):
    CliRunner().invoke(registry_app, ["site", str(tmp_path / "site"), "--registry", str(guarded.registry)])
    with visiting(chromium, tmp_path.as_uri(), viewport=WIDE) as page:
        page.add_init_script("Object.defineProperty(document, 'hidden', {get: () => true})")
        page.goto((tmp_path / "site" / "index.html").as_uri())
        expect(tier(page, "draft")).to_be_visible()


def test_a_site_of_no_model_yet_has_reports_of_searches(chromium, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").write_text("<h1>a search</h1>")
    arguments = ["site", str(tmp_path / "site"), "--registry", str(tmp_path / "registry"), "--run", str(tmp_path / "run")]
    assert CliRunner().invoke(registry_app, arguments).exit_code == 0
    with visiting(chromium, tmp_path.as_uri(), viewport=NARROW) as page:
        page.goto((tmp_path / "site" / "index.html").as_uri())
        page.get_by_text("no model yet").wait_for()
        assert (violations(page), max(overflow(page), 0)) == ([], 0)
        page.get_by_role("link", name="search run").click()
        page.get_by_role("heading", name="a search").wait_for()

"""The playground at `/`, as visitors see it: in Chromium, against a real service of the bundled model that has API keys."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from api_keys import keys
from browser import NARROW, WIDE, overflow, violations, violations_everywhere, visiting
from cut_off import cut_off
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect
from served import PATIENCE, SETTINGS, publish
from served import tiers as published

from examples.launch import serving
from registry.stores.address import open_store

TIERS = ("draft", "fast", "balanced", "best", "reference")
QUOTA = 20  # draft images a minute of the poor key


@dataclass(frozen=True)
class Guarded:
    """The server, a key without limits and one with few MACs a minute."""

    address: str
    boss: str
    poor: str

    def post(self, path: str = "/generate", token: str | None = None, **body: object) -> httpx.Response:
        return httpx.post(self.address + path, json=body, headers={"X-API-Key": token or self.boss}, timeout=120)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("playground")
    registry, file = folder / "registry", folder / "keys.json"
    publish(open_store(str(registry)))
    boss = keys("new", "boss", "--file", file)
    settings = {"FLEXI_REGISTRY": str(registry), "FLEXI_STATE": str(folder / "state"), "FLEXI_API_KEYS": str(file)}
    with serving(SETTINGS | settings, folder / "server.log", patience=PATIENCE) as address:
        asked = Guarded(address, boss, "")
        draft = asked.post(prompt="red heart", tier="draft").json()["macs"]
        poor = keys("new", "poor", "--file", file, "--macs-per-minute", QUOTA * draft)
        while httpx.get(f"{address}/v1/tiers", headers={"X-API-Key": poor}).status_code == 401:
            threading.Event().wait(0.1)
        yield Guarded(address, boss, poor)


@pytest.fixture
def page(chromium: Browser, guarded: Guarded) -> Iterator[Page]:
    """The playground of somebody who gave a key, on a wide screen."""
    with opened(chromium, guarded.address, guarded.boss) as page:
        yield page


@contextmanager
def opened(chromium: Browser, address: str, token: str, **options: object) -> Iterator[Page]:
    with visiting(chromium, address, **{"viewport": WIDE} | options) as page:
        page.add_init_script(f"sessionStorage.setItem('flexi.key', {json.dumps(token)})")
        page.goto(address)
        page.get_by_role("button", name="Compare all tiers").wait_for()
        yield page


def card(page: Page, tier: str) -> Locator:
    return page.locator("label.tier", has=page.locator(f"input[value={tier}]"))


def generate(page: Page, tier: str) -> None:
    card(page, tier).get_by_role("radio").check()
    page.get_by_role("button", name=f"Generate with {tier}").click()


def pixels(data: str | bytes) -> np.ndarray:
    """Of a file, or of a data: URL or base64 of one."""
    raw = base64.b64decode(data.rpartition(",")[2]) if isinstance(data, str) else data
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"), dtype=float)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one - other) ** 2)))


@contextmanager
def busy(guarded: Guarded) -> Iterator[None]:
    """Others' requests, one after the other, so that ours takes a while, however quick the machine is."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            guarded.post(prompt="tulip", tier="reference", num_images=4)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", [WIDE, NARROW], ids=["wide", "narrow"])
def test_it_says_what_the_tiers_are_worth_before_anything_is_typed(chromium, guarded, window, scheme):
    with opened(chromium, guarded.address, guarded.boss, viewport=window, color_scheme=scheme) as page:
        told = httpx.get(f"{guarded.address}/v1/tiers", headers={"X-API-Key": guarded.boss}).json()
        for tier in told["tiers"][:-1]:
            times = re.search(r"([\d.]+)×", card(page, tier["tier"]).inner_text())
            assert float(times[1]) == pytest.approx(1 / tier["relative_cost"], rel=0.06)
        expect(page.get_by_label("Prompt", exact=True)).to_have_value("tiger face")
        expect(page.get_by_role("img", name=re.compile(r"10 steps: 10 full, 0 partial, 0 null"))).not_to_have_count(0)
        dark = page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 22)"
        assert dark == (scheme == "dark")
        assert violations(page) == []
        assert overflow(page) <= 0


def test_a_strip_shows_each_step_of_the_schedule_in_its_order(page):
    for tier, schedule in published().items():
        strip = card(page, tier).locator(".strip")
        strip.locator("i").first.wait_for()
        cells = strip.locator("i").evaluate_all("cells => cells.map((cell) => cell.className)")
        assert cells == [step.kind for step in schedule.steps()]


def test_a_schedule_of_fewer_steps_is_drawn_in_the_time_of_the_original(page):
    spread = (
        "async (of) => (await import('/assets/strip.js')).spread([{kind: 'full'}, {kind: 'full'}], of).map((step) => step.kind)"
    )
    assert page.evaluate(spread, 5) == ["full", "null", "null", "full", "null"]
    assert page.evaluate(spread, 2) == page.evaluate(spread, 0) == ["full", "full"]


def test_an_image_comes_with_previews_and_steps_and_is_the_one_that_the_api_makes(page, guarded):
    seen = page.evaluate_handle(
        """() => {
          const seen = {steps: new Set(), pictures: new Set()};
          new MutationObserver(() => {
            const bar = document.querySelector("[role=progressbar]"), image = document.querySelector(".result .frame img");
            if (bar) seen.steps.add(Number(bar.getAttribute("aria-valuenow")));
            if (image) seen.pictures.add(image.src);
          }).observe(document.body, {subtree: true, childList: true, attributes: true});
          return seen;
        }"""
    )
    generate(page, "best")
    page.get_by_role("link", name="Download").wait_for()
    steps, pictures = seen.evaluate("seen => [[...seen.steps], [...seen.pictures]]")
    assert len(steps) > 2, "the bar moved on the way"
    assert sorted(steps)[-1] == 10
    assert len(pictures) > 1, "there were previews"
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    file = Path(download.value.path()).read_bytes()
    assert download.value.suggested_filename == "tiger-face-best-7.png"
    assert Image.open(io.BytesIO(file)).text["tier"] == "best"
    whole = guarded.post(prompt="tiger face", tier="best", seed=7).json()
    assert np.abs(pixels(file) - pixels(whole["images"][0])).max() <= 1
    expect(page.get_by_role("status")).to_contain_text("Done in")
    assert violations_everywhere(page) == []


def test_a_request_that_is_cancelled_ends_on_the_server_too(chromium, guarded):
    with busy(guarded), opened(chromium, guarded.address, guarded.boss) as page:
        page.get_by_label("Images", exact=True).select_option("4")
        generate(page, "reference")
        page.get_by_text("computed, of").wait_for()  # the server has it; before that, closing the connection ends it
        with page.expect_response(lambda answer: answer.request.method == "DELETE") as deleted:
            page.get_by_role("button", name="Cancel").click()
        assert deleted.value.json() == {"cancelled": 1}
        expect(page.get_by_role("alert")).to_contain_text("Cancelled")
        expect(page.get_by_role("button", name="Generate with reference")).to_be_enabled()


def ended(page: Page) -> None:
    """A comparison that did not come to its end has none of its tiles under way, and lets another one begin."""
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    expect(page.get_by_text("drawing…")).to_have_count(0)
    expect(page.get_by_text("no image")).not_to_have_count(0)
    expect(page.get_by_role("button", name="Compare all tiers")).to_be_enabled()


def test_a_comparison_that_is_cancelled_ends(chromium, guarded):
    with busy(guarded), opened(chromium, guarded.address, guarded.boss) as page:
        page.get_by_role("button", name="Compare all tiers").click()
        page.get_by_role("button", name="Cancel").click()
        ended(page)


def test_a_comparison_that_is_refused_on_the_way_ends_with_what_it_has(chromium, guarded):
    def refuse(route):
        if route.request.post_data_json["tier"] == "draft":
            return route.continue_()
        error = {"code": "quota_exceeded", "message": "for programs", "param": None, "request_id": "id-1"}
        route.fulfill(status=429, json={"error": error})

    with opened(chromium, guarded.address, guarded.boss, expected=[429]) as page:
        page.route("**/v1/images/generations", refuse)
        page.get_by_role("button", name="Compare all tiers").click()
        expect(page.get_by_role("alert")).to_contain_text("quota")
        ended(page)
        expect(page.get_by_role("link", name="Download draft")).to_have_count(1)


def test_tiers_are_compared_with_their_cost_and_how_close_they_are(page, guarded):
    page.get_by_label("Prompt", exact=True).fill("red heart")
    page.get_by_role("button", name="Compare all tiers").click()
    page.get_by_role("heading", name="Look closer").wait_for()
    asked = {tier: guarded.post(prompt="red heart", tier=tier, seed=7, guidance_scale=3).json() for tier in TIERS}
    images = {tier: pixels(answer["images"][0]) for tier, answer in asked.items()}
    for tier in TIERS:
        tile = page.locator("figure", has=page.get_by_role("heading", name=tier, exact=True))
        shown = pixels(tile.get_by_role("img").first.get_attribute("src"))
        assert np.abs(shown - images[tier]).max() <= 1
        said = tile.inner_text()
        assert re.search(r"Took\s+[\d.]+ m?s", said)
        if tier != "reference":
            assert float(re.search(r"PSNR\s+([\d.]+) dB", said)[1]) == pytest.approx(
                psnr(images[tier], images["reference"]), abs=0.5
            )
    slider = page.get_by_role("slider", name=re.compile("draft"))
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert slider.input_value() == "55"
    assert page.evaluate("() => document.querySelector('.wipe-frame').style.getPropertyValue('--at')") == "55%"
    assert violations_everywhere(page) == []
    page.set_viewport_size(NARROW)
    assert overflow(page) <= 0


def test_a_comparison_outlives_a_tier_that_is_no_longer_offered(page):
    page.route("**/v1/tiers", lambda route: fulfilled_with(route, lambda told: told["tiers"][1:]))
    page.get_by_role("button", name="Compare all tiers").click()
    page.get_by_role("heading", name="Look closer").wait_for()
    expect(card(page, "draft")).to_have_count(0)  # it was asked again at the end
    tile = page.locator("figure", has=page.get_by_role("heading", name="draft", exact=True))
    expect(tile).to_contain_text("cheaper")


def fulfilled_with(route: Route, tiers: Callable[[dict[str, Any]], list[dict[str, Any]]], **others: object) -> None:
    """The server's answer about its own model, with some of it changed."""
    told = route.fetch(url=route.request.url.partition("?")[0]).json()
    route.fulfill(json=told | others | {"tiers": tiers(told)})


@pytest.fixture
def beside_another(page: Page) -> Page:
    """The page of a server that has a second model, `other`, which is the first one with one tier, `single`."""

    def both(route: Route) -> None:
        told = route.fetch().json()
        route.fulfill(json=told | {"data": [*told["data"], {**told["data"][0], "id": "other", "root": "other"}]})

    def generations(route: Route) -> None:
        body = route.request.post_data_json
        if body.pop("model", "") == "other":
            body["tier"] = "fast"
        route.continue_(post_data=json.dumps(body))

    def single(told: dict[str, Any]) -> list[dict[str, Any]]:
        return [{**told["tiers"][1], "tier": "single"}]

    page.route("**/v1/models", both)
    page.route("**/v1/tiers?model=other", lambda route: fulfilled_with(route, single, model="other"))
    page.route("**/v1/schedules/*?model=other", lambda route: route.continue_(url=route.request.url.partition("?")[0]))
    page.route("**/v1/images/generations", generations)
    page.reload()
    page.get_by_label("Model", exact=True).wait_for()
    return page


def test_another_model_leaves_no_comparison_behind_and_is_compared_by_its_own_tiers(beside_another):
    page, model = beside_another, beside_another.get_by_label("Model", exact=True)
    tiles = page.get_by_role("region", name="Comparison").get_by_role("figure")
    model.select_option("other")
    card(page, "single").wait_for()
    page.get_by_role("button", name="Compare all tiers").click()
    page.get_by_role("link", name="Download single").wait_for()
    model.select_option("emoji64")
    card(page, "draft").wait_for()
    expect(tiles).to_have_count(0)
    page.get_by_role("button", name=re.compile("all tiers.*same again")).click()
    page.get_by_role("link", name="Download single").wait_for()
    expect(tiles).to_have_count(1)
    expect(model).to_have_value("other")


def test_a_model_that_was_left_shows_no_fault_when_its_answer_comes_late(beside_another):
    page, model, late = beside_another, beside_another.get_by_label("Model", exact=True), list[Route]()
    page.route("**/v1/tiers?model=other", lambda route: late.append(route))
    page.evaluate("""() => {  // says when the page has drawn what it makes of an answer that is no JSON
      const json = Response.prototype.json;
      Response.prototype.json = function () {
        const said = json.call(this);
        const drawn = () => requestAnimationFrame(() => setTimeout(() => (document.body.dataset.late = "drawn")));
        said.catch(() => setTimeout(drawn));
        return said;
      };
    }""")
    model.select_option("other")
    model.select_option("emoji64")
    page.get_by_role("button", name="Compare all tiers").click()  # enabled again once emoji64's answer is there
    page.get_by_role("heading", name="Look closer").wait_for()
    late[0].fulfill(content_type="text/plain", body="no JSON")
    page.wait_for_function("() => document.body.dataset.late")
    assert page.get_by_role("alert").count() == 0  # at once: the next answer would take it away


def test_a_key_is_asked_for_and_kept_in_this_tab_only(chromium, guarded):
    with visiting(chromium, guarded.address, expected=[401]) as page:
        page.goto(guarded.address)
        page.get_by_label("API key").fill("wrong-key")
        assert violations(page) == []
        page.get_by_role("button", name="Open").click()
        expect(page.get_by_role("alert")).to_contain_text("does not know this key")
        page.get_by_label("API key").fill(guarded.boss)
        page.keyboard.press("Enter")
        generate(page, "draft")
        page.get_by_role("link", name="Download").wait_for()
        stored = page.evaluate("() => [JSON.stringify(sessionStorage), JSON.stringify(localStorage) + document.cookie]")
        assert [guarded.boss in one for one in stored] == [True, False]
        page.get_by_role("button", name="Forget my API key").click()
        expect(page.get_by_label("API key")).to_be_visible()


def test_a_used_up_quota_is_said_with_a_countdown_that_gives_the_button_back(chromium, guarded):
    with opened(chromium, guarded.address, guarded.poor, expected=[429]) as page:
        for count in (4, 1):
            while guarded.post(token=guarded.poor, prompt="x", tier="draft", num_images=count).status_code == 200:
                pass
        generate(page, "draft")
        expect(page.get_by_role("alert")).to_contain_text("quota")
        button = page.get_by_role("button", name=re.compile(r"^Wait \d+ seconds?$"))
        expect(button).to_be_disabled()
        expect(page.get_by_text(re.compile(r"Try again in \d+ seconds?\."))).to_be_visible()
        page.get_by_role("button", name="Generate with draft").click()
        page.get_by_role("link", name="Download").wait_for()


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (429, "overloaded", "busy"),
        (503, "stopping", "going down"),
        (504, "deadline_exceeded", "time limit"),
        (500, "internal_error", "fault"),
    ],
)
def test_errors_are_said_in_plain_words(chromium, guarded, status, code, words):
    def refuse(route):
        error = {"code": code, "message": "a message for programs", "param": None, "request_id": "id-1"}
        route.fulfill(status=status, json={"error": error}, headers={"Retry-After": "1"})

    with opened(chromium, guarded.address, guarded.boss, expected=[status]) as page:
        page.route("**/v1/images/generations", refuse)
        generate(page, "draft")
        expect(page.get_by_role("alert")).to_contain_text(words)
        expect(page.get_by_role("button", name="Generate with draft")).to_be_enabled()


def test_whose_fault_it_was_and_what_helps_is_said(page):
    said = page.evaluate(
        """async () => {
          const {inPlainWords} = await import("/assets/words.js"), error = {status: 200, message: "x is none"};
          const codes = ["page_fault", "internal_error", "deadline_exceeded"];
          return codes.flatMap((code) => [false, true].map((auto) => inPlainWords({...error, code}, auto)));
        }"""
    )
    assert said[0] == said[1] == "This page has a fault: x is none."
    assert said[2] == said[3] == "The server has a fault (x is none)."  # in a stream, whose status was 200
    assert [one.partition("limit. ")[2] for one in said[4:]] == ["Take a cheaper tier.", "Allow more time."]


def test_a_server_that_is_starting_is_waited_for(chromium, guarded):
    def refuse(route):
        error = {"code": "not_ready", "message": "the model is loading (3 s)", "param": None, "request_id": "id-1"}
        route.fulfill(status=503, json={"error": error}, headers={"Retry-After": "5"})

    with visiting(chromium, guarded.address, expected=[503]) as page:
        page.add_init_script(f"sessionStorage.setItem('flexi.key', {json.dumps(guarded.boss)})")
        page.route("**/v1/tiers", refuse)
        page.goto(guarded.address)
        expect(page.get_by_role("alert")).to_contain_text("the model is loading (3 s)")
        page.unroute("**/v1/tiers")
        page.get_by_role("button", name="Compare all tiers").wait_for()
        expect(page.get_by_role("alert")).to_have_count(0)


def test_a_server_that_goes_away_in_the_middle_is_said(chromium, guarded):
    with busy(guarded), cut_off(guarded.address) as way, opened(chromium, way.address, guarded.boss, expected=["lost"]) as page:
        page.get_by_label("Images", exact=True).select_option("4")
        generate(page, "reference")
        page.get_by_text("computed, of").wait_for()  # the plan is there: the stream has begun
        way.cut()
        expect(page.get_by_role("alert")).to_contain_text("connection to the server was lost")
        expect(page.get_by_role("button", name="Cancel")).to_have_count(0)


def test_nothing_is_asked_for_without_a_prompt(page):
    asked = []
    page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("")
    expect(page.get_by_role("button", name=re.compile("with all 5 tiers"))).to_be_disabled()
    page.get_by_role("button", name="Compare all tiers").click()
    prompt.press("Control+Enter")
    page.get_by_role("button", name=re.compile("Generate with")).click()
    expect(prompt).to_be_focused()
    assert page.evaluate("() => document.querySelector('#prompt').validity.valueMissing")
    assert asked == []
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)


def test_what_was_made_is_remembered_can_be_made_again_and_be_forgotten(page):
    page.get_by_label("Prompt", exact=True).fill("penguin")
    page.get_by_label("Seed", exact=True).fill("11")
    generate(page, "draft")
    page.get_by_role("link", name="Download").wait_for()
    first = page.locator(".result img").get_attribute("src")
    page.reload()
    page.get_by_role("button", name=re.compile("penguin.*same again")).click()
    page.get_by_role("link", name="Download").wait_for()
    again = page.locator(".result img").get_attribute("src")
    assert np.abs(pixels(first) - pixels(again)).max() <= 1
    expect(page.get_by_label("Seed", exact=True)).to_have_value("11")
    assert page.evaluate("() => localStorage.length") == 1
    page.get_by_role("button", name="Clear").click()
    assert page.evaluate("() => localStorage.length") == 0


def test_a_request_can_be_copied_as_a_program_that_makes_the_image(chromium, guarded, tmp_path, monkeypatch):
    monkeypatch.setenv("FLEXIFFUSION_API_KEY", guarded.boss)
    monkeypatch.chdir(tmp_path)
    with opened(chromium, guarded.address, guarded.boss, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.get_by_label("Prompt", exact=True).fill('it\'s a "red" heart')
        generate(page, "draft")
        page.get_by_role("link", name="Download").wait_for()
        shown, copied = pixels(page.locator(".result img").get_attribute("src")), {}
        for form in ("curl", "Python", "OpenAI"):
            page.get_by_role("button", name=form, exact=True).click()
            page.get_by_text("copied", exact=True).wait_for()
            copied[form] = page.evaluate("() => navigator.clipboard.readText()")
            assert guarded.boss not in copied[form]
    words = shlex.split(copied["curl"].partition("|")[0])
    assert words[:3] == ["curl", "-s", f"{guarded.address}/generate"]
    answer = guarded.post(**json.loads(words[words.index("-d") + 1])).json()
    assert np.abs(pixels(answer["images"][0]) - shown).max() <= 1
    for form in ("Python", "OpenAI"):
        program = threading.Thread(target=exec, args=(compile(copied[form], form, "exec"), {"__name__": form}))
        program.start()  # in a thread of its own, as the browser's event loop runs in this one
        program.join()
        assert np.abs(pixels(Path("image-0.png").read_bytes()) - shown).max() <= 1
        Path("image-0.png").unlink()


def test_a_picture_to_start_from_is_drawn_anew_in_part(page, tmp_path):
    Image.new("RGB", (64, 64), (220, 30, 30)).save(tmp_path / "red.png")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Start from a picture").set_input_files(tmp_path / "red.png")
    page.get_by_label("Made anew").fill("0.2")
    generate(page, "reference")
    page.get_by_role("link", name="Download").wait_for()
    expect(page.locator(".result .strip i.full")).to_have_count(2)  # of the teacher's ten steps, the last two
    expect(page.locator(".result .strip i")).to_have_count(2)
    red, green, _ = pixels(page.locator(".result img").get_attribute("src")).mean(axis=(0, 1))
    assert red > 150 > 100 > green, "little of it was made anew"
    assert violations(page) == []
    expect(page.get_by_role("button", name=re.compile("same again"))).to_contain_text("without its picture")
    page.evaluate("""() => {
      const [one] = JSON.parse(localStorage.getItem("flexi.history"));
      localStorage.setItem("flexi.history", JSON.stringify([{...one, wish: {...one.wish, model: "gone"}}]));
    }""")
    page.reload()
    entry = page.get_by_role("button", name=re.compile("same again"))
    expect(entry).to_contain_text("gone is not here")
    expect(entry).to_be_disabled()
    expect(page.get_by_role("button", name="Compare all tiers")).to_be_enabled()


@pytest.mark.parametrize("kind", ["class", "none"])
def test_a_model_that_reads_no_texts_has_a_field_for_classes_or_none(chromium, guarded, kind):
    def other(route):
        told = httpx.get(route.request.url, headers={"X-API-Key": guarded.boss}).json()
        route.fulfill(
            json=told
            | {"prompt_kind": kind, "classes": ["cat", "dog"][: 2 * (kind == "class")], "examples": [], "guides": False}
        )

    with visiting(chromium, guarded.address) as page:
        page.add_init_script(f"sessionStorage.setItem('flexi.key', {json.dumps(guarded.boss)})")
        page.route("**/v1/tiers", other)
        page.goto(guarded.address)
        page.get_by_role("button", name="Compare all tiers").wait_for()
        for label in ("Prompt", "Negative prompt", "Guidance"):
            expect(page.get_by_label(label, exact=True)).to_have_count(0)
        if kind == "class":
            page.get_by_label("Class").select_option("dog")
        with page.expect_request("**/v1/images/generations") as sent:
            generate(page, "draft")
        assert sent.value.post_data_json["prompt"] == ("dog" if kind == "class" else "anything")
        page.get_by_role("link", name="Download").wait_for()


def test_a_model_that_went_away_is_left_for_the_servers_own(chromium, guarded):
    def with_another(route):
        told = route.fetch().json()
        route.fulfill(json=told | {"data": [*told["data"], {**told["data"][0], "id": "gone", "root": "gone"}]})

    with visiting(chromium, guarded.address, expected=[404]) as page:
        page.add_init_script(f"sessionStorage.setItem('flexi.key', {json.dumps(guarded.boss)})")
        page.route("**/v1/models", with_another)
        page.goto(guarded.address)
        page.get_by_label("Model", exact=True).select_option("gone")
        expect(page.get_by_label("Model", exact=True)).to_have_value("emoji64")
        expect(page.get_by_role("button", name="Compare all tiers")).to_be_enabled()
        expect(page.get_by_role("alert")).to_have_count(0)


def test_all_of_it_can_be_done_by_keyboard(page):
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the playground")).to_be_focused()
    page.get_by_role("radio", name="balanced").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("radio", name="fast")).to_be_checked()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.keyboard.press("Control+Enter")
    page.get_by_role("link", name="Download").wait_for()
    expect(page.locator(".result")).to_contain_text("fast")

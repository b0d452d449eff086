"""A real Prometheus, configured as shipped, scrapes the real server: what it says is what the answers said."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import yaml
from places import ROOT
from prometheus_server import SHIPPED, Prometheus, shows, watching
from served import reference

from deploy.grafana.panels import EXPERIMENTS, ROWS

TIERS = ("draft", "fast", "balanced", "best", "reference")
WANTED = [(tier, images) for tier in TIERS for images in (1, 2, 3)]


@dataclass(frozen=True)
class Watched:
    """What Prometheus saw before and after some requests, the answers to them, and the seconds each took for the client."""

    prometheus: Prometheus
    before: dict[str, dict[tuple[str, ...], float]]
    after: dict[str, dict[tuple[str, ...], float]]
    answers: list[dict[str, Any]]
    seconds: list[float]

    def grown(self, expr: str) -> dict[tuple[str, ...], float]:
        """By how much each series of `expr` grew."""
        was = self.before[expr]
        return {key: value - was.get(key, 0.0) for key, value in self.after[expr].items() if value != was.get(key, 0.0)}


MACS = "sum by (tier) (flexi_macs_total)"
FINISHED = "sum by (tier) (flexi_image_macs_sum)"
KINDS = "sum by (tier, kind) (flexi_steps_total)"
REQUESTS = 'sum by (tier) (flexi_request_seconds_count{outcome="ok"})'
SECONDS = 'sum by (tier) (flexi_request_seconds_sum{outcome="ok"})'
DENOISE = 'sum (flexi_stage_seconds_sum{stage="denoise"})'
QUEUE = 'sum (flexi_stage_seconds_sum{stage="queue"})'
PLANNED = "sum by (tier) (flexi_planned_macs_total)"
PLANNED_STEPS = "sum by (tier, kind) (flexi_planned_steps_total)"
FINISHED_STEPS = "sum by (tier, kind) (flexi_finished_steps_total)"
TEACHER = "sum by (tier) (flexi_teacher_macs_total)"
EXPRESSIONS = (MACS, FINISHED, KINDS, REQUESTS, SECONDS, DENOISE, QUEUE, PLANNED, PLANNED_STEPS, FINISHED_STEPS, TEACHER)


@pytest.fixture(scope="module")
def watched(server, tmp_path_factory) -> Watched:
    with watching(server.address, tmp_path_factory.mktemp("prometheus")) as prometheus:
        yield asyncio.run(_watch(prometheus, server.address))


async def _watch(prometheus: Prometheus, address: str) -> Watched:
    async with httpx.AsyncClient(base_url=address, timeout=300) as client:
        until = time.monotonic() + 60
        while re.search(r"^flexi_(inflight|queue)_rows [^0]", (await client.get("/metrics")).text, re.MULTILINE):
            assert time.monotonic() < until, "other tests' images are still in the engine"
            await asyncio.sleep(0.2)
        await client.get("/v1/tiers/nobody")  # so that there is a refusal to be shown
        await a_job(client)
        prometheus.wait_for_scrape(after=time.time())
        before = {expr: prometheus.query(expr) for expr in EXPRESSIONS}

        async def generate(tier: str, images: int) -> tuple[dict[str, Any], float]:
            start = time.monotonic()
            reply = await client.post("/generate", json={"prompt": "red heart", "tier": tier, "num_images": images})
            assert reply.status_code == 200, reply.text
            return reply.json(), time.monotonic() - start

        done = await asyncio.gather(*[generate(*wanted) for wanted in WANTED])
        prometheus.wait_for_scrape(after=time.time())
        after = {expr: prometheus.query(expr) for expr in EXPRESSIONS}
    return Watched(prometheus, before, after, [answer for answer, _ in done], [seconds for _, seconds in done])


async def a_job(client: httpx.AsyncClient) -> None:
    """Have one made, so that there is something to be shown of jobs."""
    body = {"prompt": "red heart", "tier": "draft"}
    job = (await client.post("/v1/jobs", json={"body": body})).raise_for_status().json()
    until = time.monotonic() + 60
    while (await client.get(f"/v1/jobs/{job['id']}")).raise_for_status().json()["state"] != "succeeded":
        assert time.monotonic() < until, "the job was not done"
        await asyncio.sleep(0.1)


def by_tier(watched: Watched, field: str) -> dict[tuple[str, ...], float]:
    sums = Counter[tuple[str, ...]]()
    for answer in watched.answers:
        sums[answer["tier"],] += answer[field]
    return dict(sums)


def test_macs_are_those_of_the_answers(watched):
    assert by_tier(watched, "macs") == watched.grown(MACS) == watched.grown(FINISHED)


def test_latency_is_that_of_the_answers(watched):
    """Its own part of what the client saw, and no less than the engine's part of it."""
    assert watched.grown(REQUESTS) == {(tier,): 3 for tier in TIERS}
    for tier in TIERS:
        pairs = list(zip(watched.answers, watched.seconds, strict=True))
        client = sum(seconds for answer, seconds in pairs if answer["tier"] == tier)
        engine = sum(max(a["queue_ms"], a["denoise_ms"]) / 1000 for a, _ in pairs if a["tier"] == tier)
        assert engine <= watched.grown(SECONDS)[tier,] <= client
    # of several images an answer tells the longest time, so its sum lies below that of all images and above a share of it
    for field, stage in (("queue_ms", QUEUE), ("denoise_ms", DENOISE)):
        (longest, all_images) = (sum(a[field] / 1000 for a in watched.answers), watched.grown(stage)[()])
        assert longest - 1e-3 <= all_images <= 3 * longest + 1e-3


def test_steps_are_those_of_the_answers(watched):
    expected = Counter[tuple[str, ...]]()
    for answer in watched.answers:
        for kind, steps in answer["steps"].items():
            expected[kind, answer["tier"]] += steps * len(answer["images"])
    assert {key: steps for key, steps in expected.items() if steps} == watched.grown(KINDS)


def test_finished_images_keep_to_their_schedules(server, watched):
    assert watched.grown(FINISHED_STEPS) == watched.grown(PLANNED_STEPS) == watched.grown(KINDS)
    assert watched.grown(PLANNED) == watched.grown(MACS)
    teacher, costs = watched.grown(TEACHER), {answer["tier"]: answer["relative_cost"] for answer in watched.answers}
    for (tier,), macs in watched.grown(MACS).items():
        assert teacher[tier,] == pytest.approx(macs / costs[tier])
    assert reference().counts()["full"] == sum(watched.answers[-1]["steps"].values())


def test_the_page_does_not_grow_with_what_strangers_ask_for(client):
    def ask(i: int) -> list[str]:
        client.get(f"/nobody/{i}")
        client.get(f"/v1/schedules/{i}2345678")
        return client.get("/metrics").text.splitlines()

    assert len(ask(0)) == len([ask(i) for i in range(1, 6)][-1])


def test_the_server_says_that_its_engine_is_up(watched):
    watched.prometheus.wait_for_scrape(after=time.time())
    assert list(watched.prometheus.query("flexi_engine_up").values()) == [1]


def test_every_rule_evaluates(watched):
    until = time.monotonic() + 60
    while any(rule["health"] == "unknown" for rule in rules(watched)):
        assert time.monotonic() < until, "the rules were not evaluated"
        time.sleep(0.2)
    assert {rule["name"]: rule.get("lastError") for rule in rules(watched) if rule["health"] != "ok"} == {}


def test_no_alert_fires_on_a_server_that_is_well(watched):
    assert [rule["name"] for rule in rules(watched) if rule.get("state") == "firing"] == []


def rules(watched: Watched) -> list[dict[str, Any]]:
    return [rule for group in watched.prometheus.get("rules")["groups"] for rule in group["rules"]]


RULES = [
    rule
    for file in sorted(SHIPPED.glob("rules/*.yml"))
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("record") or rule["alert"])
def test_every_rule_is_a_query_that_prometheus_takes(watched, rule):
    watched.prometheus.query(rule["expr"])


@pytest.mark.parametrize(
    "panel", [p for row in ROWS if row.title not in EXPERIMENTS for p in row.panels], ids=lambda p: p.title
)
def test_every_panel_shows_something(watched, panel):
    """Those of experiments: `test_experiments`."""
    shows(watched.prometheus, panel)


def dump(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.grafana.ask", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_dashboard_is_there_as_text(watched):
    (instance,) = {key[0] for key in watched.prometheus.query("sum by (instance) (flexi_engine_up)")}
    done = dump(watched.prometheus.address, "--window", "10m", "--instance", re.escape(instance))
    assert done.returncode == 0, done.stderr
    for row in ROWS:
        for panel in row.panels:
            text = done.stdout.split(f"\n{panel.title} [{panel.unit}]\n{panel.about}\n")[1].split("\n\n")[0]
            queries = re.findall(r"^  (\S.*)$", text, re.MULTILINE)
            assert queries == list(panel.asked("10m", re.escape(instance)).values())
            assert row.title in EXPERIMENTS or "(nothing)" not in text, text
    for (tier,), cost in watched.prometheus.query("max by (tier) (flexi_relative_cost)").items():
        assert f"\n    {tier}: {cost:.6g}\n" in done.stdout
    assert re.search(r"^    arm=none digest=\w+ tier=draft version=\d+: 1$", done.stdout, re.MULTILINE)


def test_of_a_server_that_is_not_there_the_text_has_nothing(watched):
    done = dump(watched.prometheus.address, "--instance", "nobody")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("    (nothing)\n") == sum(len(panel.queries) for row in ROWS for panel in row.panels)


def test_what_prometheus_does_not_take_is_one_line(watched, server):
    for arguments in ((watched.prometheus.address, "--window", "soon"), (server.address,)):
        done = dump(*arguments)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")

"""Experiments on a real server: assigned, recorded, rated, compared with the teacher, killed, and rolled back by guardrails."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from pictures import contents
from places import ROOT
from prometheus_server import Prometheus, shows, watching
from served import MODEL, PATIENCE, SETTINGS, TEACHER_STEPS, made, publish

from deploy.grafana.panels import EXPERIMENTS, ROWS
from examples.launch import serving
from registry.catalog import Catalog
from registry.corrections import Correction
from registry.experiments.catalog import ExperimentCatalog
from registry.experiments.declaration import Experiment, Transition
from registry.schedule import Schedule, Segment, Solver
from registry.stores.address import open_store
from server.experiments.assign import arm_of, enrolled

STEPS = 20  # of the broken arm: enough that its latents overflow
BROKEN = made("ddim", Segment()).model_copy(
    update={
        "solver": Solver(name="ddim", teacher_steps=STEPS, spacing="trailing"),
        "segments": (Segment(),) * STEPS,
        "corrections": (Correction(latent=100.0),) * STEPS,
    }
)
RUINED = made("dpmsolver++", Segment(), Segment()).model_copy(update={"corrections": (Correction(output=1.5),) * 2})
ARMS = {"good": None, "slow": made("euler", *[Segment()] * TEACHER_STEPS), "broken": BROKEN, "ruined": RUINED}


@dataclass
class Laboratory:
    """A server of its own, and what a client and an operator do with it."""

    registry: str
    folder: Path
    catalog: Catalog
    schedules: dict[str, Schedule]
    log: Path
    client: httpx.Client

    def cli(self, *words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "server.experiments", *words, "--registry", self.registry]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def declare(self, name: str, treatment: str, **fields: Any) -> Experiment:
        """Control is what the tier means: two full steps."""
        arms = {"control": self.schedules["draft"], treatment: self.schedules[treatment]}
        document = {
            "name": name,
            "version": 1,
            "hypothesis": f"{treatment} may become draft",
            "tier": "draft",
            "arms": [{"name": arm, "digest": schedule.digest, "weight": 1} for arm, schedule in arms.items()],
            "control": "control",
            "salt": name,
            "ramp": [{"share": 100}],
            "primary": {"metric": "service_seconds", "minimal_effect": 0.05},
            "minimum_units": 200,
            "maximum_units": 1000,
            "end": "2099-01-01T00:00:00Z",
        } | fields
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(document))
        self.cli("declare", str(file))
        return Experiment.parse(json.dumps(document))

    def start(self, name: str) -> None:
        self.cli("start", name)
        self.until(lambda: name in [experiment["name"] for experiment in self.running()], "it is not in force")

    def running(self) -> list[dict[str, Any]]:
        return self.client.get("/v1/experiments").json()["experiments"]

    def ask(self, unit: str | None, **fields: Any) -> httpx.Response:
        body = {"prompt": "red heart", "tier": "draft", "seed": 1} | ({"unit": unit} if unit else {}) | fields
        return self.client.post("/generate", json=body)

    def until(self, holds: Any, otherwise: str) -> None:
        end = time.monotonic() + 90
        while not holds():
            assert time.monotonic() < end, otherwise
            time.sleep(0.1)

    def metrics(self) -> str:
        return self.client.get("/metrics").text


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    folder = tmp_path_factory.mktemp("laboratory")
    registry, log = str(folder / "registry"), folder / "server.log"
    schedules = publish(open_store(registry))
    catalog = Catalog(open_store(registry), "emoji64")
    schedules |= {name: schedule or schedules["fast"] for name, schedule in ARMS.items()}
    for name in ARMS:
        catalog.publish(schedules[name])
    settings = SETTINGS | {
        "FLEXI_REGISTRY": registry,
        "FLEXI_STATE": str(folder / "state"),
        "FLEXI_SHADOW_SHARE": "1",
        "FLEXI_FEATURES": str(MODEL / "clip"),
    }
    with serving(settings, log, patience=PATIENCE) as address, httpx.Client(base_url=address, timeout=120) as client:
        yield Laboratory(registry, folder, catalog, schedules, log, client)


@pytest.fixture(scope="module")
def prometheus(lab: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Watches from before the first experiment to after the last."""
    with watching(lab.client.base_url.netloc.decode(), tmp_path_factory.mktemp("prometheus")) as prometheus:
        yield prometheus


def test_a_life(lab, prometheus):
    """Assigned as the pure rule says, answered and exported with the arm, recorded, rated, reported, killed."""
    experiment = lab.declare("life", "good")
    assert lab.ask("u1").json()["arm"] is None, "declared is not started"
    lab.start("life")
    answers = {f"u{i}": lab.ask(f"u{i}").json() for i in range(24)}
    for unit, answer in answers.items():
        arm = arm_of(experiment, unit)
        assert enrolled(experiment, 0, unit)
        assert (answer["experiment"], answer["arm"], answer["schedule"]) == ("life", arm.name, arm.digest)
        assert answer["tier"] == "draft"
    assert {answer["arm"] for answer in answers.values()} == {"control", "good"}
    again = lab.ask("u3").json()
    assert again["arm"] == answers["u3"]["arm"]
    nobody = lab.ask(None).json()
    assert (nobody["arm"], nobody["schedule"]) == (None, lab.schedules["draft"].digest)
    explicit = lab.ask("u1", tier=None, schedule=lab.schedules["good"].digest).json()
    assert (explicit["tier"], explicit["arm"]) == (None, None)

    rated = {"request_id": answers["u1"]["request_id"], "rating": 1.0}
    assert lab.client.post("/v1/feedback", json=rated).status_code == 202
    assert lab.client.post("/v1/feedback", json=rated | {"rating": 7}).status_code == 400

    def report() -> dict[str, Any]:
        return json.loads(lab.cli("report", "life", "--json"))

    lab.until(lambda: sum(arm["requests"] for arm in report()["arms"]) == 25, "events are missing")

    def value(metric: str) -> tuple[float | None, float | None]:
        (comparison,) = [row for row in report()["comparisons"] if row["metric"] == metric]
        return comparison["control"], comparison["value"]

    lab.until(lambda: None not in value("psnr"), "nothing was compared with the teacher")
    page = report()
    assert [arm["units"] for arm in page["arms"]] == [
        sum(answer["arm"] == arm for answer in answers.values()) for arm in ("control", "good")
    ]
    assert (page["verdict"]["outcome"], page["damaged"]) == ("collecting", [])
    costs = {answer["arm"]: answer["macs"] / 2 for answer in answers.values()}  # of one UNet row: these guide
    assert value("macs") == (costs["control"], costs["good"])
    assert value("rating")[answers["u1"]["arm"] == "good"] == 1.0
    assert "collecting" in lab.cli("report", "life")
    page = lab.metrics()
    for arm in ("control", "good"):
        served = sum(answer["arm"] == arm for answer in (*answers.values(), again))
        assert f'flexi_assignment_total{{arm="{arm}",experiment="life"}} {served}.0' in page
        assert f'flexi_request_seconds_count{{arm="{arm}",outcome="ok",tier="draft"}} {served}.0' in page
    assert 'flexi_fidelity_psnr_count{arm="good",tier="draft"}' in page

    lab.cli("kill", "life", "--reason", "a drill")
    lab.until(lambda: lab.running() == [], "it was killed and runs")
    assert lab.ask("u1").json()["arm"] is None
    assert "a drill" in lab.cli("status", "life")


RAILS = {
    "slow": {"metric": "service_p95", "compare": "ratio", "limit": 1.8},
    "broken": {"metric": "errors", "compare": "difference", "limit": 0.2},
    "ruined": {"metric": "psnr", "compare": "difference", "limit": 2.0},
}


def test_a_candidate_is_made_beside_what_the_tier_means_and_no_client_gets_it(lab, prometheus):
    tier, candidate = "balanced", lab.schedules["best"]
    said = lab.cli("shadow", "start", tier, candidate.digest, "--share", "1", "--until", "2099-01-01")
    assert said.endswith("100% of its images until 2099-01-01 00:00 UTC\n")
    info = f'flexi_candidate_info{{digest="{candidate.digest}"'
    lab.until(lambda: info in lab.metrics(), "the server does not follow")
    before = lab.ask(None, tier=tier).json()
    made = f'flexi_candidate_images_total{{outcome="ok",tier="{tier}"}}'
    lab.until(lambda: made in lab.metrics(), "nothing is made again")
    again = lab.ask(None, tier=tier).json()
    assert contents(again["images"]) == contents(before["images"])
    assert again["schedule"] == lab.schedules[tier].digest
    lab.until(lambda: json.loads(lab.cli("shadow", "report", tier, "--json"))["pairs"], "nothing is recorded")
    (pair,) = json.loads(lab.cli("shadow", "report", tier, "--json"))["pairs"]
    assert (pair["digest"], pair["candidate"]) == (lab.schedules[tier].digest, candidate.digest)
    figures = {one["figure"]: (one["active"], one["candidate"]) for one in pair["figures"]}
    assert figures.keys() == {"psnr", "feature_distance", "macs", "seconds"}
    assert figures["macs"][0] == before["macs"], "one image's"
    assert "balanced" in lab.cli("shadow", "stop", tier)
    lab.until(lambda: f'{info},tier="{tier}",version="4"}} 0.0' in lab.metrics(), "the server does not follow")


@pytest.fixture(scope="module")
def roll_back(lab: Laboratory, prometheus: Prometheus) -> Callable[[str], Transition]:
    """Lets an arm do harm until the server rolls it back, once for the module; and how that stands in its history."""

    @cache
    def roll_back(harm: str) -> Transition:
        lab.declare(harm, harm, guardrails=[RAILS[harm] | {"minimum_sample": 10, "consecutive": 1}])
        lab.start(harm)
        experiments, i, harmed = ExperimentCatalog(lab.catalog.store, "emoji64"), 0, 0.0
        end = time.monotonic() + 240
        while experiments.state(harm).status == "running":
            assert time.monotonic() < end, "the guardrail did not trip"
            reply = lab.ask(f"u{i}", num_images=2)
            time.sleep(1.0 if harm == "ruined" else 0.0)  # the teacher's images are made in idle time
            harmed = harmed or (time.time() if reply.status_code != 200 or reply.json()["arm"] == harm else 0.0)
            i += 1
        newest = experiments.state(harm).history[-1]
        print(f"{harm}: {newest.time.timestamp() - harmed:.1f} s from the first harm, {i} requests: {newest.reason}")  # noqa: T201
        lab.until(lambda: lab.running() == [], "it is rolled back and runs")
        return newest

    return roll_back


@pytest.mark.parametrize("harm", RAILS)
def test_an_arm_that_does_harm_is_rolled_back(lab, roll_back, harm):
    """By the server itself, with the evidence in the experiment's history, the metrics and the log."""
    newest, metric = roll_back(harm), RAILS[harm]["metric"]
    assert (newest.action, newest.status) == ("roll_back", "rolled_back")
    assert newest.evidence is not None
    assert (newest.evidence["arm"], newest.evidence["metric"]) == (harm, metric)
    for unit in range(6):
        answer = lab.ask(f"u{unit}").json()
        assert (answer["arm"], answer["schedule"]) == (None, lab.schedules["draft"].digest)
    assert f'flexi_rollbacks_total{{arm="{harm}",experiment="{harm}",metric="{metric}"}} 1.0' in lab.metrics()
    assert f"the experiment {harm} is rolled back" in lab.log.read_text()


def test_two_experiments_on_one_tier(lab):
    lab.declare("first", "good")
    lab.declare("second", "slow")
    lab.start("first")
    assert "taken by the experiment first" in lab.cli("start", "second", code=1)
    lab.cli("stop", "first")


def test_what_happens_at_one_server_holds_at_every_other(lab, tmp_path):
    """A kill by an operator, and a rollback by the server that saw the harm."""
    settings = SETTINGS | {"FLEXI_REGISTRY": lab.registry, "FLEXI_STATE": str(tmp_path / "state")}
    with serving(settings, tmp_path / "server.log", patience=PATIENCE) as address:
        other = replace(lab, client=httpx.Client(base_url=address, timeout=120))
        experiment = lab.declare("everywhere", "good")
        assert lab.running() == other.running() == []
        lab.start("everywhere")
        other.until(lambda: other.running(), "it runs at one server only")
        for unit in map(str, range(8)):
            answers = [server.ask(unit).json() for server in (lab, other)]
            assert [answer["arm"] for answer in answers] == [arm_of(experiment, unit).name] * 2
        lab.cli("kill", "everywhere")
        lab.until(lambda: not lab.running() and not other.running(), "it was killed and runs")
        assert [server.ask("1").json()["arm"] for server in (lab, other)] == [None, None]

        lab.declare("ill", "broken", guardrails=[RAILS["broken"] | {"minimum_sample": 10, "consecutive": 1}])
        lab.start("ill")
        other.until(lambda: other.running(), "it runs at one server only")
        units, end = map(str, range(1000)), time.monotonic() + 240
        while other.running():
            assert time.monotonic() < end, "the guardrail did not trip"
            other.ask(next(units))  # only this server sees harm
        lab.until(lambda: not lab.running(), "it is rolled back at one server only")
        assert ExperimentCatalog(lab.catalog.store, "emoji64").state("ill").status == "rolled_back"
        assert [server.ask("1").json()["arm"] for server in (lab, other)] == [None, None]


PANELS = [panel for row in ROWS if row.title in EXPERIMENTS for panel in row.panels]


@pytest.mark.parametrize(
    "panel", [panel for panel in PANELS if not panel.title.startswith("rFID")], ids=lambda panel: panel.title
)
def test_the_dashboard_shows_what_arms_did(prometheus, panel):
    """But for rFID, which takes 64 images of an arm."""
    shows(prometheus, panel)


def test_the_dashboard_shows_every_roll_back(prometheus, roll_back):
    for harm in RAILS:
        roll_back(harm)
    prometheus.wait_for_scrape(after=time.time())
    (panel,) = [panel for panel in PANELS if panel.title.startswith("Rolled back")]
    (expr,) = panel.asked().values()
    assert prometheus.query(expr) == {(harm, harm, rail["metric"]): 1 for harm, rail in RAILS.items()}

"""What is shipped for Prometheus and Grafana: its own checks, its rules' tests, and that it names only what exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
import yaml
from places import ROOT
from prometheus_client.metrics import MetricWrapperBase

from deploy import check
from deploy.grafana.dashboard import FILE, dashboard
from server.config import Settings
from server.http.probes import READY
from server.telemetry import metrics

PROMETHEUS = ROOT / "deploy" / "prometheus"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def rules() -> list[dict[str, Any]]:
    groups = [group for file in sorted(PROMETHEUS.glob("rules/*.yml")) for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = [rule for rule in rules() if "alert" in rule]
QUERIES = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
QUERIES += check.queries(check.rendered(ROOT / "deploy" / "kubernetes" / "overlays" / "gpu-canary"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "rules/recording.yml", "rules/alerts.yml"),
        ("test", "rules", "tests/alerts.yml"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_has_no_complaint(promtool, arguments):
    done = subprocess.run([promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_tests_notice_a_wrong_rule(promtool, tmp_path):
    """Else a test file that tests nothing would pass above."""
    for file in ("rules/recording.yml", "rules/alerts.yml", "tests/alerts.yml"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text((PROMETHEUS / file).read_text().replace("faults_ratio5m > 0.01", "faults_ratio5m > 0.1"))
    done = subprocess.run([promtool, "test", "rules", "tests/alerts.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "FlexiErrors" in done.stdout + done.stderr


def test_the_proxy_before_the_workers_waits_longer_than_requests_may_take_and_asks_a_route_that_there_is():
    file = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
    text = file.read_text()
    most = next(rule.le for rule in Settings.model_fields["request_seconds"].metadata if hasattr(rule, "le"))
    for side in ("client", "server"):
        assert int(re.search(rf"timeout {side} (\d+)s", text)[1]) > most
    assert re.search(r"uri (\S+)", text)[1] == READY
    # and no other: what a worker had begun before it died would be made, and counted, again
    assert {"retry-on conn-failure 503", "option http-buffer-request"} <= {
        line.partition("#")[0].strip() for line in text.splitlines()
    }, "without the second, most bodies are not there yet when the answer is, and cannot be sent again"
    assert re.findall(r"unix@\$\{FLEXI_SOCKETS\}/(\d+)\.sock", text) == [str(number) for number in range(1, 9)]
    # As the server reads a path: decoded once, and without what stands behind #, which a parser may leave in.
    assert "http-request deny deny_status 404 if { path,url_dec -m beg /metrics }" in text
    if program := shutil.which("haproxy"):
        done = subprocess.run([program, "-c", "-f", file], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_to_fire():
    tested = re.findall(r'exp_samples:.*?alertname="(\w+)"', (PROMETHEUS / "tests" / "alerts.yml").read_text(), re.DOTALL)
    assert {alert["alert"] for alert in ALERTS} == set(tested)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_says_what_it_means_and_where_the_runbook_is(alert):
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    assert alert["labels"]["severity"] in ("page", "ticket")
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert page == "docs/operations.md"
    headings = {heading.lower(): heading for heading in re.findall(r"^### (\w+)$", OPERATIONS, re.MULTILINE)}
    assert headings[anchor] == alert["alert"]
    section = OPERATIONS.split(f"### {alert['alert']}\n")[1].split("\n### ")[0]
    assert "* Look: " in section
    assert "* Do: " in section


def test_no_runbook_is_left_over():
    section = OPERATIONS.split("\n## Alerts\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^### (\w+)$", section, re.MULTILINE)) == {alert["alert"] for alert in ALERTS}


def exported() -> set[str]:
    """Names of samples, as Prometheus stores them."""
    names = set()
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(metric._type, [""])
            names |= {metric._name + ending for ending in endings}
    return names


@pytest.mark.parametrize("expr", [rule["expr"] for rule in rules()] + QUERIES)
def test_rules_and_panels_name_only_metrics_that_exist(expr):
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    without_records = re.sub(r"\b\w+(:\w+)+\b", lambda found: "" if found[0] in recorded else found[0], expr)
    assert ":" not in re.sub(r'"[^"]*"', "", without_records), "a recorded series that no rule records"
    assert set(re.findall(r"\bflexi_\w+", without_records)) <= exported()


def test_the_dashboard_is_what_its_panels_make():
    assert json.loads(FILE.read_text()) == dashboard(), "run python -m deploy.grafana.dashboard"


def test_every_panel_explains_itself_and_none_covers_another():
    panels, taken = dashboard()["panels"], set[tuple[int, int]]()
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["type"] == "row" or panel["description"]
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.parametrize("address", ["http://user:secret@127.0.0.1:9", "prometheus:9090", "nonsense", "http://["])
def test_the_dashboard_as_text_needs_prometheus_and_says_so_in_a_line(address):
    command = [sys.executable, "-m", "deploy.grafana.ask", address]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "secret" not in line
    assert not done.stdout

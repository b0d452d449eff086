"""deploy/compose.yaml fits its schema, the server, and itself. It was not started here: see docs/deploy.md."""

from __future__ import annotations

import copy
import re

import pytest
from manifests import COMMAND, DEPLOY, SERVICES, SUPERVISOR_PATIENCE, accepts, compose, compose_environment

from deploy import check

PORT = int(COMMAND[COMMAND.index("--port") + 1])


def test_the_check_notices_a_wrong_compose_file():
    wrong = copy.deepcopy(compose())
    wrong["services"]["s3"]["prots"] = []
    assert any("prots" in fault for fault in check.misfits(wrong, check.SCHEMAS / "compose-spec.json"))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_of_the_compose_file_accepts_its_settings_and_ends_before_it_is_killed(name, monkeypatch):
    service = compose()["services"][name]
    settings = accepts(monkeypatch, compose_environment(service))
    assert float(service["stop_grace_period"].removesuffix("s")) > settings.drain_seconds + SUPERVISOR_PATIENCE


@pytest.mark.parametrize("name", SERVICES)
def test_the_compose_file_asks_whether_requests_are_taken(name):
    (url,) = re.findall(r"http://\S+?(?=')", compose()["services"][name]["healthcheck"]["test"][-1])
    assert url == f"http://127.0.0.1:{PORT}/readyz"


@pytest.mark.parametrize("name", compose()["services"])
def test_no_service_of_the_compose_file_is_root_or_reachable_from_elsewhere(name):
    service = compose()["services"][name]
    assert int(service["user"].split(":")[0]) > 0
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "network_mode" not in service
    assert service["healthcheck"]["test"]
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        assert (DEPLOY / source).exists() if source.startswith(".") else source in compose()["volumes"]

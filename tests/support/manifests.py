"""What deploy/ says, read as a cluster and Docker would: objects, pods and containers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import yaml
from places import ROOT

from deploy import check
from server import config

DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMMAND: list[str] = json.loads(re.findall(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE)[-1])  # of the image
SUPERVISOR_PATIENCE = 15  # seconds after FLEXI_DRAIN_SECONDS, when a worker that hangs is killed


@cache
def objects(root: str) -> list[dict[str, Any]]:
    """All that a folder below deploy/kubernetes renders."""
    return check.rendered(DEPLOY / "kubernetes" / root)


ROOTS = [str(root.relative_to(DEPLOY / "kubernetes")) for root in check.roots()]
SERVERS = [root for root in ROOTS if root.startswith("overlays/")]


def named(root: str, kind: str, name: str = "flexiffusion") -> dict[str, Any]:
    """One object."""
    (found,) = [one for one in objects(root) if one["kind"] == kind and one["metadata"]["name"].startswith(name)]
    return found


@dataclass(frozen=True)
class Pod:
    """A pod, or the template of some."""

    owner: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def container(self) -> dict[str, Any]:
        (only,) = self.spec["containers"]
        assert isinstance(only, dict)
        return only


def pods(root: str) -> Iterator[Pod]:
    """Those of Deployments, Jobs, and by themselves."""
    for one in objects(root):
        if template := one if one["kind"] == "Pod" else one["spec"].get("template") if "spec" in one else None:
            yield Pod(f"{root}: {one['metadata']['name']}", template["metadata"]["labels"], template["spec"])


def server(root: str) -> Pod:
    """The pod of a server."""
    (only,) = [pod for pod in pods(root) if pod.container["name"] == "server"]
    return only


def environment(root: str, pod: Pod) -> dict[str, str]:
    """A container's variables but those of secrets."""
    values: dict[str, str] = {}
    for source in pod.container.get("envFrom", []):
        if reference := source.get("configMapRef"):
            values |= named(root, "ConfigMap", reference["name"])["data"]
    return values | {one["name"]: one["value"] for one in pod.container.get("env", [])}


@cache
def compose() -> dict[str, Any]:
    """The compose file."""
    read = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert isinstance(read, dict)
    return read


def compose_environment(service: dict[str, Any]) -> dict[str, str]:
    """A service's variables, those of its file included."""
    lines = (DEPLOY / service["env_file"]).read_text().splitlines() if "env_file" in service else []
    in_file = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return in_file | service.get("environment", {})


def accepts(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> config.Settings:
    """The settings of a server with these variables. What is mounted is not here, so nothing is said of that."""
    for name in [name for name in os.environ if name.startswith("FLEXI_")]:
        monkeypatch.delenv(name)
    here = {"FLEXI_MODEL": "models/emoji64"} if values.get("FLEXI_MODEL", "").startswith("/models/") else {}
    for name, value in (values | here).items():
        if name.startswith("FLEXI_") and name != "FLEXI_TRUSTED_KEYS":
            monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(ROOT)
    return config.load()


SERVICES = [name for name, service in compose()["services"].items() if "env_file" in service]

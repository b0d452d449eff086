"""Renders and validates what is in this folder, without a cluster, a Docker engine or a network: `make deploy-check`.

A line for each part that is in order. Faults go to standard error, and the exit code is 1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import typer
import yaml

from registry.commands.command_line import run_program

HERE = Path(__file__).parent
SCHEMAS = HERE / "schemas"
KUBERNETES = ("1.34", "1.37")  # preStop's `sleep` is in every cluster since 1.34
BIN = Path(sys.executable).parent  # kubectl is there, and promtool where there was none


def roots() -> list[Path]:
    """The folders that `kubectl apply -k` takes: those that say their namespace."""
    found = sorted(
        file.parent for file in (HERE / "kubernetes").rglob("kustomization.yaml") if "\nnamespace:" in file.read_text()
    )
    return [root for root in found if "settings" not in root.parts]  # parts of the others


def rendered(root: Path) -> list[dict[str, Any]]:
    """The objects that a folder stands for. Raises `SystemExit` with what kustomize says."""
    done = subprocess.run([BIN / "kubectl", "kustomize", root], capture_output=True, text=True)
    if done.returncode or done.stderr:
        raise SystemExit(f"error: {root.relative_to(HERE)}: {done.stderr.strip()}")
    return list(yaml.safe_load_all(done.stdout))


def faults_of(document: dict[str, Any]) -> Iterator[str]:
    """What is wrong with an object by its schema: Kubernetes' own, or the one of its custom resource."""
    group, _, version = document["apiVersion"].rpartition("/")
    schema = SCHEMAS / f"{group}_{document['kind'].lower()}_{version}.json"
    if schema.is_file():
        yield from misfits(document, schema)
        return
    for release in KUBERNETES:
        try:
            kubernetes_validate.validate(document, release, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{'.'.join(map(str, error.path))}: {error.message} (Kubernetes {release})"
        except kubernetes_validate.SchemaNotFoundError:
            yield f"there is no schema of {document['apiVersion']} {document['kind']} (Kubernetes {release})"


def misfits(document: Any, schema: Path) -> Iterator[str]:
    """Where a document does not fit a JSON schema."""
    for error in jsonschema.Draft7Validator(json.loads(schema.read_text())).iter_errors(document):
        yield f"{error.json_path}: {error.message}"


def queries(documents: list[dict[str, Any]]) -> list[str]:
    """The PromQL of KEDA's triggers and Argo's metrics, with a name in the place of each argument."""
    found = []
    for document in documents:
        if document["kind"] == "ScaledObject":
            found += [trigger["metadata"]["query"] for trigger in document["spec"]["triggers"]]
        elif document["kind"] == "AnalysisTemplate":
            found += [metric["provider"]["prometheus"]["query"] for metric in document["spec"]["metrics"]]
    return [query.replace("{{args.release}}", "6d4f8") for query in found]


def promtool(*arguments: str | Path) -> Iterator[str]:
    """What promtool complains of."""
    done = subprocess.run([_tool("promtool") or "promtool", *arguments], cwd=HERE, capture_output=True, text=True)
    if done.returncode:
        yield f"promtool {' '.join(map(str, arguments[:2]))}: {(done.stdout + done.stderr).strip()}"


def kubernetes() -> Iterator[str]:
    """Faults of the manifests."""
    asked = set[str]()
    for root in roots():
        documents = rendered(root)
        name = root.relative_to(HERE)
        faults = [
            f"{name}: {document['kind']} {document['metadata']['name']}: {fault}"
            for document in documents
            for fault in faults_of(document)
        ]
        if not faults:
            typer.echo(f"{name}: {len(documents)} objects fit their schemas")
        asked |= set(queries(documents))
        yield from faults
    if _tool("promtool"):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "queries.yml"
            rules = [{"record": f"query:{i}", "expr": query} for i, query in enumerate(sorted(asked))]
            file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
            faults = list(promtool("check", "rules", file))
        if not faults:
            typer.echo(f"kubernetes: {len(asked)} queries of KEDA and Argo Rollouts are PromQL")
        yield from faults


def compose() -> Iterator[str]:
    """Faults of compose.yaml; with Docker's own reader, too, where its client has it."""
    faults = list(misfits(yaml.safe_load((HERE / "compose.yaml").read_text()), SCHEMAS / "compose-spec.json"))
    reader = ["docker", "compose"]
    if shutil.which("docker") and subprocess.run([*reader, "version"], capture_output=True).returncode == 0:
        for profile in ("cpu", "gpu"):
            environment = {**os.environ, "COMPOSE_PROFILES": profile, "AWS_SECRET_ACCESS_KEY": "secret"}
            command = [*reader, "-f", "compose.yaml", "--env-file", ".env.example", "config", "--quiet"]
            done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)
            faults += [f"docker compose config, profile {profile}: {done.stderr.strip()}"] * bool(done.returncode)
        by = "its schema and Docker's reader"
    else:
        by = "its schema (this Docker client has no compose)"
    if not faults:
        typer.echo(f"compose.yaml: fits {by}")
    yield from (f"compose.yaml: {fault}" for fault in faults)


def prometheus() -> Iterator[str]:
    """Faults of both configurations and the rules."""
    if not _tool("promtool"):
        if os.environ.get("CI"):
            yield "promtool is not installed (Debian: apt-get install prometheus)"
        typer.echo("prometheus: not checked, promtool is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:  # in the container, the rules are beside the configuration
        shutil.copytree(HERE / "prometheus" / "rules", Path(folder) / "rules")
        config = shutil.copy(HERE / "compose" / "prometheus.yml", folder)
        faults = [*promtool("check", "config", "prometheus/prometheus.yml"), *promtool("check", "config", config)]
    if not faults:
        typer.echo("prometheus: two configurations and their rules pass promtool")
    yield from faults


def main() -> None:
    """Print what is in order. Raises `SystemExit` where something is not."""
    faults = [*kubernetes(), *compose(), *prometheus()]
    for fault in faults:
        typer.echo(f"error: {fault}", err=True)
    if faults:
        raise SystemExit(1)


def _tool(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=str(BIN))


if __name__ == "__main__":
    run_program(main)

"""What the service imports: nothing that takes seconds in BentoML's supervisor, and in a worker what serving needs."""

from __future__ import annotations

import json
import subprocess
import sys

from places import ROOT

NOT_FOR_A_SUPERVISOR = {"torch", "diffusers", "transformers", "scipy", "fastapi", "PIL", "boto3"}
NOT_FOR_A_WORKER = {
    "pandas",
    "matplotlib",
    "dask",
    "distributed",
    "boto3",
    "torch_fidelity",
    "torchvision",
    "tensorflow",
    "onnx",
}
BOTH = """
import json
import sys

import click

def shown(service):
    config = {name: service.config[name] for name in ("workers", "http", "traffic", "metrics", "logging")}
    print(json.dumps([service.name, config, sorted({name.partition(".")[0] for name in sys.modules})]))

with click.Context(click.Command("serve")) as context:
    context.params = {"host": "127.0.0.1", "port": 0}  # as `bentoml serve` has them
    from server.service import Flexiffusion
shown(Flexiffusion)
from server import worker
shown(worker.Flexiffusion)
"""


def test_supervisor_and_worker_know_the_same_service_and_import_what_each_needs() -> None:
    done = subprocess.run([sys.executable, "-c", BOTH], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (name, options, first), (worker_name, worker_options, later) = map(json.loads, done.stdout.splitlines())
    assert (name, options) == (worker_name, worker_options)
    assert NOT_FOR_A_SUPERVISOR.isdisjoint(first)
    assert {"torch", "fastapi"} < {*later}
    assert NOT_FOR_A_WORKER.isdisjoint(later)

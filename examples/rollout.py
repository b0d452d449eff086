"""A candidate's whole way, on a real service: shadowed, tried by an automatic ramp, promoted; and one that is rolled back.

    python -m examples.rollout > transcript.txt      # emoji64 with a teacher of ten steps; minutes on two cores

It prints the commands that an operator types, with what they answer and their exit codes. Nothing outlasts it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from engine.folder import Folder
from examples.launch import ROOT, serving
from models.bundled import BUNDLED
from registry.commands.command_line import run_command
from registry.errors import FlexiError
from registry.schedule import ModelRef, Schedule, Segment, Solver
from server.experiments.auto_ramp import CODES

MODEL, TIER, STEPS = BUNDLED["emoji64"], "balanced", 10
SHADOWED, STAGE, LONGEST = 60, 60, 1200  # images of a candidate; requests between two looks; requests of an experiment at most
BATCH = 8  # requests at once; at most 16 images wait to be compared
ARMS = "control", "candidate"
SCHEDULES: Mapping[str, tuple[Segment, ...]] = {  # versions 1 to 3 of the registry
    "five full steps": (Segment(),) * 5,
    "partial steps between the full ones": (Segment(partial=(1,), branch=3),) * 5,
    "two full steps": (Segment(),) * 2,
}


def declaration(name: str, digests: Sequence[str], hypothesis: str) -> dict[str, Any]:
    """An experiment of the tier's schedule against another one, decided by PSNR to the teacher's images."""
    return {
        "name": name, "version": 1, "tier": TIER, "hypothesis": hypothesis, "salt": name, "control": "control",
        "arms": [{"name": arm, "digest": digest, "weight": 1} for arm, digest in zip(ARMS, digests, strict=True)],
        "ramp": [{"share": 60, "units": 50}, {"share": 100}],
        "primary": {"metric": "psnr", "minimal_effect": 1.0},
        "guardrails": [
            {"metric": "errors", "compare": "difference", "limit": 0.05},
            {"metric": "macs", "compare": "ratio", "limit": 1.5},
        ],
        "automatic": {"harm_margin": 2.0},
        "maximum_units": 5000, "end": "2099-01-01T00:00:00Z",
    }  # fmt: skip


class Terminal:
    """Types commands, and prints them with what came of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "FLEXI_REGISTRY": str(folder / "registry"), "PYTHONPATH": str(ROOT), "COLUMNS": "100"}

    def types(self, line: str, *expected: int) -> str:
        """Run `python -m LINE` in the folder; what it prints. Raises `FlexiError` for another exit code than 0 or these."""
        print(f"$ python -m {line}", flush=True)
        arguments = [sys.executable, "-m", *shlex.split(line)]
        done = subprocess.run(arguments, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        print(*(text.rstrip() for text in (done.stdout, done.stderr) if text.strip()), sep="\n")
        print(f"[exit {done.returncode}]\n" if expected else "", flush=True)
        if done.returncode not in (0, *expected):
            raise FlexiError(f"`{line}` ended with exit code {done.returncode}")
        return done.stdout

    def look(self, name: str) -> bool:
        """Let the ramp take its next step, if it is time; whether that was the last."""
        said = self.types(f"server.experiments ramp {name} --auto --promote", *CODES.values())
        return any(f" {end}: " in said for end in ("finished", "rolled_back", "paused"))


class Clients:
    """Users who each want one image, in batches; the next one comes when the last is compared with the teacher's."""

    def __init__(self, address: str) -> None:
        self.client = httpx.Client(base_url=address, timeout=300)
        self.numbers = count(1)
        self.prompts = (MODEL.folder / "prompts.txt").read_text(encoding="utf-8").split("\n")[:-1]

    def ask(self, requests: int, compared: str = "flexi_shadow_images") -> None:
        """So many requests, each of a user of its own. Raises what httpx raises for one that is not answered by an image."""
        for start in range(0, requests, BATCH):
            numbers = [next(self.numbers) for _ in range(min(BATCH, requests - start))]
            before = self._compared()[compared]
            with ThreadPoolExecutor(BATCH) as pool:
                list(pool.map(self._one, numbers))
            while self._compared()[compared] < before + len(numbers):
                time.sleep(0.2)
        print(f"({requests} requests are answered)\n", flush=True)

    def _one(self, number: int) -> None:
        body = {"prompt": self.prompts[number % len(self.prompts)], "seed": number, "tier": TIER, "unit": f"user-{number}"}
        self.client.post("/generate", json=body).raise_for_status()

    def _compared(self) -> dict[str, float]:
        """Images that were made again, by who: the teacher for the experiments, or the candidate. Failed ones count."""
        counters = {"flexi_shadow_images": 0.0, "flexi_candidate_images": 0.0}
        for family in text_string_to_metric_families(self.client.get("/metrics").text):
            if family.name in counters:
                counters[family.name] = sum(sample.value for sample in family.samples if sample.name.endswith("_total"))
        return counters


def tried(terminal: Terminal, clients: Clients, version: int, name: str, hypothesis: str, digests: Sequence[str]) -> None:
    """Shadow one version of the registry, then ramp it against what the tier means until that is decided."""
    terminal.types(f"server.experiments shadow start {TIER} {version} --share 1")
    time.sleep(2)  # the service looks every second
    clients.ask(SHADOWED, "flexi_candidate_images")
    time.sleep(2)  # events reach the registry within a second
    terminal.types(f"server.experiments shadow report {TIER}")
    terminal.types(f"server.experiments shadow stop {TIER}")
    file = terminal.folder / f"{name}.json"
    file.write_text(json.dumps(declaration(name, digests, hypothesis)), encoding="utf-8")
    terminal.types(f"server.experiments declare {file.name}")
    terminal.types(f"server.experiments start {name}")
    for _ in range(0, LONGEST, STAGE):
        time.sleep(2)
        clients.ask(STAGE)
        time.sleep(2)
        if terminal.look(name):
            return
    raise FlexiError(f"{name} was not decided within {LONGEST} requests")


def main() -> None:
    """Publish three schedules, serve the first, and try the other two one after the other."""
    ref = ModelRef(name=MODEL.name, family="unet2d-condition", fingerprint=Folder(MODEL.folder).fingerprint())
    solver = Solver(name="ddim", teacher_steps=STEPS, spacing="trailing")
    documents = [Schedule(model=ref, solver=solver, segments=segments) for segments in SCHEDULES.values()]
    with TemporaryDirectory() as made:
        folder = Path(made)
        terminal = Terminal(folder)
        for note, document in zip(SCHEDULES, documents, strict=True):
            file = folder / f"{note.replace(' ', '-')}.json"
            file.write_bytes(document.document())
            terminal.types(f'registry publish {file.name} -m "{note}"')
        terminal.types(f"registry promote {TIER} 1")
        settings = {
            "FLEXI_MODEL": str(MODEL.folder), "FLEXI_TEACHER_STEPS": str(STEPS), "FLEXI_WATCH_SECONDS": "1",
            "FLEXI_REGISTRY": str(folder / "registry"), "FLEXI_STATE": str(folder / "state"), "FLEXI_SHADOW_SHARE": "1",
        }  # fmt: skip
        with serving(settings, folder / "server.log") as address:
            clients = Clients(address)
            first, second, third = (document.digest for document in documents)
            tried(
                terminal,
                clients,
                2,
                "partial-steps",
                "Partial steps between the full ones keep more of the teacher's image.",
                (first, second),
            )
            tried(terminal, clients, 3, "two-steps", "Nobody needs more than two steps.", (second, third))
            terminal.types(f"registry history {TIER}")
            terminal.types("registry audit")


if __name__ == "__main__":
    run_command(main)

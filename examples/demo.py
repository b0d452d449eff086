"""make demo: search, publish, serve, generate. Everything real, on the bundled model, in a few minutes on two cores."""

from __future__ import annotations

import base64
import io
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from examples.launch import serving
from registry.commands.display import computed_steps

matplotlib.use("agg")

MODEL = Path("models/emoji64")
REGISTRY = Path(".flexi/registry")
OUT = Path("demo")
PROMPTS = ("tiger face", "hamburger", "strawberry", "penguin")
SEED = 7
SEARCH = ("--seed", 1, "--budget", 0, "--generations", 3, "--population", 24, "--select", 16, "--finals", 16, "--heldout", 24)
USERS = 480  # of the experiment; the report wants 200 in each arm
REPEATS = 3  # latency is the median of so many requests

console = Console(width=None if sys.stdout.isatty() else 110)
ImageResult = NDArray[np.uint8]


def main() -> None:
    """Run the five acts and leave pictures, answers and a summary in demo/."""
    started = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    say(f"1. Search: schedules for {MODEL.name}, each judged by its images against the unaccelerated teacher's")
    search = ("run", "--model", MODEL, "--prompts", MODEL / "prompts.txt", "--out", OUT / "run", *SEARCH)
    command("search_jobs", *search)
    say("2. Publish: four tiers and the teacher, content-addressed, into the registry")
    command("search_jobs", "publish", OUT / "run", "--registry", REGISTRY)
    shutil.copy(OUT / "run" / "pareto.png", OUT / "pareto.png")
    shutil.copy(OUT / "run" / "samples.png", OUT / "heldout-samples.png")
    say("3. Serve: one BentoML service, every tier of it in one process")
    settings = {"FLEXI_MODEL": str(MODEL), "FLEXI_REGISTRY": str(REGISTRY), "FLEXI_WATCH_SECONDS": "1"}
    settings |= {"FLEXI_SHADOW_SHARE": "0.2", "FLEXI_FEATURES": str(MODEL / "clip")}  # sampled images against the teacher's
    with serving(settings, OUT / "server.log") as address, httpx.Client(base_url=address, timeout=300) as client:
        console.print(f"ready at {address}")
        say(f'4. Generate: "{PROMPTS[0]}", seed {SEED}, by every tier')
        answers = {tier: ask(client, tier) for tier in tiers(client)}
        write_answers(answers)
        show(answers)
        show_metrics(client.get("/metrics").text)
        say("5. Experiment: may a cheaper schedule become `fast`? Half of the users get it, and the report decides")
        experiment(client)
    console.print(f"\n{sum(1 for _ in OUT.rglob('*.png'))} pictures and summary.json in {OUT}/: see {OUT}/tiers.png first.")
    console.print(f"Done in {(time.monotonic() - started) / 60:.1f} minutes. `make serve` keeps a service running.")


def command(*words: object) -> None:
    """Run one of the project's commands as a user would."""
    line = [sys.executable, "-m", *map(str, words)]
    console.print("$ python -m " + " ".join(map(str, words)), style="dim", highlight=False, soft_wrap=True)
    done = subprocess.run(line, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def tiers(client: httpx.Client) -> list[str]:
    """The tiers in force, the dearest first."""
    offered = client.get("/v1/tiers").raise_for_status().json()["tiers"]
    return [tier["tier"] for tier in sorted(offered, key=lambda tier: -tier["relative_cost"])]


def ask(client: httpx.Client, tier: str) -> list[dict[str, Any]]:
    """The answers of one tier: the first prompt REPEATS times for the latency, then the other prompts once."""
    answers = []
    for prompt in [PROMPTS[0]] * REPEATS + list(PROMPTS[1:]):
        begun = time.perf_counter()
        reply = client.post("/generate", json={"prompt": prompt, "tier": tier, "seed": SEED})
        elapsed = 1000 * (time.perf_counter() - begun)
        answers.append({**reply.raise_for_status().json(), "prompt": prompt, "latency_ms": round(elapsed, 1)})
    return answers


def write_answers(answers: dict[str, list[dict[str, Any]]]) -> None:
    """tiers.png, one JSON answer per tier, summary.json."""
    pictures = {tier: [decode(a["images"][0]) for a in own[REPEATS - 1 :]] for tier, own in answers.items()}
    figure = Figure(figsize=(1.9 * len(pictures), 1.9 * len(PROMPTS) + 0.5), layout="constrained")
    axes = figure.subplots(len(PROMPTS), len(pictures), squeeze=False)
    for column, (tier, images) in enumerate(pictures.items()):
        for row, image in enumerate(images):
            axes[row][column].imshow(image, interpolation="nearest")
            axes[row][column].set(xticks=[], yticks=[])
        relative = answers[tier][0]["relative_cost"]
        axes[0][column].set_title(f"{tier}\n{relative:.3f} of the MACs", fontsize=9)
    for row, prompt in enumerate(PROMPTS):
        axes[row][0].set_ylabel(prompt, fontsize=9)
    figure.savefig(OUT / "tiers.png", dpi=120)

    summary: dict[str, Any] = {"model": answers["reference"][0]["model"], "tiers": {}}
    summary["teacher_steps"] = sum(answers["reference"][0]["steps"].values())
    for tier, own in answers.items():
        first = own[0]
        (OUT / f"answer-{tier}.json").write_text(json.dumps(first, indent=1) + "\n")
        summary["tiers"][tier] = {
            "digest": first["schedule"],
            "version": first["version"],
            "steps": first["steps"],
            "macs": first["macs_per_image"],
            "relative_cost": first["relative_cost"],
            "latency_ms": statistics.median(a["latency_ms"] for a in own[:REPEATS]),
            "psnr": psnr(pictures[tier], pictures["reference"]),
        }
    (OUT / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


def show(answers: dict[str, list[dict[str, Any]]]) -> None:
    """The table of summary.json."""
    summary = json.loads((OUT / "summary.json").read_text())
    table = Table(title=f"{summary['model']}: every tier, the same prompts and seed", title_justify="left")
    for name in (
        "tier",
        "version",
        "computed steps\n(full+partial)",
        "MACs an image",
        "of the teacher",
        "latency",
        "PSNR to reference",
    ):
        table.add_column(name, justify="left" if name == "tier" else "right")
    for tier, row in summary["tiers"].items():
        steps, quality = row["steps"], row["psnr"]
        table.add_row(
            tier,
            str(row["version"]),
            computed_steps(steps, summary["teacher_steps"]),
            f"{row['macs'] / 1e9:.2f} G",
            f"{row['relative_cost']:.3f}",
            f"{row['latency_ms']:.0f} ms",
            "the reference" if quality is None else f"{quality:.1f} dB",
        )
    console.print(table)
    served = sum(len(own) for own in answers.values())
    console.print(
        f"Latency: median of {REPEATS} requests of one image, one at a time, here; PSNR over {len(PROMPTS)} prompts; "
        f"{served} images served."
    )


def show_metrics(text: str) -> None:
    """What Prometheus would scrape: latency and MACs."""
    say("What /metrics says: latency and MACs")
    wanted = ("flexi_request_seconds_count", "flexi_request_seconds_sum", "flexi_macs_total")
    for line in text.splitlines():
        if line.startswith(wanted):
            console.print(line, highlight=False, soft_wrap=True)


def experiment(client: httpx.Client) -> None:
    """Declare, start, serve USERS users, report, stop. Each run is a new experiment, as a declaration never changes."""
    digests = {tier["tier"]: tier["digest"] for tier in client.get("/v1/tiers").json()["tiers"]}
    name = f"demo-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    declaration = {
        "name": name,
        "version": 1,
        "hypothesis": "draft's schedule in the place of fast's: at least 5 % fewer MACs, and no more errors",
        "tier": "fast",
        "arms": [
            {"name": "control", "digest": digests["fast"], "weight": 1},
            {"name": "cheaper", "digest": digests["draft"], "weight": 1},
        ],
        "control": "control",
        "salt": name,
        "ramp": [{"share": 100}],
        "primary": {"metric": "macs", "minimal_effect": 0.05},
        "guardrails": [{"metric": "errors", "compare": "difference", "limit": 0.05}],
        "minimum_units": 200,
        "maximum_units": 100_000,
        "end": "2099-01-01T00:00:00Z",
    }
    file = OUT / "experiment.json"
    file.write_text(json.dumps(declaration, indent=1) + "\n")
    command("server.experiments", "declare", file, "--registry", REGISTRY)
    command("server.experiments", "start", name, "--registry", REGISTRY)
    while name not in [each["name"] for each in client.get("/v1/experiments").json()["experiments"]]:
        time.sleep(0.2)
    with ThreadPoolExecutor(8) as crowd:
        arms = Counter(crowd.map(lambda user: visit(client, user), range(USERS)))
    console.print(f"{USERS} users served: " + ", ".join(f"{count} by {arm}" for arm, count in sorted(arms.items())))
    wait_for_fidelity(client)
    command("server.experiments", "report", name, "--registry", REGISTRY)
    command("server.experiments", "stop", name, "--registry", REGISTRY, "--reason", "the demo is over")


def wait_for_fidelity(client: httpx.Client, patience: float = 90.0) -> None:
    """Now that nobody asks, the teacher makes the last sampled images again; events are in the registry soon after."""
    until = time.monotonic() + patience
    counted = [f'flexi_fidelity_psnr_count{{arm="{arm}",tier="fast"}}' for arm in ("control", "cheaper")]
    while time.monotonic() < until and not all(line in client.get("/metrics").text for line in counted):
        time.sleep(1)
    time.sleep(8)


def visit(client: httpx.Client, user: int) -> str:
    """One user's image; which arm made it."""
    body = {"prompt": PROMPTS[user % len(PROMPTS)], "tier": "fast", "seed": user, "unit": f"user-{user}"}
    return str(client.post("/generate", json=body).raise_for_status().json()["arm"])


def psnr(images: list[ImageResult], reference: list[ImageResult]) -> float | None:
    """PSNR in dB of the mean squared error over all pixels; None where nothing differs."""
    error = np.mean((np.stack(images).astype(float) - np.stack(reference).astype(float)) ** 2)
    return None if error == 0 else round(float(10 * np.log10(255**2 / error)), 2)


def decode(image: str) -> ImageResult:
    """A base64 PNG to pixels (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB"))


def say(text: str) -> None:
    """A heading."""
    console.print(f"\n[bold]{text}[/bold]", highlight=False)


if __name__ == "__main__":
    main()

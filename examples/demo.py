"""make demo: search, publish, serve, generate. Everything real, on a bundled model, in a few minutes on two cores."""

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
from collections.abc import Mapping, Sequence
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

from evaluation import bundled
from examples.launch import FOR_SMALL_MODELS, serving
from models.bundled import BUNDLED, DEFAULT, BundledModel
from registry.commands.command_line import argument_parser, run_program
from registry.commands.display import COMPUTED_STEPS, computed_steps
from registry.stores.address import DEFAULT_ADDRESS

matplotlib.use("agg")

REGISTRY = Path(DEFAULT_ADDRESS)
OUT = Path("demo")
# Schedules share UNet calls (`--together`): nobody resumes this run, so their last digits may depend on company.
SEARCH = (
    "--seed", 1, "--budget", 0, "--generations", 1, "--screen", 3, "--images", 8, "--select", 12, "--finals", 16,
    "--heldout", 24, "--scaled", 8, "--together", 32, "--batch", 16,
)  # fmt: skip
USERS, FEWEST = 480, 200  # of the experiment, and those that the report wants in each arm
PLAYGROUND = "http://127.0.0.1:3000/"
REPEATS = 3  # latency is the median of so many requests

console = Console(width=None if sys.stdout.isatty() else 110)
Pixels = NDArray[np.uint8]  # (H, W, 3)
Answer = dict[str, Any]  # of POST /generate, with the prompt and the latency


def main() -> None:
    """Run the five acts and leave pictures, answers and a summary in demo/."""
    parser = argument_parser(__doc__)
    parser.add_argument("--model", choices=BUNDLED, default=DEFAULT)
    model = BUNDLED[parser.parse_args().model]
    started = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    search(model)
    publish()
    say("3. Serve: one BentoML service, every tier of it in one process")
    settings = {"FLEXI_MODEL": str(model.folder), "FLEXI_REGISTRY": str(REGISTRY), "FLEXI_WATCH_SECONDS": "1"}
    settings |= FOR_SMALL_MODELS | {
        "FLEXI_SHADOW_SHARE": "0.2",
        "FLEXI_FEATURES": str(bundled(model.folder)),
    }  # sampled images against the teacher's
    with serving(settings, OUT / "server.log") as address, httpx.Client(base_url=address, timeout=300) as client:
        console.print(f"ready at {address}")
        generate(client, model)
        show_metrics(client.get("/metrics").text)
        experiment(client, model)
    console.print(f"\n{sum(1 for _ in OUT.rglob('*.png'))} pictures and summary.json in {OUT}/: see {OUT}/tiers.png first.")
    console.print(f"Done in {(time.monotonic() - started) / 60:.1f} minutes. `make serve` keeps a service running:")
    console.print(f"the playground is then at {PLAYGROUND}, and the API's document at {PLAYGROUND}docs.json.")


def search(model: BundledModel) -> None:
    """Search schedules for a bundled model."""
    say(f"1. Search: schedules for {model.name}, each judged by its images against the unaccelerated teacher's")
    scales = [word for scale in model.scales for word in ("--scale", scale)]
    command("search_jobs", "run", *model.search_options(), "--out", OUT / "run", *SEARCH, *scales)
    shutil.copy(OUT / "run" / "pareto.png", OUT / "pareto.png")
    shutil.copy(OUT / "run" / "samples.png", OUT / "heldout-samples.png")


def publish() -> None:
    """Publish the tiers that the search found, and the teacher."""
    say("2. Publish: four tiers and the teacher, content-addressed, into the registry")
    command("search_jobs", "publish", OUT / "run", "--registry", REGISTRY)


def generate(client: httpx.Client, model: BundledModel) -> None:
    """Ask every tier for the same images; leave and show what they cost, how long they took, and how close they are."""
    requests = model.requests()
    say(f'4. Generate: "{requests[0]["prompt"]}", seed {requests[0]["seed"]}, with every tier')
    answers = {tier: ask(client, tier, requests) for tier in tiers(client)}
    pictures = {}
    for tier, of_tier in answers.items():
        write_json(f"answer-{tier}.json", of_tier[0])
        pictures[tier] = [decode(answer["images"][0]) for answer in of_tier[REPEATS - 1 :]]  # one a prompt
    draw(answers, pictures)
    summary = summarise(answers, pictures)
    write_json("summary.json", summary)
    show(summary)


def command(*words: object) -> None:
    """Run one of the project's commands as a user would."""
    arguments = list(map(str, words))
    console.print("$ python -m " + " ".join(arguments), style="dim", highlight=False, soft_wrap=True)
    if exit_code := subprocess.run([sys.executable, "-m", *arguments], check=False).returncode:
        sys.exit(exit_code)


def tiers(client: httpx.Client) -> list[str]:
    """The tiers in force, the dearest first."""
    offered = client.get("/v1/tiers").raise_for_status().json()["tiers"]
    return [tier["tier"] for tier in sorted(offered, key=lambda tier: -tier["relative_cost"])]


def ask(client: httpx.Client, tier: str, requests: Sequence[Mapping[str, object]]) -> list[Answer]:
    """The answers of one tier: the first request REPEATS times for the latency, then the others once."""
    answers = []
    for request in [requests[0]] * REPEATS + list(requests[1:]):
        begun = time.perf_counter()
        reply = client.post("/generate", json={**request, "tier": tier})
        elapsed = 1000 * (time.perf_counter() - begun)
        answers.append({**reply.raise_for_status().json(), "prompt": request["prompt"], "latency_ms": round(elapsed, 1)})
    return answers


def draw(answers: Mapping[str, Sequence[Answer]], pictures: Mapping[str, Sequence[Pixels]]) -> None:
    """Write tiers.png: a column per tier, a line per prompt."""
    prompts = [answer["prompt"] for answer in next(iter(answers.values()))[REPEATS - 1 :]]
    figure = Figure(figsize=(1.9 * len(pictures), 1.9 * len(prompts) + 0.5), layout="constrained")
    axes = figure.subplots(len(prompts), len(pictures), squeeze=False)
    for column, (tier, images) in zip(axes.T, pictures.items(), strict=True):
        for cell, image in zip(column, images, strict=True):
            cell.imshow(image, interpolation="nearest")
            cell.set(xticks=[], yticks=[])
        column[0].set_title(f"{tier}\n{answers[tier][0]['relative_cost']:.3f} of the MACs", fontsize=9)
    for cell, prompt in zip(axes[:, 0], prompts, strict=True):
        cell.set_ylabel(prompt, fontsize=9)
    figure.savefig(OUT / "tiers.png", dpi=120)


def summarise(answers: Mapping[str, Sequence[Answer]], pictures: Mapping[str, Sequence[Pixels]]) -> dict[str, Any]:
    """The content of summary.json: for each tier what its answers say, its latency, and how close it is to the reference."""
    first = {tier: of_tier[0] for tier, of_tier in answers.items()}
    return {
        "model": first["reference"]["model"],
        "tiers": {
            tier: {
                "digest": answer["schedule"],
                "version": answer["version"],
                "steps": answer["steps"],
                "macs": answer["macs_per_image"],
                "relative_cost": answer["relative_cost"],
                "latency_ms": statistics.median(repeat["latency_ms"] for repeat in answers[tier][:REPEATS]),
                "psnr": psnr(pictures[tier], pictures["reference"]),
            }
            for tier, answer in first.items()
        },
        "teacher_steps": sum(first["reference"]["steps"].values()),
        "pictures": len(pictures["reference"]),
    }


def show(summary: Mapping[str, Any]) -> None:
    """Print the summary as a table."""
    table = Table(title=f"{summary['model']}: every tier, the same prompts and seed", title_justify="left")
    table.add_column("tier")
    for name in ("version", COMPUTED_STEPS, "MACs an image", "of the teacher", "latency", "PSNR to reference"):
        table.add_column(name, justify="right")
    for name, tier in summary["tiers"].items():
        table.add_row(
            name,
            str(tier["version"]),
            computed_steps(tier["steps"], summary["teacher_steps"]),
            f"{tier['macs'] / 1e9:.2f} G",
            f"{tier['relative_cost']:.3f}",
            f"{tier['latency_ms']:.0f} ms",
            "the reference" if tier["psnr"] is None else f"{tier['psnr']:.1f} dB",
        )
    console.print(table)
    console.print(
        f"Latency: median of {REPEATS} requests of one image, one at a time, here; PSNR over {summary['pictures']} pictures; "
        f"{len(summary['tiers']) * (REPEATS + summary['pictures'] - 1)} images served."
    )


def show_metrics(text: str) -> None:
    """Print what Prometheus would scrape of latency and MACs."""
    say("What /metrics says: latency and MACs")
    wanted = ("flexi_request_seconds_count", "flexi_request_seconds_sum", "flexi_macs_total")
    for line in text.splitlines():
        if line.startswith(wanted):
            console.print(line, highlight=False, soft_wrap=True)


def experiment(client: httpx.Client, model: BundledModel) -> None:
    """Declare, start, serve USERS users, report, stop. Each run is a new experiment, as a declaration never changes."""
    say("5. Experiment: may a cheaper schedule become `fast`? Half of the users get it, and the report decides")
    digests = {tier["tier"]: tier["digest"] for tier in client.get("/v1/tiers").json()["tiers"]}
    name = f"demo-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    declaration = declared(name, control=digests["fast"], cheaper=digests["draft"])
    place = ("--registry", REGISTRY, "--model", model.name)  # the registry may hold other demos' schedules
    command("server.experiments", "declare", write_json("experiment.json", declaration), *place)
    command("server.experiments", "start", name, *place)
    while name not in [running["name"] for running in client.get("/v1/experiments").json()["experiments"]]:
        time.sleep(0.2)
    with ThreadPoolExecutor(8) as crowd:
        arms = Counter(crowd.map(lambda user: visit(client, model, user), range(USERS)))
    console.print(f"{USERS} users served: " + ", ".join(f"{count} by {arm}" for arm, count in sorted(arms.items())))
    wait_for_fidelity(client)
    command("server.experiments", "report", name, *place)
    command("server.experiments", "stop", name, *place, "--reason", "the demo is over")


def declared(name: str, control: str, cheaper: str) -> dict[str, Any]:
    """The experiment's declaration, of two schedules' digests."""
    return {
        "name": name,
        "version": 1,
        "hypothesis": "draft's schedule in the place of fast's: at least 5 % fewer MACs, and no more errors",
        "tier": "fast",
        "arms": [
            {"name": "control", "digest": control, "weight": 1},
            {"name": "cheaper", "digest": cheaper, "weight": 1},
        ],
        "control": "control",
        "salt": name,
        "ramp": [{"share": 100}],
        "primary": {"metric": "macs", "minimal_effect": 0.05},
        "guardrails": [{"metric": "errors", "compare": "difference", "limit": 0.05}],
        "minimum_units": FEWEST,
        "maximum_units": 100_000,
        "end": "2099-01-01T00:00:00Z",
    }


def wait_for_fidelity(client: httpx.Client, patience: float = 90.0) -> None:
    """Now that nobody asks, the teacher makes the last sampled images again; events are in the registry soon after."""
    until = time.monotonic() + patience
    counted = [f'flexi_fidelity_psnr_count{{arm="{arm}",tier="fast"}}' for arm in ("control", "cheaper")]
    while time.monotonic() < until and not all(line in client.get("/metrics").text for line in counted):
        time.sleep(1)
    time.sleep(6)  # events are sent every 5 s


def visit(client: httpx.Client, model: BundledModel, user: int) -> str:
    """Ask for a user's image. Returns the arm that made it."""
    body = {"prompt": model.prompts[user % len(model.prompts)], "tier": "fast", "seed": user, "unit": f"user-{user}"}
    return str(client.post("/generate", json=body).raise_for_status().json()["arm"])


def psnr(images: Sequence[Pixels], reference: Sequence[Pixels]) -> float | None:
    """PSNR in dB of the mean squared error over all pixels; None where nothing differs."""
    error = np.mean((np.stack(images).astype(float) - np.stack(reference).astype(float)) ** 2)
    return None if error == 0 else round(float(10 * np.log10(255**2 / error)), 2)


def decode(image: str) -> Pixels:
    """A base64 PNG to pixels (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB"))


def write_json(name: str, value: object) -> Path:
    """Write a JSON file into the demo's folder."""
    file = OUT / name
    file.write_text(json.dumps(value, indent=1) + "\n")
    return file


def say(text: str) -> None:
    """Print a heading."""
    console.print(f"\n[bold]{text}[/bold]", highlight=False)


if __name__ == "__main__":
    run_program(main)

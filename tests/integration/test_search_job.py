"""A whole search, small, on a tiny Stable Diffusion with random weights: killed, resumed, published, resolved."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import model_folders
import psutil
import pytest
from click.testing import Result
from typer.testing import CliRunner

from registry.catalog import Catalog
from registry.schedule import Schedule
from registry.stores.folder import FolderStore
from search_jobs.__main__ import app
from search_jobs.results import held_scales

PROMPTS = ["red heart", "cat face", "tomato", "sunflower " * 20]  # the last one is longer than the model reads
IMAGES = ("--screen", "2", "--images", "2", "--select", "2", "--finals", "2", "--heldout", "2")
SMALL = ("--teacher-steps", "6", *IMAGES, "--generations", "2", "--population", "4", "--guidance", "3")
ELSEWHERE = ("--scale", "1", "--scale", "7.5", "--scaled", "2", "--size", "16x16", "--size", "8x16")
TIERS = ("--tier", "best=0.7", "--tier", "fast=0.4", "--budget", "0")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_config: Mapping[str, Any]) -> Path:
    """Of every run here: what is trained would be searched no otherwise, only longer."""
    return model_folders.sd(tmp_path_factory.mktemp("model") / "tiny", tiny_config)


def arguments(model: Path, folder: Path, elsewhere: tuple[str, ...] = ELSEWHERE) -> list[str]:
    """elsewhere: where else than at the search's own guidance and size the tiers are measured."""
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    line = ["run", "--model", str(model), "--prompts", str(prompts), "--features", "models/emoji64/clip"]
    return [*line, "--out", str(folder), *SMALL, *elsewhere, *TIERS]


def command(model: Path, folder: Path) -> list[str]:
    """For a process of its own, to be killed."""
    return [sys.executable, "-m", "search_jobs", *arguments(model, folder)]


def here(*line: str, code: int = 0) -> Result:
    """What the command prints, in this process: another one would spend longer on importing torch than on a search."""
    ended = CliRunner().invoke(app, line)
    assert ended.exit_code == code, ended.output
    return ended


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = subprocess.run(command(model, folder), check=True, capture_output=True, text=True)
    (folder.parent / "stderr.txt").write_text(ended.stderr)
    (folder.parent / "stdout.txt").write_text(ended.stdout)
    return folder


def read(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def test_the_report_holds_tiers_within_their_ceilings_no_worse_than_any_baseline(finished: Path) -> None:
    report = read(finished)
    assert set(report["tiers"]) == {"best", "fast"}
    for tier in report["tiers"].values():
        assert tier["held-out"]["cost"] <= tier["ceiling"]
        rivals = [e for e in report["by_hand"] if e["ceiling"] == tier["ceiling"]][:2]  # the best two on the search's images
        assert tier["finals"]["loss"] <= min(e["finals"]["loss"] for e in rivals)
        assert tier["strongest_baseline"]["finals"]["loss"] == min(e["finals"]["loss"] for e in rivals)
        low, high = tier["held-out"]["intervals"]["rfid"]
        assert low <= high
    digests = [e["digest"] for e in report["evaluated"]]
    assert len(set(digests)) == len(digests)


def test_what_was_chosen_has_corrections_and_figures_at_every_scale_that_was_asked_for(finished: Path) -> None:
    tiers = [tier for tier in read(finished)["tiers"].values() if not tier["baseline"]]
    assert tiers, "the search found something"
    for tier in tiers:
        schedule = Schedule.model_validate(tier["schedule"])
        assert schedule.scaled_corrections is not None
        assert [fitted.guidance for fitted in schedule.scaled_corrections] == [1.0, 3.0, 7.5]
        assert len({fitted.corrections for fitted in schedule.scaled_corrections}) == 3, "each scale has its own"
        assert schedule.validated is not None
        held = held_scales(3.0, tier["by_guidance"])
        assert (schedule.validated.guidance, schedule.validated.default_guidance) == (
            tuple(held),
            3.0 if held != [3.0] else None,
        )
        assert [at["guidance"] for at in tier["by_guidance"]] == [1.0, 7.5]
        assert {at["held-out"]["images"] for at in tier["by_guidance"]} == {2}
    assert "rFID at other guidance scales, 2 held-out images" in (finished.parent / "stdout.txt").read_text()


def test_what_was_chosen_has_figures_at_every_size_and_says_that_it_was_measured_there(finished: Path) -> None:
    for tier in read(finished)["tiers"].values():
        (at,) = tier["by_size"]
        assert (at["size"], at["held-out"]["images"], at["strongest_baseline"]["images"]) == ("8x16", 2, 2)
        assert at["held-out"]["macs"] < 0.6 * tier["held-out"]["macs"], "half the pixels"
        schedule = Schedule.model_validate(tier["schedule"])
        assert schedule.validated is not None
        assert schedule.validated.sizes == ((16, 16), (16, 8))
        assert schedule.cost is not None
        assert schedule.cost.macs == tier["held-out"]["macs"], "that of the model's own size"


def test_a_prompt_that_the_model_cuts_is_told_of_at_the_start_and_in_the_report(finished: Path) -> None:
    assert read(finished)["prompts"] == {"prompts": 4, "cut": 1, "tokens": 16}
    said = (finished.parent / "stderr.txt").read_text()
    assert "1 of 4 prompts are longer than the 16 tokens that the model reads" in said.split("generation")[0]
    assert "4; 1 of them cut after 16 tokens" in (finished / "report.html").read_text()


def test_every_image_and_mac_is_accounted_for(finished: Path) -> None:
    report, lines = read(finished), [json.loads(line) for line in (finished / "ledger.jsonl").read_text().splitlines()]
    spent = report["spent"]["stages"]
    assert sum(stage["schedules"] for stage in spent.values()) == len(lines)
    tried = 0
    for line in lines:
        measure, taken, fits = line["measure"], line["spent"], line["task"].startswith("search") and "/fitted/" in line["task"]
        beyond = taken["run"] + taken["shared"] - measure["images"] * measure["macs"]
        assert beyond >= 0 if fits else beyond == 0, "planned is run or shared, and only extrapolations are tried beside"
        tried += beyond > 0
    assert tried
    assert sum(stage["macs_shared"] for stage in spent.values()) > 0
    searched = [line for line in lines if " at " not in line["task"]]  # other guidance scales come after the search
    fitted = [line for line in searched if "/fitted/" in line["task"] or line["task"].startswith("select/")]
    assert report["spent"]["search_images"] == sum(line["measure"]["images"] for line in fitted)
    macs = sum(line["spent"]["run"] for line in fitted)
    assert report["spent"]["macs_per_front_point"] == macs // report["spent"]["front_points"], "baselines are not the search"


def test_images_a_second_are_said_part_by_part_and_reported_stage_by_stage(finished: Path) -> None:
    report, said = read(finished), (finished.parent / "stderr.txt").read_text()
    for part in ("teacher, screen", "generation 1", "by hand, screen", "finals", "held-out"):
        (rate,) = re.findall(rf"^{part}: (\S+) images/s$", said, re.MULTILINE)
        assert float(rate) > 0
    assert report["throughput"].keys() == report["spent"]["stages"].keys()
    for stage, made in report["throughput"].items():
        spent = report["spent"]["stages"][stage]
        assert made["images"] == spent["images"]
        assert made["images_per_second"] == pytest.approx(made["images"] / made["seconds"], rel=0.01)
        assert made["macs_per_second"] == pytest.approx(spent["macs"] / made["seconds"], rel=0.01)
    words = " ".join((finished.parent / "stdout.txt").read_text().split())
    assert re.search(r"images a second: screen \S+, search \S+, .*; \S+ .MACs of the UNet a second", words)


def test_it_leaves_pictures_of_the_front_and_of_each_tier(finished: Path) -> None:
    for name in ("pareto.png", "samples.png", "samples-best.png", "samples-fast.png", "strips.png", "progress.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    assert "<html" in (finished / "report.html").read_text()


def test_a_search_that_was_killed_ends_where_an_undisturbed_one_ends(model: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(command(model, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ledger = folder / "ledger.jsonl"
    while not (ledger.is_file() and len(ledger.read_text().splitlines()) >= 5):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = ledger.read_text().splitlines()

    here(*arguments(model, folder))
    report = read(folder)
    assert ledger.read_text().splitlines()[: len(kept) - 1] == kept[:-1]  # nothing measured is measured again
    undisturbed = read(finished)
    assert report["front"] == undisturbed["front"]
    assert [e["digest"] for e in report["evaluated"]] == [e["digest"] for e in undisturbed["evaluated"]]
    assert len(ledger.read_text().splitlines()) == len((finished / "ledger.jsonl").read_text().splitlines())


def test_ctrl_c_ends_the_search_and_leaves_what_it_found(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    line = [*arguments(model, folder, ()), "--generations", "1000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "search_jobs", *line], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    ledger = folder / "ledger.jsonl"
    # Into the generation after the baselines: only whole generations count.
    while not (ledger.is_file() and "screen/fitted/" in ledger.read_text().partition("select/")[2]):
        assert process.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 0
    report = read(folder)
    assert set(report["tiers"]) == {"best", "fast"}
    assert len(report["evaluated"]) < 1000


def test_workers_find_what_one_process_finds_even_if_one_is_killed(model: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [*command(model, folder), "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    ledger = folder / "ledger.jsonl"
    while not (ledger.is_file() and len(ledger.read_text().splitlines()) >= 3):
        assert process.poll() is None, "it ended before a worker could be killed"
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[-1].kill()
    assert process.wait(timeout=500) == 0
    undisturbed, report = read(finished), read(folder)
    assert report["front"] == undisturbed["front"]
    assert [e["digest"] for e in report["evaluated"]] == [e["digest"] for e in undisturbed["evaluated"]]


def test_compare_holds_the_search_against_every_kind_of_baseline(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    document = json.loads(here("compare", str(folder), "--budget", "0.4", "--json").stdout)
    assert [entry["relative"] for entry in document["budgets"]] == [0.4]
    for entry in document["budgets"]:
        assert set(entry["baselines"]) >= {"fewer-step ddim", "fewer-step dpmsolver++", "cached fewer-step dpmsolver++"}
        for schedule in (entry["searched"], *entry["baselines"].values()):
            assert schedule["cost"] <= entry["relative"]
            assert {"rfid", "psnr", "clip_score", "intervals"} <= schedule.keys()
            assert schedule["images"] == 2
    assert json.loads((folder / "compare.json").read_text()) == document


def test_a_folder_of_another_configuration_is_refused_and_left_alone(model: Path, finished: Path) -> None:
    before = (finished / "config.json").read_bytes()
    assert "another configuration" in here(*arguments(model, finished), "--seed", "9", code=1).stderr
    assert (finished / "config.json").read_bytes() == before


def test_what_is_published_is_what_the_registry_resolves(finished: Path, tmp_path: Path) -> None:
    for _ in range(2):  # publishing twice changes nothing
        here("publish", str(finished), "--registry", str(tmp_path / "registry"))
    catalog = Catalog(FolderStore(tmp_path / "registry"), "tiny")
    report = read(finished)
    for name, tier in report["tiers"].items():
        schedule = catalog.resolve(name).schedule
        assert schedule.digest == tier["digest"]
        assert schedule.provenance is not None
        assert schedule.provenance["searched_schedules"] == len(report["evaluated"])
        assert schedule.fidelity is not None
        assert schedule.fidelity.images == 2
        assert len(catalog.history(name)) == 1
    assert catalog.resolve("reference").schedule.counts() == {"full": 6, "partial": 0, "null": 0}

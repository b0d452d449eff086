"""A whole search on the bundled model, small: killed, resumed, published, resolved."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from registry.catalog import Catalog
from registry.folder import FolderStore

PROMPTS = ["red heart", "cat face", "tomato", "sunflower"]
SMALL = ("--teacher-steps", "12", "--images", "2", "--finals", "2", "--heldout", "2", "--generations", "2", "--population", "3")
TIERS = ("--tier", "best=0.8", "--tier", "fast=0.5")


def command(folder: Path) -> list[str]:
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    line = [sys.executable, "-m", "search_jobs", "run", "--model", "models/emoji64", "--prompts", str(prompts)]
    return [*line, "--out", str(folder), *SMALL, *TIERS]


def run(folder: Path) -> dict[str, Any]:
    subprocess.run(command(folder), check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run(folder)
    return folder


def read(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def test_the_report_holds_tiers_within_their_ceilings_no_worse_than_any_baseline(finished: Path) -> None:
    report = read(finished)
    assert set(report["tiers"]) == {"best", "fast"}
    for tier in report["tiers"].values():
        assert tier["search"]["cost"] <= tier["ceiling"]
        affordable = [e for e in report["evaluated"] if e["search"]["cost"] <= tier["ceiling"] and e["baseline"]]
        rivals = [e for e in affordable if "finals" in e]
        assert len(rivals) >= 2
        assert tier["finals"]["loss"] <= min(e["finals"]["loss"] for e in rivals)
    assert len({e["digest"] for e in report["evaluated"]}) == len(report["evaluated"])


def test_it_leaves_pictures_of_the_front_and_of_each_tier(finished: Path) -> None:
    for name in ("pareto.png", "samples.png", "samples-best.png", "samples-fast.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")


def test_a_search_that_was_killed_ends_where_an_undisturbed_one_ends(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ledger = folder / "ledger.jsonl"
    while not (ledger.is_file() and len(ledger.read_text().splitlines()) >= 5):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = ledger.read_text().splitlines()

    report = run(folder)
    assert ledger.read_text().splitlines()[: len(kept) - 1] == kept[:-1]  # nothing measured is measured again
    undisturbed = read(finished)
    assert report["front"] == undisturbed["front"]
    assert [e["digest"] for e in report["evaluated"]] == [e["digest"] for e in undisturbed["evaluated"]]
    assert len(ledger.read_text().splitlines()) == len((finished / "ledger.jsonl").read_text().splitlines())


def test_a_folder_of_another_configuration_is_refused_and_left_alone(finished: Path) -> None:
    before = (finished / "config.json").read_bytes()
    done = subprocess.run([*command(finished), "--seed", "9"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "another configuration" in done.stderr
    assert (finished / "config.json").read_bytes() == before


def test_what_is_published_is_what_the_registry_resolves(finished: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "search_jobs", "publish", str(finished), "--registry", str(tmp_path / "registry")]
    for _ in range(2):  # publishing twice changes nothing
        subprocess.run(line, check=True, capture_output=True)
    catalog = Catalog(FolderStore(tmp_path / "registry"), "emoji64")
    report = read(finished)
    for name, tier in report["tiers"].items():
        schedule = catalog.resolve(name).schedule
        assert schedule.digest == tier["digest"]
        assert schedule.provenance is not None
        assert schedule.provenance["searched_schedules"] == len(report["evaluated"])
        assert schedule.fidelity is not None
        assert schedule.fidelity.images == 2
        assert len(catalog.history(name)) == 1
    assert catalog.resolve("reference").schedule.counts() == {"full": 12, "partial": 0, "null": 0}

"""How many time series a server exports, by how many models and tiers it serves."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx

from examples.launch import serving
from loadtests.mixes import MODEL, mixes
from registry.catalog import Catalog
from registry.stores.address import open_store

FEWEST_REQUESTS = 2  # of each tier


def exported(folder: Path, models: int, tiers: int) -> int:
    """Of one worker that has answered requests of every tier of every model.

    The models are all the bundled one, under names of their own.
    """
    schedules, names = list(mixes()["partial"].schedules.values()), [f"model-{number}" for number in range(models)]
    registry = str(folder / "registry")
    for name in names:
        catalog = Catalog(open_store(registry), name, author="loadtests")
        named = [one.model_copy(update={"model": one.model.model_copy(update={"name": name})}) for one in schedules]
        digests = [catalog.publish(schedule).digest for schedule in named]
        for number in range(tiers):
            catalog.promote(f"tier-{number}", digests[number % 2])
    folders = [shutil.copytree(MODEL, folder / name) for name in names]  # a server refuses one that is there twice
    settings = {
        "FLEXI_MODELS": ",".join(f"{name}={place}" for name, place in zip(names, folders, strict=True)),
        "FLEXI_REGISTRY": registry,
        "FLEXI_STATE": str(folder / "state"), "FLEXI_ALLOW_ANONYMOUS": "true", "FLEXI_COMPILE": "false",
    }  # fmt: skip
    with serving(settings, folder / "server.log") as address:
        for name in names:
            for number in range(tiers):
                request = {"prompt": "red heart", "model": name, "tier": f"tier-{number}"}
                for seed in range(FEWEST_REQUESTS):
                    httpx.post(f"{address}/generate", json=request | {"seed": seed}, timeout=300).raise_for_status()
        page = httpx.get(f"{address}/metrics").raise_for_status().text
    return sum(1 for line in page.splitlines() if line and not line.startswith("#"))

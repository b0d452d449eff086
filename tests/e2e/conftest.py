"""One real `bentoml serve` for the whole session."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import chromium_running
from playwright.sync_api import Browser
from served import ALIASES, LORAS, MODEL, ORIGIN, OTHER_SIZE, PATIENCE, SETTINGS, publish

from examples.launch import serving
from registry.catalog import Catalog
from registry.schedule import Schedule
from registry.stores.address import open_store


@dataclass(frozen=True)
class Server:
    """A running server, its registry and its log."""

    address: str
    catalog: Catalog
    schedules: dict[str, Schedule]
    log: Path

    def requests(self, request_id: str) -> list[dict[str, Any]]:
        """The log's lines about one request; the first comes a moment after the answer."""
        for _ in range(100):
            lines = [
                json.loads(line)
                for line in self.log.read_text().splitlines(keepends=True)
                if line.startswith("{") and line.endswith("}\n")
            ]
            if own := [line for line in lines if line.get("request_id") == request_id]:
                return own
            time.sleep(0.1)
        return []


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server; tests may add tiers of their own, but none may move the four of `served.tiers`.

    Its model lies where a container would mount it, under a name that no schedule says, beside a file that nobody reads.
    """
    folder = tmp_path_factory.mktemp("server")
    store, log = open_store(str(folder / "registry")), folder / "server.log"
    schedules = publish(store)
    model = shutil.copytree(MODEL, folder / "Model (mounted)", ignore=shutil.ignore_patterns(".fingerprint.json*"))
    (model / "unet" / ".DS_Store").write_bytes(b"\0")
    own = {"FLEXI_REGISTRY": str(folder / "registry"), "FLEXI_STATE": str(folder / "state"), "FLEXI_MODEL": str(model)}
    own["BENTOML_HOME"] = str(folder / "bentoml")  # which the start of another server clears of our metrics
    own |= {"FLEXI_MODEL_ALIASES": ",".join(ALIASES), "FLEXI_CORS_ORIGINS": ORIGIN, "FLEXI_SIZES": OTHER_SIZE}
    own |= {"FLEXI_LORAS": str(LORAS)}
    with serving(SETTINGS | own, log, patience=PATIENCE) as address:
        yield Server(address, Catalog(store, "emoji64"), schedules, log)


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """An HTTP client of it."""
    with httpx.Client(base_url=server.address, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser, for one module: no other test shall find its event loop."""
    with chromium_running() as browser:
        yield browser

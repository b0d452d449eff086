"""The experiments' command line on a registry folder, and what servers would have left there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments import DECLARATION, outcome
from schedule_strategies import MODEL, schedule
from typer.testing import CliRunner, Result

from registry.catalog import Catalog
from registry.experiments.catalog import ExperimentCatalog
from registry.stores.address import open_store
from server.experiments import events
from server.experiments.__main__ import app
from server.experiments.events import Event, stream
from server.experiments.outbox.outbox import today

NAME = DECLARATION["name"]
SCHEDULES = {"control": schedule(5), "cheaper": schedule()}


class Shell:
    """Runs commands on one registry folder, in which the tier `balanced` means control."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, str(folder / "registry")
        self.catalog = Catalog(open_store(self.address), MODEL.name, author="ada")
        for one in SCHEDULES.values():
            self.catalog.publish(one)
        self.catalog.promote("balanced", SCHEDULES["control"].digest)
        self.experiments = ExperimentCatalog(self.catalog.store, MODEL.name)

    def run(self, *arguments: str, code: int = 0, cli: Any = app) -> Result:
        result = CliRunner().invoke(cli, arguments, env={"FLEXI_REGISTRY": self.address, "COLUMNS": "160"})
        assert result.exit_code == code, result.output
        return result

    def fails(self, *arguments: str) -> str:
        """The one line on stderr."""
        stderr = self.run(*arguments, code=1).stderr
        assert stderr.startswith("error: ")
        assert stderr.count("\n") == 1
        return stderr

    def file(self, **changes: Any) -> str:
        arms = [{"name": name, "digest": one.digest, "weight": 1} for name, one in SCHEDULES.items()]
        path = self.folder / "declaration.json"
        path.write_text(json.dumps(DECLARATION | {"arms": arms, "end": "2999-01-01T00:00:00Z"} | changes))
        return str(path)

    def running(self, **changes: Any) -> None:
        self.run("declare", self.file(**changes))
        self.run("start", NAME)

    def saw(self, units: dict[str, int], **changes: Any) -> None:
        """Let so many units of each arm have come, one request each."""
        self.keep([outcome(i, arm, i, **changes) for i, arm in enumerate(arm for arm, n in units.items() for _ in range(n))])

    def keep(self, outcomes: list[Event]) -> None:
        """Store events as a server does, filed under today."""
        key = f"{MODEL.name}/{stream(NAME)}/{today()}/{len(list(self.catalog.store.list(MODEL.name))):08d}.jsonl"
        self.catalog.store.create(key, events.write(outcomes))

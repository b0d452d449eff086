"""An experiment by hand, events of it, and the death of who records them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from registry.experiments.declaration import Experiment
from server.experiments.events import OutcomeEvent
from server.experiments.recorder import Recorder

START = datetime(2030, 1, 1, tzinfo=UTC)
CONTROL, CHEAPER = "0" * 64, "1" * 64
DECLARATION: dict[str, Any] = {
    "name": "fewer-full-steps",
    "version": 1,
    "hypothesis": "Nobody sees the difference, and it takes a tenth less.",
    "tier": "balanced",
    "arms": [{"name": "control", "digest": CONTROL, "weight": 1}, {"name": "cheaper", "digest": CHEAPER, "weight": 1}],
    "control": "control",
    "salt": "fewer-full-steps",
    "ramp": [{"share": 1, "minutes": 30}, {"share": 5, "units": 100}, {"share": 25}, {"share": 50}],
    "primary": {"metric": "service_seconds", "minimal_effect": 0.05},
    "maximum_units": 100_000,
    "end": "2030-02-01T00:00:00Z",
}


def experiment(**changes: Any) -> Experiment:
    """The declaration above with other fields."""
    return Experiment.model_validate(DECLARATION | changes)


def outcome(request: int, arm: str, unit: int, /, **changes: Any) -> OutcomeEvent:
    """A request of the experiment that went well."""
    fields: dict[str, Any] = {
        "time": START + timedelta(seconds=request), "request_id": f"r{request}", "enrolment": "enrolled",
        "experiment": "fewer-full-steps", "version": 1, "arm": arm, "unit": f"{unit:032x}", "tier": "balanced",
        "digest": CONTROL if arm == "control" else CHEAPER, "outcome": "ok", "queue_seconds": 0.1, "service_seconds": 1.0,
        "macs_planned": 100, "macs_executed": 100, "unet_rows": 1, "steps_planned": 10, "steps_executed": 10,
    }  # fmt: skip
    return OutcomeEvent.model_validate(fields | changes)


def let_die(recorder: Recorder) -> None:
    """As if its process had been killed: the lock of its folder is given back, and nothing else happens."""
    outbox = recorder._outbox
    assert outbox, "it has a folder"
    outbox._folder.close()

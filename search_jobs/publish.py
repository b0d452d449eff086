"""From a finished search into the registry: the schedules, their artifacts, and the tiers that point at them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from registry.catalog import Catalog
from registry.records import Alias
from registry.schedule import Schedule
from registry.signing import SigningKey

ARTIFACTS = ("report.json", "report.html", "pareto.png", "samples.png", "strips.png")


def artifacts(folder: Path) -> list[Path]:
    """The files of a run to publish beside its schedules; a run whose pictures were never drawn has only its document."""
    return [folder / name for name in ARTIFACTS if (folder / name).is_file()]


def publish(report: dict[str, Any], artifacts: Sequence[Path], catalog: Catalog, key: SigningKey | None = None) -> list[Alias]:
    """Publish every tier's schedule and `reference`, the teacher, and move the tiers to them. Returns the aliases.

    With a key each schedule is signed before its tier moves.

    Artifacts are create-only and belong to a digest: where an earlier run made the same schedule, the first ones stay.
    """
    job = report["provenance"]["job"]
    wanted = {name: tier["schedule"] for name, tier in report["tiers"].items()}
    wanted["reference"] = report["teacher"]["schedule"]
    aliases = []
    for tier, document in wanted.items():
        schedule = Schedule.model_validate(document)
        version = catalog.publish(schedule, note=f"{tier} of search job {job}")
        if key:
            catalog.sign(schedule, key)
        for file in artifacts if tier != "reference" else ():
            catalog.attach(schedule.digest, file.name, file.read_bytes())
        aliases.append(catalog.promote(tier, version.number, reason=f"search job {job}"))
    return aliases

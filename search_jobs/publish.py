"""From a finished search into the registry: the schedules, their artifacts, and the tiers that point at them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from registry.catalog import Catalog
from registry.errors import Conflict, InvalidInput, NeedsApproval, NotFound
from registry.records import Version
from registry.schedule import Schedule
from registry.signing import SigningKey
from search_jobs.config import WORST

RECENT = 1000  # versions among which one is looked for that was made before: each is a read
ARTIFACTS = ("report.json", "report.html", "pareto.png", "samples.png", "strips.png")


def artifacts(folder: Path) -> list[Path]:
    """The files of a run to publish beside its schedules; a run whose pictures were never drawn has only its document."""
    return [folder / name for name in ARTIFACTS if (folder / name).is_file()]


class SearchedTier(NamedTuple):
    """A tier of a search, and the version that it means now; `promoted` is false while that takes a second person."""

    tier: str
    version: Version
    promoted: bool


def publish(
    report: dict[str, Any], artifacts: Sequence[Path], catalog: Catalog, key: SigningKey | None = None
) -> list[SearchedTier]:
    """Publish every tier's schedule and `reference`, the teacher, then move the tiers to them, but those that a policy guards.

    With a key each schedule is signed before any tier moves. To publish a search again makes no further version.

    Artifacts are create-only and belong to a digest: where an earlier run made the same schedule, the first ones stay.
    Raises `InvalidInput` where a tier's schedule made images that are not finite, and, with a key, `Conflict` where one was
    published with another description that this key has not signed; nothing is published then.
    """
    job = report["provenance"]["job"]
    documents = {name: tier["schedule"] for name, tier in report["tiers"].items()} | {
        "reference": report["teacher"]["schedule"]
    }
    wanted = {tier: Schedule.model_validate(document) for tier, document in documents.items()}
    for tier, schedule in wanted.items():
        if schedule.fidelity and schedule.fidelity.rfid == WORST:
            raise InvalidInput(f"a held-out image of tier {tier} is not finite, so nothing is published", param="run")
        if key and _described_otherwise(catalog, schedule) and not catalog.is_signed(schedule.digest, key):
            raise Conflict(
                f"{schedule.digest[:8]}, tier {tier}, was published with another description: look at it, sign that one "
                f"(python -m registry sign {schedule.digest[:8]} --key KEY.pem), and publish again",
                param="sign",
            )
    versions = dict[str, Version]()
    for tier, schedule in wanted.items():
        versions[tier] = _published(catalog, schedule, note=f"{tier} of search job {job}")
        if key and not catalog.is_signed(schedule.digest, key):
            catalog.sign(schedule, key)
        for file in artifacts if tier != "reference" else ():
            catalog.attach(schedule.digest, file.name, file.read_bytes())
    return [SearchedTier(tier, version, _promote(catalog, tier, version, job)) for tier, version in versions.items()]


def _described_otherwise(catalog: Catalog, schedule: Schedule) -> bool:
    """Whether the same behaviour is kept with another cost, fidelity or provenance, as another search found it."""
    try:
        return catalog.schedule(schedule.digest) != schedule
    except NotFound:
        return False


def _published(catalog: Catalog, schedule: Schedule, note: str) -> Version:
    """The version that this search made of the schedule before, where it did; else what publishing it gives.

    What another search had described would get one more version each time.
    """
    if _described_otherwise(catalog, schedule):
        for version in reversed(catalog.versions(RECENT)):
            if (version.digest, version.note) == (schedule.digest, note):
                return version
    return catalog.publish(schedule, note=note)


def _promote(catalog: Catalog, tier: str, version: Version, job: str) -> bool:
    try:
        catalog.promote(tier, version.number, reason=f"search job {job}")
    except NeedsApproval:
        return False
    return True

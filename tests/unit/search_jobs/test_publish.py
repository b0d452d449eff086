"""From a report into a registry."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from memory_store import MemoryStore
from schedule_strategies import schedule

from registry.catalog import Catalog
from registry.errors import InvalidInput
from registry.schedule import Fidelity, Schedule
from registry.signing import SigningKey, TrustedKeys
from search_jobs.config import WORST
from search_jobs.publish import publish


def test_a_tier_whose_images_are_not_finite_is_not_published_nor_is_any_other() -> None:
    fine, ruined = schedule(5), schedule(3, 6)
    ruined = ruined.model_copy(update={"fidelity": Fidelity(rfid=WORST, psnr=0.0, images=4)})
    report = {
        "provenance": {"job": "1"},
        "tiers": {"fast": {"schedule": json.loads(fine.document())}, "best": {"schedule": ruined.model_dump(mode="json")}},
        "teacher": {"schedule": json.loads(schedule(steps=5).document())},
    }
    store = MemoryStore()
    with pytest.raises(InvalidInput, match="a held-out image of tier best is not finite, so nothing is published"):
        publish(report, [], Catalog(store, "emoji64", author="test"))
    assert list(store.list("")) == []


def test_with_a_key_all_that_is_published_is_signed() -> None:
    def entry(one: Schedule) -> dict[str, Any]:
        return {"schedule": json.loads(one.document())}

    report = {
        "provenance": {"job": "1"},
        "tiers": {"fast": entry(schedule(5)), "best": entry(schedule(3, 6))},
        "teacher": entry(schedule(steps=5)),
    }
    store, private = MemoryStore(), Ed25519PrivateKey.generate()
    key = SigningKey(private)
    for _ in range(2):  # publishing twice changes nothing
        publish(report, [], Catalog(store, "emoji64", author="test"), key)
    careful = Catalog(store, "emoji64", trusted=TrustedKeys({key.id: private.public_key()}))
    assert [careful.resolve(tier).version for tier in ("fast", "best", "reference")] == [1, 2, 3]

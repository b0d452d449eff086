"""From a report into a registry."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from memory_store import MemoryStore
from places import ROOT
from schedule_strategies import schedule
from typer.testing import CliRunner

from registry.catalog import Catalog
from registry.errors import Conflict, InvalidInput
from registry.schedule import Fidelity, Schedule
from registry.signing import SigningKey, TrustedKeys
from search_jobs.__main__ import app
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


REPORT = {
    "provenance": {"job": "1"},
    "model": {"name": "emoji64"},
    "tiers": {
        name: {"schedule": json.loads(made.document())} for name, made in (("best", schedule(5)), ("fast", schedule(3, 6)))
    },
    "teacher": {"schedule": json.loads(schedule(steps=5).document())},
}


def test_a_tier_that_takes_a_second_person_is_published_and_the_others_are_moved() -> None:
    catalog = Catalog(MemoryStore(), "emoji64", author="test", approved_tiers=["best"])
    done = publish(REPORT, [], catalog)
    moved = [(one.tier, one.version.number, one.promoted) for one in done]
    assert moved == [("best", 1, False), ("fast", 2, True), ("reference", 3, True)]
    assert (catalog.tiers(), [version.number for version in catalog.versions()]) == (["fast", "reference"], [1, 2, 3])


def test_the_command_prints_what_requests_the_promotion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXI_APPROVED_TIERS", "best")
    monkeypatch.setattr("search_jobs.report.read", lambda folder: SimpleNamespace(report=REPORT))
    done = CliRunner().invoke(app, ["publish", str(tmp_path), "--registry", str(tmp_path / "registry")])
    assert done.exit_code == 0, done.output
    assert "it takes a second person: python -m registry promote best 1\n" in done.output
    assert "promote fast" not in done.output


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


@pytest.mark.parametrize("signed", [False, True])
def test_what_another_search_found_and_described_is_published_once_by_each(signed: bool) -> None:
    """Two searches may choose the same schedule, such as one set by hand; what is kept is the first one's description."""
    other = json.loads(json.dumps(REPORT)) | {"provenance": {"job": "2"}}
    other["tiers"]["fast"]["schedule"]["provenance"] = {"job": "2"}
    catalog, key = Catalog(MemoryStore(), "emoji64", author="test"), SigningKey(Ed25519PrivateKey.generate())
    publish(REPORT, [], catalog)
    if signed:
        with pytest.raises(Conflict, match=r"tier fast, was published with another description") as refused:
            publish(other, [], catalog, key)
        assert len(catalog.versions()) == 3, "nothing of it was published"
        (ref,) = re.findall(r"registry sign (\w+) --key", str(refused.value))
        catalog.sign(catalog.resolve(ref).schedule, key)  # as the error says
    done = publish(other, [], catalog, key if signed else None)
    assert {one.tier: one.version.number for one in done}["fast"] == 4, "an act of its own"
    moves = {tier: len(catalog.history(tier)) for tier in catalog.tiers()}
    assert publish(other, [], catalog, key if signed else None) == done
    assert (len(catalog.versions()), {tier: len(catalog.history(tier)) for tier in catalog.tiers()}) == (4, moves)
    if signed:
        assert all(catalog.is_signed(one.version.digest, key) for one in done)


def test_a_tier_that_waits_for_a_second_person_gets_no_version_each_time_it_is_published() -> None:
    other = json.loads(json.dumps(REPORT)) | {"provenance": {"job": "2"}}
    other["tiers"]["fast"]["schedule"]["provenance"] = {"job": "2"}
    catalog = Catalog(MemoryStore(), "emoji64", author="test", approved_tiers=["fast"])
    publish(REPORT, [], catalog)
    done = publish(other, [], catalog)
    assert [one.promoted for one in done if one.tier == "fast"] == [False]
    assert publish(other, [], catalog) == done


def test_reports_are_read_and_published_without_torch() -> None:
    code = "import sys, search_jobs.__main__, search_jobs.publish, search_jobs.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)

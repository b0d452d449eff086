"""The load tests' own arithmetic: limits that break, books that balance, faults of a soak."""

import copy
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from places import ROOT

from loadtests.check import check
from loadtests.client_stats import ClientStats, jain
from loadtests.mixes import TIERS
from loadtests.run import read_stats
from loadtests.soak_record import SoakRecord

LIMITS = json.loads((ROOT / "loadtests" / "limits.json").read_text())


def kept():
    """Statistics that keep every profile's limits."""
    stats = ClientStats()
    for name in (*TIERS, "control", "treatment"):
        for user in range(4):
            for _ in range(20):
                stats.answered(name, user, 50.0 if name == "draft" else 100.0, 7)
    return stats


def enrolled(**units):
    """Statistics that keep the profile `arms`, with so many units in each arm."""
    stats = kept()
    for arm, count in units.items():
        for unit in range(count):
            assert stats.assigned(f"{arm}-{unit}", arm)
    return stats


@pytest.mark.parametrize("profile", LIMITS)
def test_a_good_result_keeps_every_profiles_limits(profile):
    stats = enrolled(**dict.fromkeys(LIMITS[profile].get("arms", {}), 30))
    assert check(stats.result(sum(stats.billed.values())), LIMITS[profile]) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda result: result["names"]["draft"].update(failed=1000), "failed: a share"),
        (lambda result: result["names"]["draft"].update(refused=1000), "refused: a share"),
        (lambda result: result["names"]["draft"].update(p95_ms=1e6), "p95 of draft"),
        (lambda result: result["names"].pop("reference"), "never answered"),
        (lambda result: result.update(fairness=0.1), "fairness"),
        (lambda result: result.update(exported_macs=result["billed_macs"] + 1), "+1 MACs were exported and not billed"),
        (lambda result: result.update(exported_macs=result["billed_macs"] - 1), "-1 MACs were exported and not billed"),
    ],
)
def test_each_limit_can_be_broken(spoil, said):
    stats = kept()
    result = copy.deepcopy(stats.result(sum(stats.billed.values())))
    spoil(result)
    assert any(said in line for line in check(result, LIMITS["mixed"]))


def test_abandoned_work_bounds_what_is_exported_and_not_billed():
    stats = kept()
    stats.abandoned["reference"] = 10
    billed, share = sum(stats.billed.values()), LIMITS["abandonment"]["max_unbilled_share"]
    assert check(stats.result(billed + int(10 * 7 * share)), LIMITS["abandonment"]) == []
    assert check(stats.result(billed + 10 * 7), LIMITS["abandonment"])


def test_an_abandoned_request_of_a_name_that_was_never_answered_costs_what_its_tier_does() -> None:
    stats = ClientStats()
    stats.answered("draft", 1, 5.0, 10)
    stats.abandoned["best"] += 2
    assert stats.result(0.0, {"draft": 0.1, "best": 0.5})["abandoned_macs"] == 2 * 50


@pytest.mark.parametrize(
    ("units", "said"),
    [
        ({"control": 36, "treatment": 24}, []),
        ({"control": 50, "treatment": 10}, ["units by arm"]),
        ({"control": 60}, ["units were in the arms ['control']"]),
        ({"control": 30, "treatment": 30, "None": 1}, ["units were in the arms ['None', 'control', 'treatment']"]),
    ],
)
def test_units_follow_the_weights_of_their_arms(units, said):
    stats = enrolled(**units)
    broken = check(stats.result(sum(stats.billed.values())), LIMITS["arms"])
    assert len(broken) == len(said)
    assert all(line.startswith(beginning) for line, beginning in zip(broken, said, strict=True))


def test_a_unit_stays_in_its_arm():
    stats = enrolled(control=1)
    assert stats.assigned("control-0", "control")
    assert not stats.assigned("control-0", "treatment")


def test_statistics_survive_being_written(tmp_path):
    stats = enrolled(control=3, treatment=4)
    (tmp_path / "client_stats.json").write_text(json.dumps(vars(stats)))
    assert read_stats(tmp_path / "client_stats.json").result(0.0) == stats.result(0.0)


def test_jains_index_is_one_for_equals_and_one_nth_for_a_monopoly():
    assert jain([3, 3, 3, 3]) == 1
    assert jain([5, 0, 0, 0, 0]) == pytest.approx(0.2)


def grey(level):
    return np.full((2, 2, 3), level, np.uint8)


def steady_record():
    record = SoakRecord(resident=[100] * 100, moves=1, outages=1, moved_away=1)
    record.statuses["waits", 200] = 20
    record.streamed(Counter({"image_generation.partial_image": 2, "image_generation.completed": 1}), 1)
    record.alone("a cat", grey(100), grey(100))
    record.drawn("a cat", grey(100))
    record.drawn("a cat", grey(101))
    return record


def test_a_soak_without_fault_has_none():
    record = steady_record()
    assert record.answered("waits", 200, None)
    assert not record.answered("waits", 503, "5")
    assert record.answered("talks nonsense", 404, None, expected=404)
    assert record.verdict() == []


def refused(record, times):
    for _ in range(times):
        record.answered("waits", 503, "5")


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (lambda record: record.answered("waits", 500, None), "status 500"),
        (lambda record: record.answered("waits", 503, None), "Retry-After None"),
        (lambda record: record.answered("talks nonsense", 200, None, expected=400), "status 200 where 400"),
        (lambda record: record.drawn("a cat", grey(98)), "2 levels"),
        (lambda record: record.resident.extend([103] * 100), "memory grew by 3.00%"),
        (lambda record: record.resident.clear(), "not seen for long enough"),
        (lambda record: setattr(record, "outages", 0), "no outages"),
        (lambda record: setattr(record, "moved_away", 0), "no streams left in the middle"),
        (lambda record: setattr(record, "streams", 0), "no streams:"),
        (lambda record: setattr(record, "previews", 0), "no previews"),
        (lambda record: setattr(record, "pairs", 0), "no requests alone"),
        (lambda record: refused(record, 3), "waits: 87.0% of the requests were served"),
        (lambda record: record.statuses.clear(), "waits: 0.0% of the requests were served"),
        (lambda record: record.streamed(Counter({"image_generation.completed": 1}), 2), "a stream of 2 images ended after"),
        (lambda record: record.streamed(Counter({"image_generation.completed": 1, "error": 1}), 1), "a stream of 1 images"),
        (lambda record: record.alone("a cat", grey(100), grey(101)), "asked alone, an image is not the same twice: a cat"),
    ],
)
def test_each_fault_of_a_soak_is_told(happens, said):
    record = steady_record()
    happens(record)
    assert any(said in line for line in record.verdict())


def test_what_drives_a_service_starts_without_torch():
    code = "import sys, loadtests.run, loadtests.soak; sys.exit(any(m in sys.modules for m in ('torch', 'scipy')))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

"""The load tests' own arithmetic: limits that break, books that balance, limits of the fluid."""

import copy
import json
from collections import Counter

import numpy as np
import pytest
from places import ROOT

from loadtests.check import check
from loadtests.clients import Tally
from loadtests.fluid import Fluid
from loadtests.ledger import Ledger, jain
from loadtests.mixes import TIERS, WEIGHTS
from loadtests.run import read_ledger
from loadtests.simulated import call_seconds
from loadtests.standings import faults, goals, standing, table
from loadtests.witness import Witness

LIMITS = json.loads((ROOT / "loadtests" / "limits.json").read_text())


def kept():
    """A ledger that keeps every profile's limits."""
    ledger = Ledger()
    for name in (*TIERS, "control", "treatment"):
        for user in range(4):
            for _ in range(20):
                ledger.answered(name, user, 50.0 if name == "draft" else 100.0, 7)
    return ledger


def enrolled(**units):
    """A ledger that keeps the profile `arms`, with so many units in each arm."""
    ledger = kept()
    for arm, count in units.items():
        for unit in range(count):
            assert ledger.assigned(f"{arm}-{unit}", arm)
    return ledger


@pytest.mark.parametrize("profile", LIMITS)
def test_a_good_result_keeps_every_profiles_limits(profile):
    ledger = enrolled(**dict.fromkeys(LIMITS[profile].get("arms", {}), 30))
    assert check(ledger.result(sum(ledger.billed.values())), LIMITS[profile]) == []


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
    ledger = kept()
    result = copy.deepcopy(ledger.result(sum(ledger.billed.values())))
    spoil(result)
    assert any(said in line for line in check(result, LIMITS["mixed"]))


def test_abandoned_work_bounds_what_is_exported_and_not_billed():
    ledger = kept()
    ledger.abandoned["reference"] = 10
    billed, share = sum(ledger.billed.values()), LIMITS["abandonment"]["max_unbilled_share"]
    assert check(ledger.result(billed + int(10 * 7 * share)), LIMITS["abandonment"]) == []
    assert check(ledger.result(billed + 10 * 7), LIMITS["abandonment"])


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
    ledger = enrolled(**units)
    broken = check(ledger.result(sum(ledger.billed.values())), LIMITS["arms"])
    assert len(broken) == len(said)
    assert all(line.startswith(beginning) for line, beginning in zip(broken, said, strict=True))


def test_a_unit_stays_in_its_arm():
    ledger = enrolled(control=1)
    assert ledger.assigned("control-0", "control")
    assert not ledger.assigned("control-0", "treatment")


def test_a_ledger_survives_being_written(tmp_path):
    ledger = enrolled(control=3, treatment=4)
    (tmp_path / "ledger.json").write_text(json.dumps(vars(ledger)))
    assert read_ledger(tmp_path / "ledger.json").result(0.0) == ledger.result(0.0)


def test_jains_index_is_one_for_equals_and_one_nth_for_a_monopoly():
    assert jain([3, 3, 3, 3]) == 1
    assert jain([5, 0, 0, 0, 0]) == pytest.approx(0.2)


@pytest.mark.parametrize("clients", [1, 8, 16, 64])
def test_a_perfect_scheduler_is_at_the_fluid_limit_and_has_its_fair_share(clients):
    """All clients of one tier advance together, in calls of at most 16 rows: simulated by hand."""
    fluid = Fluid(clients, 16, dict.fromkeys(TIERS, 10.0))
    calls = [16] * (clients // 16) + [clients % 16] * (clients % 16 > 0)
    seconds = 10 * sum(map(call_seconds, calls))
    tally = Tally(seconds, {"draft": [seconds] * clients, "balanced": [], "reference": []})
    assert tally.rate / fluid.rate(tally) == pytest.approx(1)
    assert fluid.fair_seconds("draft") == pytest.approx(seconds)


def test_goals_are_judged_for_each_number_of_clients_and_shown():
    fluid = Fluid(16, 16, {"draft": 10.0, "balanced": 20.0, "reference": 50.0})
    best = Tally(1.0, {tier: [0.1] * weight for tier, weight in zip(TIERS, WEIGHTS, strict=True)})
    slow = Tally(1.0, {"draft": [1.0], "balanced": [1.0], "reference": [1.0]})
    rows = [standing("batcher", 16, slow, best.rate, fluid), standing("ours", 16, best, best.rate, fluid)]
    judged = {goal["what"]: goal["kept"] for goal in goals(rows)}
    assert judged == {
        "requests/s over those of batcher": True,
        "p50 of draft over that of batcher": True,
        "of the fluid limit": False,
        "p95 of reference over its fair share": True,
    }
    shown = table({"device": "SIMULATION", "mix": "fewer", "max_rows": 16, "rows": rows, "goals": goals(rows)})
    assert "SIMULATION" in shown
    assert shown.count("MISSED") == 1


def test_an_error_of_any_server_misses_a_goal():
    """Here the batcher fails a request, which makes ours look better than it is."""
    tally = {tier: [1.0] for tier in TIERS}
    rows = [
        standing(name, clients, Tally(1.0, tally, errors), 3.0, None)
        for name, clients, errors in (("batcher", 8, 0), ("ours", 8, 0), ("batcher", 16, 1), ("ours", 16, 0))
    ]
    assert [(goal["clients"], goal["kept"]) for goal in faults(rows)] == [(8, True), (16, False)]
    shown = table({"device": "CPU", "mix": "fewer", "max_rows": 16, "rows": rows, "goals": faults(rows)})
    assert shown.count("MISSED") == 1


def grey(level):
    return np.full((2, 2, 3), level, np.uint8)


def steady_witness():
    witness = Witness(resident=[100] * 100, moves=1, outages=1, moved_away=1)
    witness.statuses["waits", 200] = 20
    witness.streamed(Counter({"image_generation.partial_image": 2, "image_generation.completed": 1}), 1)
    witness.alone("a cat", grey(100), grey(100))
    witness.drawn("a cat", grey(100))
    witness.drawn("a cat", grey(101))
    return witness


def test_a_soak_without_fault_has_none():
    witness = steady_witness()
    assert witness.answered("waits", 200, None)
    assert not witness.answered("waits", 503, "5")
    assert witness.answered("talks nonsense", 404, None, expected=404)
    assert witness.verdict() == []


def refused(witness, times):
    for _ in range(times):
        witness.answered("waits", 503, "5")


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (lambda witness: witness.answered("waits", 500, None), "status 500"),
        (lambda witness: witness.answered("waits", 503, None), "Retry-After None"),
        (lambda witness: witness.answered("talks nonsense", 200, None, expected=400), "status 200 where 400"),
        (lambda witness: witness.drawn("a cat", grey(98)), "2 levels"),
        (lambda witness: witness.resident.extend([103] * 100), "memory grew by 3.00%"),
        (lambda witness: witness.resident.clear(), "not seen for long enough"),
        (lambda witness: setattr(witness, "outages", 0), "no outages"),
        (lambda witness: setattr(witness, "moved_away", 0), "no streams left in the middle"),
        (lambda witness: setattr(witness, "streams", 0), "no streams:"),
        (lambda witness: setattr(witness, "previews", 0), "no previews"),
        (lambda witness: setattr(witness, "pairs", 0), "no requests alone"),
        (lambda witness: refused(witness, 3), "waits: 87.0% of the requests were served"),
        (lambda witness: witness.statuses.clear(), "waits: 0.0% of the requests were served"),
        (lambda witness: witness.streamed(Counter({"image_generation.completed": 1}), 2), "a stream of 2 images ended after"),
        (lambda witness: witness.streamed(Counter({"image_generation.completed": 1, "error": 1}), 1), "a stream of 1 images"),
        (lambda witness: witness.alone("a cat", grey(100), grey(101)), "asked alone, an image is not the same twice: a cat"),
    ],
)
def test_each_fault_of_a_soak_is_told(happens, said):
    witness = steady_witness()
    happens(witness)
    assert any(said in line for line in witness.verdict())

"""The peers' judge: limits of the fluid, goals, servers that do not start, arguments that make no sense."""

from __future__ import annotations

import sys

import pytest

from loadtests import measured_card, peers
from loadtests.card import FULL, CallCost, Card
from loadtests.clients import Tally
from loadtests.contenders import Contender, contenders, running, unused_port
from loadtests.fluid import FluidLimit
from loadtests.h100 import CAPTURED
from loadtests.mixes import FEWER, TIERS, WEIGHTS, made, mixes
from loadtests.standings import device_goals, faults, goals, standing, standings, table
from registry.errors import InvalidInput
from registry.schedule import Segment
from server.config import Settings

STEPS = {tier: {FULL: steps} for tier, steps in FEWER.items()}
PLAIN = Card("", {FULL: CallCost({1: 17.0, 16: 32.0})}, CallCost({1: 1.0}))  # 16 + rows
SERVER = """
import http.server, sys
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Ready).serve_forever()
"""


@pytest.mark.parametrize("clients", [1, 4, 8, 32])
def test_a_perfect_scheduler_is_at_the_fluid_limit_and_has_its_fair_share(clients):
    """All clients of one tier advance together, in calls of at most 16 rows, two of each: simulated by hand."""
    fluid = FluidLimit(CAPTURED, clients, 16, 2, STEPS)
    calls = [8] * (clients // 8) + [clients % 8] * (clients % 8 > 0)
    full, decoding = CAPTURED.calls[FULL], CAPTURED.decoding
    seconds = sum(10 * full.seconds(2 * images) + decoding.seconds(images) for images in calls)
    tally = Tally(seconds, {"draft": [seconds] * clients, "balanced": [], "reference": []})
    assert tally.rate / fluid.rate(tally) == pytest.approx(1)
    assert fluid.fair_seconds("draft") == pytest.approx(seconds)


def test_the_fluid_limit_counts_each_kind_of_step_and_the_decoding_at_their_own_cost():
    card = Card("", {FULL: CallCost({2: 10.0, 4: 16.0}), 3: CallCost({2: 3.0, 4: 4.0}, host=5.0)}, CallCost({1: 7.0, 2: 9.0}))
    fluid = FluidLimit(card, clients=50, max_rows=4, unet_rows=2, steps={"draft": {FULL: 5, 3: 5}})
    assert fluid.image_seconds("draft") == pytest.approx((5 * 16 + 5 * 5 + 9) / 2 / 1000)


def test_a_mix_counts_its_steps_by_branch():
    both = mixes()
    assert both["fewer"].steps == STEPS
    assert both["partial"].steps == {"draft": {FULL: 5, 3: 5}, "balanced": {FULL: 10, 3: 10}, "reference": {FULL: 50}}


def test_the_mixes_of_the_bundled_model_are_the_same_loaded_or_not(model):
    for name, mix in mixes(model).items():
        assert {tier: schedule.digest for tier, schedule in mix.schedules.items()} == {
            tier: schedule.digest for tier, schedule in mixes()[name].schedules.items()
        }


def test_a_device_is_measured_for_every_kind_of_step_and_size(model, monkeypatch):
    monkeypatch.setattr(measured_card, "REPEATS", 1)
    card = measured_card.measured(model, made(2, Segment(partial=(1,), branch=3)), Settings(max_wave_rows=4))
    assert {branch: list(cost.device) for branch, cost in card.calls.items()} == {FULL: [2, 4], 3: [2, 4]}
    assert list(card.decoding.device) == [1, 2]
    assert min(time for cost in (*card.calls.values(), card.decoding) for time in cost.device.values()) > 0
    assert "partial s=3 2: " in card.about


def test_goals_are_judged_for_each_number_of_clients_and_shown():
    fluid = FluidLimit(PLAIN, 16, 16, 1, STEPS)
    best = Tally(1.0, {tier: [0.1] * weight for tier, weight in zip(TIERS, WEIGHTS, strict=True)})
    slow = Tally(1.0, {"draft": [1.0], "balanced": [1.0], "reference": [1.0]})
    rows = [standing("batcher", slow, best.rate, fluid), standing("ours", best, best.rate, fluid)]
    judged = {goal["what"]: goal["kept"] for goal in goals(rows)}
    assert judged == {
        "requests/s over those of batcher": True,
        "p50 of draft over that of batcher": True,
        "of the fluid limit": False,
        "p95 of reference over its fair share": True,
    }
    few = standing("ours", best, best.rate, FluidLimit(PLAIN, 15, 16, 1, STEPS))
    other = standing("batcher", slow, best.rate, FluidLimit(PLAIN, 15, 16, 1, STEPS))
    assert not any(goal["what"].startswith("requests/s") for goal in goals([few, other])), "calls were not full"
    shown = table({"device": "SIMULATION", "mix": "fewer", "max_rows": 16, "rows": rows, "goals": goals(rows)})
    assert "SIMULATION" in shown
    assert shown.count("MISSED") == 1


def test_an_error_of_any_server_misses_a_goal():
    """Here the batcher fails a request, which makes ours look better than it is."""
    tally = {tier: [1.0] for tier in TIERS}
    rows = [
        standing(name, Tally(1.0, tally, errors), 3.0, FluidLimit(PLAIN, clients, 16, 1, STEPS))
        for name, clients, errors in (("batcher", 8, 0), ("ours", 8, 0), ("batcher", 16, 1), ("ours", 16, 0))
    ]
    assert [(goal["clients"], goal["kept"]) for goal in faults(rows, {})] == [(8, True), (16, False)]
    shown = table({"device": "CPU", "mix": "fewer", "max_rows": 16, "rows": rows, "goals": faults(rows, {})})
    assert shown.count("MISSED") == 1


def test_a_server_that_did_not_start_misses_a_goal_and_is_named():
    rows = standings({"ours": Tally(1.0, {tier: [1.0] for tier in TIERS})}, FluidLimit(PLAIN, 8, 16, 1, STEPS))
    (errors, absent) = faults(rows, {"naive": "no memory"})
    assert (errors["kept"], absent["kept"]) == (True, False)
    assert "naive" in absent["what"]
    assert "no memory" in absent["what"]


def test_standings_show_whoever_was_asked_already():
    asked, waiting = Tally(1.0, {tier: [1.0] for tier in TIERS}), Tally()
    (row,) = standings({"naive": asked, "ours": waiting}, FluidLimit(PLAIN, 8, 16, 1, STEPS))
    assert row["server"] == "naive"
    assert row["ours_over_it"] is None


def test_a_server_that_stops_or_takes_too_long_is_reported_and_the_others_go_on(tmp_path):
    entrants = [
        Contender("well", ("-c", SERVER)),
        Contender("broken", ("-c", "raise SystemExit('no such card')")),
        Contender("late", ("-c", "import time; time.sleep(60)")),
    ]
    said = list[str]()
    with running(entrants, tmp_path, 5, said.append) as starts:
        assert starts["well"].fault is None
        assert "no such card" in (starts["broken"].fault or "")
        assert "not ready after 5 s" in (starts["late"].fault or "")
    assert sorted(line.split(":")[0] for line in said) == ["broken", "late", "well"]


def test_ports_are_none_that_outgoing_connections_get():
    assert {unused_port() < 32768 for _ in range(3)} == {True}


def test_all_servers_load_the_model_in_the_same_way(tmp_path):
    settings = {"FLEXI_MODEL": "folder", "FLEXI_DEVICE": "cuda", "FLEXI_DTYPE": "float16"}
    entrants = contenders("fewer", settings, False, tmp_path)
    assert [entrant.name for entrant in entrants] == ["naive", "batcher", "batcher, together", "ours"]
    for entrant in entrants:
        assert settings.items() <= entrant.environment.items()
    assert entrants[-1].command[-1] == "server.service:Flexiffusion"
    assert contenders("fewer", settings, True, tmp_path)[-1].command[-1] == "loadtests.simulated_service:Flexiffusion"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--simulated --device cuda", "device: belongs to --real"),
        ("--simulated eager --dtype float16", "dtype: belongs to --real"),
        ("--simulated --model models/emoji64", "model: belongs to --real"),
        ("--real --clients 0 4", r"clients: must be at least 1, got \[0, 4\]"),
        ("--real --max-rows 1", "max_rows: must be at least 2, got 1"),
        ("--real --seconds 0", "seconds: must be at least"),
        ("--real --rounds 0", "rounds: must be at least 1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["peers", *arguments.split()])
    with pytest.raises(InvalidInput, match=said):
        peers.parsed()


@pytest.mark.parametrize("arguments", ["", "--simulated --real", "--simulated paper", "--real --dtype int8"])
def test_arguments_that_are_none_are_wrong_usage(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peers", *arguments.split()])
    with pytest.raises(SystemExit, match="2"):
        peers.parsed()
    assert "usage" in capsys.readouterr().err


def test_what_is_simulated_can_be_chosen(monkeypatch):
    for arguments, expected in (("--simulated", "captured"), ("--simulated eager", "eager"), ("--real", None)):
        monkeypatch.setattr(sys, "argv", ["peers", *arguments.split()])
        assert peers.parsed().simulated == expected


def test_on_a_card_one_clients_latency_is_held_to_its_share_of_the_compiled_pipelines():
    fluid = FluidLimit(PLAIN, 1, 16, 2, STEPS)
    seconds = {tier: sum(STEPS[tier].values()) / 50 for tier in TIERS}
    naive = standing("naive", Tally(10.0, {"draft": [], "balanced": [], "reference": [1.0]}), 1.0, fluid)
    ours = standing("ours", Tally(10.0, {tier: [1.08 * seconds[tier]] for tier in TIERS}), 1.0, fluid)
    assert [goal["kept"] for goal in device_goals([naive, ours], STEPS)] == [True, True, False]
    full = standing(
        "ours", Tally(10.0, {"draft": [1.0], "balanced": [], "reference": []}), 1.0, FluidLimit(PLAIN, 16, 16, 2, STEPS)
    )
    assert [goal["what"] for goal in device_goals([full], STEPS)] == ["of the fluid limit"]

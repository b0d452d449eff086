"""A declaration says what is wrong with it, and a state moves only where it may."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest
from experiments import DECLARATION, START, experiment
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from examples import demo
from registry.errors import InvalidInput
from registry.experiments.declaration import MOVES, OVER, Action, Experiment, ExperimentState, Harm, transition

GUIDE = ROOT / "docs" / "experiments.md"
SAID: dict[str, Any] = {"time": START, "author": "ann", "host": "here", "reason": "because"}
ARMS = DECLARATION["arms"]
SPOILT: dict[str, dict[str, Any]] = {
    "control": {"control": "nobody"},
    "arms": {"arms": [ARMS[0], ARMS[1] | {"digest": ARMS[0]["digest"]}]},
    "arms.1.weight": {"arms": [ARMS[0], ARMS[1] | {"weight": 0}]},
    "ramp": {"ramp": [{"share": 5}, {"share": 5}]},
    "ramp.0.share": {"ramp": [{"share": 0.005}]},
    "primary.metric": {"primary": {"metric": "beauty", "minimal_effect": 0.1}},
    "primary.minimal_effect": {"primary": {"metric": "errors", "minimal_effect": 2}},
    "guardrails.0.limit": {"guardrails": [{"metric": "service_p95", "compare": "ratio", "limit": 0.9}]},
    "guardrails.0.compare": {"guardrails": [{"metric": "errors", "compare": "ratio", "limit": 1.5}]},
    "guardrails": {"guardrails": [{"metric": "macs", "compare": "ratio", "limit": x} for x in (1.1, 1.2)]},
    "minimum_units": {"minimum_units": 10},
    "maximum_units": {"maximum_units": 200},
    "end": {"end": "2030-02-01T00:00:00"},
    "colour": {"colour": "blue"},
}


@pytest.mark.parametrize("field", SPOILT)
def test_a_bad_declaration_is_refused_by_the_name_of_its_field(field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Experiment.parse(json.dumps(DECLARATION | SPOILT[field]))
    assert caught.value.param == field
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", ["", "[1]", "{", "null", '{"name": NaN}'])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Experiment.parse(text)
    assert "\n" not in caught.value.message


def test_the_guides_declaration_is_valid() -> None:
    (text,) = re.findall(r"```json\n(.+?)```", GUIDE.read_text(), re.DOTALL)
    declared = Experiment.parse(text)
    assert declared.treatments == ["cheaper"]
    assert [stage.share for stage in declared.ramp] == [1, 5, 25, 50]
    assert {guardrail.metric for guardrail in declared.guardrails} == set(get_args(Harm))


def test_a_stage_says_what_it_waits_for() -> None:
    first, second = experiment().ramp[:2]
    assert "minutes" in (first.missing(29, 10**6) or "")
    assert first.missing(30, 0) is None
    assert "units" in (second.missing(10**6, 99) or "")
    assert second.missing(0, 100) is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(sorted(MOVES)), max_size=12))
def test_a_state_is_what_its_history_adds_up_to(actions: list[Action]) -> None:
    version, state = 1, transition(None, "declare", experiment(), **SAID)
    for action in actions:
        version += action == "declare"
        declared = experiment(version=version)
        refused = state.status not in MOVES[action][0] or (action == "ramp" and state.stage == 3)
        if refused:
            version -= action == "declare"
            with pytest.raises(InvalidInput, match=f"cannot {action} fewer-full-steps"):
                transition(state, action, declared, evidence={"seen": 2.0}, **SAID)
            continue
        after = transition(state, action, declared, evidence={"seen": 2.0}, **SAID)
        assert after.history[:-1] == state.history
        assert (after.version, after.status) == (version, MOVES[action][1])
        assert after.stage == (0 if action == "declare" else state.stage + (action == "ramp"))
        assert ExperimentState.read("key", after.document()) == after
        state = after


@pytest.mark.parametrize("status", sorted(OVER))
def test_nothing_but_a_new_version_follows_an_end(status: str) -> None:
    assert [action for action, (sources, _) in MOVES.items() if status in sources] == ["declare"]


def test_other_moves_that_cannot_be_made() -> None:
    state = transition(None, "declare", experiment(), **SAID)
    with pytest.raises(InvalidInput, match="not declared yet"):
        transition(None, "start", experiment(), **SAID)
    with pytest.raises(InvalidInput, match="takes version 1, got 2"):
        transition(state, "start", experiment(version=2), **SAID)
    with pytest.raises(InvalidInput, match="takes version 2, got 3"):
        transition(state, "declare", experiment(version=3), **SAID)
    with pytest.raises(InvalidInput, match="evidence"):
        transition(transition(state, "start", experiment(), **SAID), "roll_back", experiment(), **SAID)
    with pytest.raises(InvalidInput) as caught:
        transition(state, "start", experiment(), **(SAID | {"reason": "x" * 3000}))
    assert caught.value.param == "reason"


def test_the_demos_experiment_is_one_and_has_enough_users() -> None:
    declaration = Experiment.model_validate(demo.declared("demo", control="a" * 64, cheaper="b" * 64))
    assert 2.2 * declaration.minimum_units < demo.USERS, "in each of two arms, by chance"

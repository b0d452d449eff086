"""Assignment: equal everywhere, stable, uniform, and enrolment tells nothing of the arm."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from experiments import experiment
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT
from scipy import stats

from registry.experiments.declaration import Experiment
from server.experiments.assign import arm_of, bucket, enrolled, hashed_unit

GOLDEN = ROOT / "docs" / "assignment-vectors.json"
VECTORS = json.loads(GOLDEN.read_text())
units = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
UNITS = [f"user-{i}" for i in range(40_000)]
NODE = """
const {createHash} = require("crypto"), g = JSON.parse(require("fs").readFileSync(process.argv[1]));
const bucket = (purpose, unit) =>
  parseInt(createHash("sha256").update(`${g.salt}:${purpose}:${unit}`, "utf8").digest("hex").slice(0, 8), 16) % 10000;
const total = g.arms.reduce((sum, arm) => sum + arm.weight, 0);
console.log(JSON.stringify(g.vectors.map(({unit}) => {
  const enrolment = bucket("enrolment", unit), arm = bucket("arm", unit);
  let reached = 0;
  const mine = g.arms.find(each => arm * total < (reached += each.weight) * 10000);
  return {unit, enrolment_bucket: enrolment, arm_bucket: arm,
          enrolled_from: g.shares.find(share => enrolment < share * 100) ?? null, arm: mine.name};
})));
"""


def golden() -> Experiment:
    arms = [arm | {"digest": f"{i:064x}"} for i, arm in enumerate(VECTORS["arms"])]
    return experiment(salt=VECTORS["salt"], arms=arms, ramp=[{"share": share} for share in VECTORS["shares"]])


def test_the_golden_vectors_are_what_the_code_computes() -> None:
    one = golden()
    for vector in VECTORS["vectors"]:
        unit = vector["unit"]
        assert bucket(one.salt, "enrolment", unit) == vector["enrolment_bucket"]
        assert bucket(one.salt, "arm", unit) == vector["arm_bucket"]
        assert arm_of(one, unit).name == vector["arm"]
        stages = [stage.share for i, stage in enumerate(one.ramp) if enrolled(one, i, unit)]
        assert (stages[0] if stages else None) == vector["enrolled_from"]
    assert {vector["arm"] for vector in VECTORS["vectors"]} == {arm.name for arm in one.arms}, "every arm has an example"


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed (Debian: apt-get install nodejs)")
def test_another_language_computes_the_golden_vectors() -> None:
    done = subprocess.run(["node", "-e", NODE, str(GOLDEN)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == VECTORS["vectors"]


def test_the_guides_shell_lines_compute_a_golden_vector() -> None:
    (lines,) = re.findall(r"```sh\n(hex=.+?)```", (GOLDEN.parent / "experiments.md").read_text(), re.DOTALL)
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=True)
    assert VECTORS["vectors"][0]["unit"] == "alice"
    assert int(done.stdout) == VECTORS["vectors"][0]["enrolment_bucket"]


@settings(max_examples=200, deadline=None)
@given(units, st.lists(st.integers(1, 10_000), min_size=1, max_size=6, unique=True).map(sorted))
def test_who_is_enrolled_stays_so_and_keeps_the_arm(unit: str, hundredths: list[int]) -> None:
    one = experiment(ramp=[{"share": hundredth / 100} for hundredth in hundredths])
    in_share = [enrolled(one, stage, unit) for stage in range(len(one.ramp))]
    assert in_share == sorted(in_share)
    assert arm_of(one, unit) == arm_of(experiment(), unit), "whatever the ramp"


def test_all_are_enrolled_at_100_per_cent() -> None:
    one = experiment(ramp=[{"share": 100}])
    assert all(enrolled(one, 0, unit) for unit in UNITS[:1000])


@pytest.mark.parametrize("purpose", ["enrolment", "arm"])
@pytest.mark.parametrize("salt", ["a", "fewer-full-steps"])
def test_buckets_are_uniform(purpose: str, salt: str) -> None:
    counts = np.bincount([bucket(salt, purpose, unit) // 100 for unit in UNITS], minlength=100)  # type: ignore[arg-type]
    assert stats.chisquare(counts).pvalue > 1e-4


def test_arms_follow_their_weights() -> None:
    one = golden()
    names = [arm_of(one, unit).name for unit in UNITS]
    counts = [names.count(arm.name) for arm in one.arms]
    assert stats.chisquare(counts, [len(UNITS) * arm.weight / 100 for arm in one.arms]).pvalue > 1e-4


def test_enrolment_tells_nothing_of_the_arm_and_one_salt_nothing_of_another() -> None:
    def table(first: list[int], second: list[int]) -> float:
        return float(stats.chi2_contingency(np.histogram2d(first, second, bins=10, range=[[0, 10_000]] * 2)[0]).pvalue)

    enrolment = [bucket("a", "enrolment", unit) for unit in UNITS]
    assert table(enrolment, [bucket("a", "arm", unit) for unit in UNITS]) > 1e-4
    assert table(enrolment, [bucket("b", "enrolment", unit) for unit in UNITS]) > 1e-4


def test_the_hashed_unit_is_not_the_unit_and_differs_between_salts() -> None:
    assert hashed_unit("a", "alice") != hashed_unit("b", "alice")
    assert len({hashed_unit("a", unit) for unit in UNITS}) == len(UNITS)

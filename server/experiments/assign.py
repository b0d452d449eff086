"""Who is in an experiment, and in which arm: a pure function of salt, unit, share and weights, the same in every language.

The rule and its golden vectors are in docs/experiments.md and docs/assignment-vectors.json.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from registry.experiments.declaration import BUCKETS, Arm, Experiment

Purpose = Literal["enrolment", "arm"]


def bucket(salt: str, purpose: Purpose, unit: str) -> int:
    """The unit's bucket, 0 … 9,999: the first 32 bits of SHA-256 of `salt:purpose:unit` in UTF-8, modulo 10,000.

    Enrolment and arm are hashed apart, so that which arm a unit gets says nothing of how early it was enrolled. The
    modulus favours low buckets by 2.3e-6 of their size at most. `unit` may hold colons: it comes last.
    """
    return int(hashlib.sha256(f"{salt}:{purpose}:{unit}".encode()).hexdigest()[:8], 16) % BUCKETS


def enrolled(experiment: Experiment, stage: int, unit: str) -> bool:
    """Whether the unit is in the share of this stage of the ramp. Who is stays so in all later stages."""
    return bucket(experiment.salt, "enrolment", unit) < experiment.ramp[stage].buckets


def arm_of(experiment: Experiment, unit: str) -> Arm:
    """The unit's arm, whatever the share: the first whose cumulative weight is above bucket · total / 10,000."""
    position = bucket(experiment.salt, "arm", unit) * sum(arm.weight for arm in experiment.arms)
    reached = 0
    for arm in experiment.arms:
        reached += arm.weight
        if position < reached * BUCKETS:
            return arm
    raise AssertionError("the last arm reaches the total")


def hashed_unit(salt: str, unit: str) -> str:
    """What events hold in the unit's place: 32 hex digits of SHA-256 of `salt:unit:unit`. A pseudonym, not anonymity."""
    return hashlib.sha256(f"{salt}:unit:{unit}".encode()).hexdigest()[:32]

"""At which costs a kind of schedule differs from the teacher, read from the entries of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SCORE, REAL, RFID, PSNR = "score", "to_real", "rfid", "psnr"  # names of figures
CHANCE = 0.05  # below which a difference counts as one
WRONG = {REAL: 1, SCORE: -1}  # the sign of a difference to the teacher that is one for the worse
EYE = 30.0  # dB of PSNR, below which images are said to differ to the eye


class Differences(NamedTuple):
    """The costs at which a kind of schedule is worse than the teacher, as speed-ups, ascending; and where it differs at all."""

    quality: list[float]
    either: list[float]
    eye: list[float]


def differences(entries: Sequence[Mapping[str, Any]]) -> Differences:
    """Of one kind's entries of the table: at which speed-ups its images are worse than the teacher's.

    quality: its Fréchet distance to real images is larger than the teacher's, or its score smaller, by more than is likely by
    chance (`evaluation.paired.swap_test`). either: one of the two differs so in any direction. eye: PSNR is below 30 dB.
    Images that are not finite differ in all.
    """
    by_speedup = sorted(entries, key=lambda entry: float(entry["speedup"]))
    return Differences(
        [entry["speedup"] for entry in by_speedup if _differs(entry, for_the_worse=True)],
        [entry["speedup"] for entry in by_speedup if _differs(entry, for_the_worse=False)],
        [entry["speedup"] for entry in by_speedup if entry["figures"].get(PSNR, {"value": 0.0})["value"] < EYE],
    )


def _differs(entry: Mapping[str, Any], for_the_worse: bool) -> bool:
    if not entry["figures"]:
        return True
    less = {name: entry["less_teacher"][name] for name in WRONG if name in entry["less_teacher"]}
    counted = {name: one for name, one in less.items() if WRONG[name] * one["value"] > 0 or not for_the_worse}
    return any(one["p"] < CHANCE for one in counted.values())

"""At which costs a kind of schedule differs from the teacher, read from the entries of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SCORE, REAL, RFID, PSNR = "score", "to_real", "rfid", "psnr"  # names of figures
CHANCE = 0.05  # below which a difference counts as one
WRONG = {REAL: 1, SCORE: -1}  # the sign of a difference to the teacher that is one for the worse
EYE = 30.0  # dB of PSNR, below which images are said to differ to the eye


class Differences(NamedTuple):
    """The costs at which a kind of schedule is worse than the teacher, as speed-ups, ascending."""

    quality: list[float]
    eye: list[float]


def differences(entries: Sequence[Mapping[str, Any]]) -> Differences:
    """Of one kind's entries of the table: at which speed-ups its images are worse than the teacher's.

    quality: its Fréchet distance to real images is larger than the teacher's, or its score smaller, by more than is likely by
    chance (`evaluation.paired.swap_test`). eye: PSNR is below 30 dB. Images that are not finite differ in both.
    """
    by_speedup = sorted(entries, key=lambda entry: float(entry["speedup"]))
    return Differences(
        [entry["speedup"] for entry in by_speedup if _worse(entry)],
        [entry["speedup"] for entry in by_speedup if entry["figures"].get(PSNR, {"value": 0.0})["value"] < EYE],
    )


def _worse(entry: Mapping[str, Any]) -> bool:
    if not entry["figures"]:
        return True
    less = entry["less_teacher"]
    return any(name in less and sign * less[name]["value"] > 0 and less[name]["p"] < CHANCE for name, sign in WRONG.items())

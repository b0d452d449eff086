"""At which costs a kind of schedule differs from the teacher, read from the entries of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SCORE, REAL, RFID, PSNR = "score", "to_real", "rfid", "psnr"  # names of figures
EYE = 30.0  # dB of PSNR, below which images are said to differ to the eye


class Differences(NamedTuple):
    """The costs at which a kind of schedule is worse than the teacher, as speed-ups, ascending."""

    quality: list[float]
    eye: list[float]


def differences(entries: Sequence[Mapping[str, Any]]) -> Differences:
    """Of one kind's entries of the table: at which speed-ups its images are worse than the teacher's.

    quality: the paired interval of its Fréchet distance to real images less the teacher's lies above 0, or that of its score
    below. eye: PSNR is below 30 dB. Images that are not finite differ in both.
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
    return bool((REAL in less and less[REAL]["low"] > 0) or (SCORE in less and less[SCORE]["high"] < 0))

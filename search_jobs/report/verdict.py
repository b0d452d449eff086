"""What was found, in plain sentences: also where the search found nothing, or did worse than what can be set by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from search_jobs.report.figures import figure
from search_jobs.report.targets import CostTarget, Entry

LEVEL = "95\u00a0%"  # never broken over two lines
REST = {"worse": "worse than by hand", "by hand": "set by hand", "alone": "cheaper than anything set by hand"}
NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")

Verdict = Literal["clearly better", "better", "worse", "by hand", "alone"]


def verdict(target: CostTarget) -> Verdict:
    """Judge a target by rFID on held-out images. Clearly better: the paired 95 % interval of the ratio is below 1."""
    if target.by_hand:
        return "by hand"
    if target.rival is None:
        return "alone"
    own, other = target.entry["held-out"], target.rival["held-out"]
    if own["rfid"] >= other["rfid"]:
        return "worse"
    return "better" if _by_chance(target) else "clearly better"


def sentence(target: CostTarget) -> str:
    """One target: its cost and rFID against the strongest baseline under the same ceiling."""
    cost, rfid = _cost_and_rfid(target.entry)
    start = f"costs {cost} of the teacher's MACs and has an rFID of {rfid}"
    if target.by_hand:
        return (
            f"is set by hand: {target.by_hand}. The search found nothing that did better on the images that decide. It {start}."
        )
    if target.rival is None:
        return f"{start}; nothing set by hand is as cheap."
    cost, rfid = _cost_and_rfid(target.rival)
    own, other = target.entry["held-out"], target.rival["held-out"]
    doubt = _doubt(target)
    against = f"that of the strongest schedule set by hand, {target.rival['baseline']['name']} (cost {cost}, rFID {rfid})"
    if verdict(target) == "worse":
        chance = f"{doubt}, so this may be chance" if _by_chance(target) else doubt
        return f"{start}. That is worse than {against}; {chance}. It was chosen on other images."
    joined = "though" if _by_chance(target) else "and"
    return f"{start}. That is {_times(other['rfid'], own['rfid'])} than {against}, {joined} {doubt}."


def summary(targets: Sequence[CostTarget], report: dict[str, Any]) -> str:
    """Two or three sentences about all targets at once."""
    what = "tier" if any(target.tier for target in targets) else "budget"
    verdicts: list[str] = [verdict(target) for target in targets]
    better, clearly = sum("better" in kind for kind in verdicts), verdicts.count("clearly better")
    text = f"On {report['config']['heldout']} images whose prompts and noise the search never saw, "
    text += _of(better, len(targets), what) + " "
    text += "come" if better > 1 else "comes"
    text += " closer to the teacher (a lower rFID) than the strongest schedule that can be set by hand under the same ceiling"
    if better:
        where = "; " if clearly == better else f"; for {clearly} of them " if clearly else ", but "
        text += f"{where}the {LEVEL} interval of the ratio {'excludes' if clearly else 'holds'} 1"
    text += "."
    for kind, words in REST.items():
        if number := verdicts.count(kind):
            text += f" {NUMBERS[number] if number < len(NUMBERS) else number} {'is' if number == 1 else 'are'} {words}."
    return text


def _by_chance(target: CostTarget) -> bool:
    """Whether the difference to the rival may be chance; where the ratio was not measured, nothing is known to be apart."""
    return target.ratio is None or target.ratio["low"] <= 1 <= target.ratio["high"]


def _doubt(target: CostTarget) -> str:
    if target.ratio is None:
        return "how sure that is was not measured"
    ends = f"{figure(target.ratio['low'])} to {figure(target.ratio['high'])}"
    return f"the {LEVEL} interval of the ratio, {ends}, {'holds' if _by_chance(target) else 'excludes'} 1"


def _cost_and_rfid(entry: Entry) -> tuple[str, str]:
    held = entry["held-out"]
    return f"{held['cost']:.3f}", figure(held["rfid"])


def _times(more: float, less: float) -> str:
    if less <= 0 or more / less < 1.5:
        return f"{100 * (1 - less / more):.0f} % lower"
    return f"{more / less:.1f} times lower"


def _of(number: int, total: int, what: str) -> str:
    if total == 1:
        return f"the {what}" if number else f"no {what}"
    if number == total:
        return f"both {what}s" if total == 2 else f"all {total} {what}s"
    return f"{number or 'none'} of the {total} {what}s"

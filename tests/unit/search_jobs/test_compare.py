"""The table of a comparison, from its document alone."""

from io import StringIO
from typing import Any

from rich.console import Console

from search_jobs.compare import table
from search_jobs.config import WORST

GOOD = {"cost": 0.2, "rfid": 0.5, "psnr": 30.0, "clip_score": None, "intervals": {"rfid": [0.4, 0.7]}}
BROKEN = {"cost": 0.2, "rfid": WORST, "psnr": 0.0, "clip_score": None, "intervals": None}


def printed(searched: dict[str, Any] | None, baseline: dict[str, Any]) -> list[str]:
    document = {
        "heldout_images": 8,
        "budgets": [{"relative": 0.2, "searched": searched, "baselines": {"family": {"name": "4 steps", **baseline}}}],
        "twins": {"other": [None]},
    }
    console = Console(width=110, record=True, file=StringIO())
    console.print(table(document))
    return console.export_text().splitlines()


def row(lines: list[str], name: str) -> list[str]:
    return next(line.replace("│", " ").split() for line in lines if name in line)


def test_images_that_are_not_finite_have_a_row_that_says_so() -> None:
    assert row(printed(GOOD, BROKEN), "4 steps")[2:] == ["0.200", "not", "finite", "–", "–", "–"]
    broken = printed(BROKEN, GOOD)
    assert any("not finite" in line and "searched" in line for line in broken)
    assert row(broken, "4 steps")[2:] == ["0.200", "0.5000", "0.400–0.700", "30.0", "–"], "no ratio to what is not finite"


def test_the_ratio_is_the_searched_rfid_over_this_one() -> None:
    assert row(printed({**GOOD, "rfid": 0.1}, GOOD), "4 steps")[-1] == "0.200"


def test_the_ratio_stands_beside_its_paired_interval() -> None:
    paired = {**GOOD, "searched_against_this": {"rfid": {"value": 0.2, "low": 0.15, "high": 0.31}}}
    assert row(printed({**GOOD, "rfid": 0.1}, paired), "4 steps")[-2:] == ["0.200", "(0.150–0.310)"]


def test_what_a_search_has_nothing_for_is_said() -> None:
    lines = printed(None, GOOD)
    assert any("searched: none this cheap" in line for line in lines)
    assert any("search other: none this cheap" in line for line in lines)

"""What is said of a job's parts while it runs."""

from __future__ import annotations

import io
import re
import time

from rich.console import Console

from search_jobs.progress import ProgressBars


def test_the_rate_of_a_part_that_ended_early_does_not_fall_while_others_run() -> None:
    """How many images a part takes is an estimate. Its line, said at its end, and its bar, drawn at the job's, agree."""
    said = io.StringIO()
    with ProgressBars(Console(file=said, width=120)) as bars:
        bars.begin("first", 10)
        time.sleep(0.01)
        bars.advance(5)
        bars.begin("second", 10)
        time.sleep(0.05)
        bars.advance(10)
    rates = [float(rate) for rate in re.findall(r"^first\b.*?([\d.e+]+)(?: images)?/s", said.getvalue(), re.MULTILINE)]
    assert len(rates) == 2, said.getvalue()
    assert rates[0] == rates[1]

"""Writers that race, writers that are killed: the scripts beside this file, with small numbers and on both real stores.

The full figures: `PYTHONPATH=. python tests/support/registry_race.py 1000 s3`, `… registry_kills.py 200 s3`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from registry_kills import kill
from registry_race import WRITERS, race
from registry_stores import Place


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty store that other processes can open too."""
    server = request.getfixturevalue("s3_server") if request.param == "s3" else None
    return Place(tmp_path, server, prefix=request.node.name.translate(str.maketrans("[]", "--")))


def test_racing_writers_lose_no_move_and_leave_one_history(place: Place) -> None:
    told = race(place, rounds=3 * WRITERS)
    assert f"{3 * WRITERS} promotions" in told


def test_killed_publishers_leave_nothing_half_visible(place: Place) -> None:
    assert "5 kills" in kill(place, 5)

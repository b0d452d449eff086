"""The playground at `/`, as visitors see it: in Chromium, against a real service of the bundled model."""

from __future__ import annotations

import pytest
from browser import overflow, violations, visiting

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", [WIDE, NARROW], ids=["wide", "narrow"])
def test_it_is_there_for_everybody(chromium, server, window, scheme):
    with visiting(chromium, server.address, viewport=window, color_scheme=scheme) as page:
        page.goto(server.address)
        page.get_by_role("heading", level=1).wait_for()
        assert violations(page) == []
        assert overflow(page) <= 0

"""Jobs over a store that loses writes when it is told to, and tried again at once."""

import pytest
from lossy_store import LossyStore

from server.jobs import insistence, runner


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    for module in (runner, insistence):
        monkeypatch.setattr(module, "RETRY_SECONDS", 0.001)


@pytest.fixture
def store():
    return LossyStore()

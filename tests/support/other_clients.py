"""Programs that speak to OpenAI, each installed by `make test` into a folder of its own, run as a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix) / "clients"


def run(client: str, program: str, address: str) -> str:
    """What a program prints that uses this client (a name of tests/clients). It finds the server's address in OPENAI_API_BASE.

    Where the client could not be installed the test is skipped, or fails in CI (which sets `CI`).
    """
    if not (FOLDER / f"{client}.installed").exists():
        reason = f"the client {client} is not installed (make test installs it, from a package index)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    environment = os.environ | {
        "PYTHONPATH": str(FOLDER / client),
        "OPENAI_API_BASE": f"{address}/v1",
        "OPENAI_API_KEY": "unused",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it asks the internet for prices
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout

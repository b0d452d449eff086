"""A start that cannot succeed ends at once and says why."""

import os
import subprocess
import sys

import pytest
from served import MODEL


def start(host: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bentoml", "serve", "server.service:Flexiffusion", "--host", host, "--port", "0"]
    return subprocess.run(command, cwd=MODEL.parents[1], env=os.environ | settings, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("host", "settings", "said"),
    [
        (
            "127.0.0.1",
            {"FLEXI_TYPO": "1", "FLEXI_MAX_IMAGES": "0"},
            "FLEXI_TYPO: there is no such setting; FLEXI_MAX_IMAGES: ",
        ),
        ("127.0.0.1", {"FLEXI_API_KEYS": "/nowhere/keys.json"}, "FLEXI_API_KEYS: cannot read /nowhere/keys.json: "),
        ("0.0.0.0", {}, "FLEXI_API_KEYS: without API keys the server listens on this machine only, not on 0.0.0.0: "),
    ],
    ids=["settings", "keys", "address"],
)
def test_one_line_stops_the_start(host, settings, said):
    done = start(host, **settings)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {said}")
    assert done.stdout == ""

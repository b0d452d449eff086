"""schemathesis reads /docs.json and asks what it allows and what it forbids: no answer may be a fault, or not declared.

`make fuzz` does the same with more requests and in all of its phases.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

CONFIG = Path(__file__).with_name("schemathesis.toml")
ARGUMENTS = os.environ.get("FUZZ", "--phases fuzzing --max-examples 50 --seed 1")


def test_every_answer_is_declared(server, tmp_path):
    before = server.log.read_text().count("Traceback")
    done = fuzz(f"{server.address}/docs.json", tmp_path)
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d[\d,]*) generated", done.stdout)[1].replace(",", "")) >= 200
    assert server.log.read_text().count("Traceback") == before


def fuzz(document: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", CONFIG, "run", document, *ARGUMENTS.split()]
    command += ["--workers", "4", "--no-color", "--generation-database", "none", "--continue-on-failure"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)

"""A start that cannot succeed ends at once and says why."""

import os
import subprocess
import sys

from served import MODEL


def test_wrong_settings_stop_the_start():
    command = [sys.executable, "-m", "bentoml", "serve", "server.service:Flexiffusion", "--host", "127.0.0.1", "--port", "0"]
    wrong = {"FLEXI_TYPO": "1", "FLEXI_MAX_IMAGES": "0"}
    done = subprocess.run(command, cwd=MODEL.parents[1], env=os.environ | wrong, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "error: FLEXI_TYPO: there is no such setting; FLEXI_MAX_IMAGES: " in done.stderr
    assert "Traceback" not in done.stderr

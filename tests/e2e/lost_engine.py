"""The service with a device that can be lost: `bentoml serve tests.e2e.lost_engine:Flexiffusion`.

Whenever the file LOST_ENGINE names a fault, the engine's next wave takes it out of the file, and this process keeps it.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from engine.waves import Waves
from server.service import Flexiffusion

__all__ = ["Flexiffusion"]

FILE = Path(os.environ["LOST_ENGINE"])
fault = ""
launch = Waves.launch


def faulty(self: Waves, *arguments: Any) -> Any:
    """`Waves.launch`, but in the engine's thread only as long as there is no fault; warming up is left alone."""
    global fault
    if threading.current_thread().name == "engine" and not fault and (fault := FILE.read_text()):
        FILE.write_text("")
    if fault == "device":
        raise RuntimeError("the device is gone")
    if fault == "thread":
        raise SystemExit  # ends a thread without a word, and no `except Exception` sees it
    return launch(self, *arguments)


Waves.launch = faulty  # type: ignore[method-assign]

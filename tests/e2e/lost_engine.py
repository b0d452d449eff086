"""The service with a device that can be lost: `bentoml serve tests.e2e.lost_engine:Flexiffusion`.

Whenever the file LOST_ENGINE names a fault, the engine's next call of that kind takes it out of the file, and this process
keeps it. The fault `away` is of the next worker's start, and `silence` passes: the next wave takes SILENCE seconds longer.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from server import worker_place

worker_place.FIRST_PAUSE = 0.1

from server.preconditions import supervises  # noqa: E402
from server.service import Flexiffusion  # noqa: E402

__all__ = ["Flexiffusion"]

FILE = Path(os.environ["LOST_ENGINE"])
SILENCE = 5.0
fault = ""


def faulty(owner: Any, method: str, errors: dict[str, BaseException]) -> None:
    """Let the method raise the fault's error, in the engine's thread only: warming up is left alone."""
    plain = getattr(owner, method)

    def call(self: Any, *arguments: Any) -> Any:
        global fault
        if threading.current_thread().name == "engine":
            if not fault and (said := FILE.read_text()) in errors:
                fault = said
                FILE.write_text("")
            if fault in errors:
                raise errors[fault]
        return plain(self, *arguments)

    setattr(owner, method, call)


if not supervises:
    import torch

    from engine.device import DeviceLost
    from engine.model import Model
    from engine.waves import Waves
    from server import app

    load, launch = app.load_first, Waves.launch

    def load_first(*arguments: Any) -> Model:
        """Raises `DeviceLost` while the device is away."""
        if FILE.read_text() == "away":
            FILE.write_text("")
            raise DeviceLost("it is away")
        return load(*arguments)

    def launch_late(*arguments: Any) -> Any:
        """A wave that hangs for a while."""
        if FILE.read_text() == "silence":
            FILE.write_text("")
            time.sleep(SILENCE)
        return launch(*arguments)

    app.load_first = load_first  # type: ignore[attr-defined]
    Waves.launch = launch_late  # type: ignore[method-assign]
    # SystemExit ends a thread without a word, and no `except Exception` sees it.
    faulty(Waves, "launch", {"wave": DeviceLost("of a wave"), "thread": SystemExit()})
    faulty(Model, "decode_later", {"decode": torch.AcceleratorError("CUDA error: of a decode\nand more about it")})

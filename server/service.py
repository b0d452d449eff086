"""The BentoML service. `bentoml serve server.service:Flexiffusion`, from the repository's root.

BentoML's supervisor imports it as well, and asks it for its name and its options only: it starts the workers, and serves
nothing. So there it is without torch, and without the seconds that importing that takes before the first worker begins.
"""

from __future__ import annotations

import gc
from typing import Any

import bentoml

from server.preconditions import OPTIONS, supervises

if supervises:
    Flexiffusion: Any = bentoml.service(**OPTIONS)(type("Flexiffusion", (), {}))
else:
    gc.disable()  # it would go through what the imports make again and again, and nearly all of that is there to stay
    from server import worker

    gc.freeze()
    gc.enable()
    Flexiffusion = worker.Flexiffusion

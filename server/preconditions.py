"""What must hold before a server starts: its settings, keys and address. Read where the service is imported, in every process.

Nothing here imports torch: BentoML's supervisor needs the settings only, and a wrong one should say so at once.
"""

from __future__ import annotations

import os
from typing import Any

from engine.folder_check import check
from registry.errors import FlexiError
from server import config, supervision, worker_place
from server.access.keys import Keys
from server.gpus import VISIBLE, gpus_of_workers
from server.http import bind
from server.marking.marker import marker_of
from server.telemetry import tracing


def _place() -> worker_place.WorkerPlace | None:
    """In a worker, the place that it has taken, and its GPU the one that CUDA will see; the supervisor lays them out."""
    if laid_out := supervision.own_folder():
        gpus = gpus_of_workers(settings.device, settings.workers)
        (folder := laid_out / "places").mkdir()
        worker_place.lay_out(folder, settings.workers, gpus)
    if not (shared := supervision.shared_folder()):
        return None
    taken = worker_place.take(shared / "places", supervision.others_open)
    if taken.record.gpu:
        os.environ[VISIBLE] = taken.record.gpu
    return taken


supervises = supervision.supervise()
supervision.starting()
try:
    settings = config.load()
    if supervises:
        check(settings.model)  # a worker does it, and more, as it loads
    bind.refuse_unbindable()
    bind.refuse_strangers(settings)
    keys = Keys(settings.api_keys) if settings.api_keys else None
    if (marker := marker_of(settings)) and not supervises:
        marker.export()  # before a worker waits for its GPU, perhaps for long: all workers' page says the least of their times
    tracing.configure()
    place = _place()
except FlexiError as wrong:
    raise supervision.refused(config.refusal(wrong)) from None

OPTIONS: dict[str, Any] = {  # of the BentoML service, which is one for the supervisor and for its workers
    "workers": settings.workers,
    "http": {"host": bind.HOST, "port": bind.PORT},
    "traffic": {"timeout": 300},  # above FLEXI_REQUEST_SECONDS' limit, so that our own 504 comes first; admission is ours
    "metrics": {"enabled": False},  # theirs are labelled with the paths of requests, so that anybody can make them grow
    "logging": {"access": {"enabled": False}},  # the edge writes one line per request
}

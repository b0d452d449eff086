"""A Unix socket of each worker's own beside the port that all share, for a proxy in front that chooses among the workers."""

from __future__ import annotations

import socket
from pathlib import Path

import uvicorn
from typing_extensions import override

EVERYBODY = 0o666  # who may connect is said by the folder: whoever may enter it


def install(path: Path) -> None:
    """Let uvicorn listen there, too. BentoML asks it for one socket, and offers no setting."""
    OwnSocketServer.path = path
    uvicorn.Server = OwnSocketServer  # type: ignore[misc]


class OwnSocketServer(uvicorn.Server):
    """Listens at the worker's own socket when it does at the shared one, and leaves the requests of both the time to end."""

    path: Path

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.path.unlink(missing_ok=True)  # of a predecessor, which has ended: a place has one worker
        own = socket.socket(socket.AF_UNIX)
        own.bind(str(self.path))
        self.path.chmod(EVERYBODY)
        await super().startup([*(sockets or []), own])

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.path.unlink(missing_ok=True)
        await super().shutdown(sockets)

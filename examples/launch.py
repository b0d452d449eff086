"""Start the service as a subprocess and wait until it is ready: for the demo, the load tests and the end-to-end tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

ROOT = Path(__file__).resolve().parent.parent
SERVICE = "server.service:Flexiffusion"
END_SECONDS = 60  # longer than a worker takes at most: FLEXI_DRAIN_SECONDS, and then its last resort


@dataclass(frozen=True)
class RunningService:
    """A service that is ready: where clients find it, and BentoML's supervisor, whose children are the workers."""

    address: str
    supervisor: subprocess.Popen[bytes]


@contextmanager
def serving(settings: Mapping[str, str], log: Path, port: int = 0, patience: float = 180.0) -> Iterator[str]:
    """Run `bentoml serve` on 127.0.0.1 with these FLEXI_* settings; yields its address once /readyz says so.

    Output goes to `log`. Raises `RuntimeError` with the log's end when the service stops, or is not ready in `patience`
    seconds, and when `port` (0: any free one) is taken. The process and its children are ended on the way out, also when
    this process is told to end by SIGTERM.
    """
    with started(settings, log, port, patience) as served:
        yield served.address


@contextmanager
def started(
    settings: Mapping[str, str],
    log: Path,
    port: int = 0,
    patience: float = 180.0,
    host: str = "127.0.0.1",
    service: str = SERVICE,
    root: Path = ROOT,
) -> Iterator[RunningService]:
    """`serving`, on any address and with any variant of the service, and with the process itself for tests that end it."""
    port = free_port(port)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "bentoml", "serve", service, "--host", host, "--port", str(port)]
    with log.open("w") as output, TemporaryDirectory(prefix="bentoml-") as home:
        # Workers meet in a folder of BENTOML_HOME to add up metrics, and a start empties it: of another server's, too.
        environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOME": home, **settings}
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` below runs
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_ready(address, process, log, patience)
            yield RunningService(address, process)
        finally:
            end(process)
            signal.signal(signal.SIGTERM, before)


def wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path, patience: float) -> None:
    """Return when /readyz says so. Raises `RuntimeError` with the log's end when the process stops, or time is over."""
    give_up = time.monotonic() + patience
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise RuntimeError(f"the service stopped with exit code {process.returncode}:\n{_end_of(log)}")
        try:
            if httpx.get(f"{address}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.3)
    raise RuntimeError(f"the service was not ready after {patience:.0f} s:\n{_end_of(log)}")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask the supervisor, who waits for its workers."""
    for ask in (process.terminate, process.kill):
        ask()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=END_SECONDS)


def _end_of(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def free_port(wanted: int) -> int:
    """`wanted` if nobody has it, any free port for 0. Else somebody else's /readyz would be taken for ours."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise RuntimeError(f"port {wanted} is taken: {error.strerror}") from error
        return int(probe.getsockname()[1])

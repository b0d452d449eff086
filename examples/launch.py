"""Start the service as a process of its own and wait until it is ready: for the demo, load tests and end-to-end tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from registry.errors import FlexiError

ROOT = Path(__file__).resolve().parent.parent
SERVICE = "server.service:Flexiffusion"
# One thread makes an image of emoji64 in half the time that two take (docs/measurements.md, which says what others do).
FOR_SMALL_MODELS = {"FLEXI_THREADS": os.environ.get("FLEXI_THREADS", "1")}
END_SECONDS = 60  # longer than a worker takes at most: FLEXI_DRAIN_SECONDS, and then its last resort


@dataclass(frozen=True)
class RunningService:
    """A service that is ready: where clients find it, and BentoML's supervisor, whose children are the workers."""

    address: str
    supervisor: subprocess.Popen[bytes]


@contextmanager
def serving(settings: Mapping[str, str], log: Path, port: int = 0, patience: float = 180.0) -> Iterator[str]:
    """Run the service on 127.0.0.1 with these FLEXI_* settings; yields its address once it is ready. See `started`."""
    with started(settings, log, port, patience) as service:
        yield service.address


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
    """Run `bentoml serve` with these FLEXI_* settings; yields once /readyz says that the service is ready.

    `root`: the folder that holds the service's packages. Output goes to `log`. The process and its children are ended on the
    way out, also when this process gets SIGTERM. Raises `FlexiError` when `port` (0: any free one) is taken, and with the
    log's last line when the service stops or is not ready in `patience` seconds.
    """
    port = free_port(port)
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["-m", "bentoml", "serve", service, "--host", host, "--port", str(port)]
    # Workers meet in a folder of BENTOML_HOME to add up metrics, and a start empties it: of another server's, too.
    with (
        TemporaryDirectory(prefix="bentoml-") as home,
        exit_on_sigterm(),
        spawned(arguments, log, {"BENTOML_HOME": home, **settings}, root) as process,
    ):
        address = f"http://127.0.0.1:{port}"
        wait_until_ready(address, process, log, patience)
        yield RunningService(address, process)


@contextmanager
def spawned(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str], root: Path = ROOT
) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python with these arguments in the folder `root`, output to `log`; the process is ended on the way out."""
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=root,
            env={**os.environ, "BENTOML_DO_NOT_TRACK": "true", **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            end(process)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise `SystemExit` here, so that `finally` blocks run and end what was started."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path, patience: float) -> None:
    """Return when /readyz answers 200. Raises `FlexiError` with the log's last line when the process stops, or time is over."""
    give_up = time.monotonic() + patience
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise _failed(f"the service stopped with exit code {process.returncode}", log)
        try:
            if httpx.get(f"{address}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.3)
    raise _failed(f"the service was not ready after {patience:.0f} s", log)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a supervisor, which waits for its workers: by SIGTERM, and by SIGKILL after `END_SECONDS`."""
    for stop in (process.terminate, process.kill):
        stop()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=END_SECONDS)


def _failed(what: str, log: Path, lines: int = 30) -> FlexiError:
    """Says what failed, the log's last line and where the others are; a traceback shows more of them."""
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    error = FlexiError(f"{what}: {said[-1].strip() if said else 'it said nothing'} (more in {log})")
    error.add_note("\n".join(said[-lines:]))
    return error


def free_port(wanted: int) -> int:
    """Return `wanted`, or any free port for 0. Raises `FlexiError` if it is taken: another server's /readyz is not ours."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except (OSError, OverflowError) as error:
            raise FlexiError(f"{wanted} cannot be had: {error}", param="port") from error
        return int(probe.getsockname()[1])

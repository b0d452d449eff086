"""What a user of the load tests takes for its own hang-up, and what for a fault of the service."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading

import pytest
from places import ROOT

BEGUN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
HANG_UP = """
import json, sys
from locust.env import Environment
from loadtests.profiles.image_user import ImageUser, stats

class User(ImageUser):
    host = sys.argv[1]

User(Environment()).hang_up("reference", float(sys.argv[2]), tier="reference")
print(json.dumps([stats.abandoned, stats.failures]))
"""


def hung_up(address: str, seconds: float) -> tuple[dict[str, int], dict[str, int]]:
    """What was abandoned and what failed, in a process of its own: locust changes the one that imports it."""
    command = [sys.executable, "-c", HANG_UP, address, str(seconds)]
    abandoned, failed = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    return abandoned, failed


def answer(listener: socket.socket, said: bytes, leaves: bool, over: threading.Event) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(said)
        leaves or over.wait()


@pytest.mark.parametrize("said", [b"", BEGUN], ids=["before the answer", "in the middle of it"])
@pytest.mark.parametrize("leaves", [False, True], ids=["the client leaves", "the service leaves"])
def test_only_who_runs_out_of_patience_has_hung_up(said: bytes, leaves: bool) -> None:
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener, said, leaves, over), daemon=True).start()
        found = hung_up(f"http://127.0.0.1:{listener.getsockname()[1]}", 60 if leaves else 0.3)
        over.set()
    assert found == (({}, {"reference": 1}) if leaves else ({"reference": 1}, {}))


def test_a_refused_connection_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert hung_up(address, 60) == ({}, {"reference": 1})

"""Without keys the server listens on this machine only, however it is started."""

from __future__ import annotations

import socket
from pathlib import Path

import click
import pytest

from registry.errors import InvalidInput
from server.config import Settings
from server.http.bind import refuse_strangers

ALONE = Settings()
WITH_KEYS = Settings(api_keys=Path("keys.json"))
FOR_ALL = Settings(allow_anonymous=True)


def start(settings: Settings, **options: object) -> None:
    """As from a command of BentoML with these options."""
    with click.Context(click.Command("serve")) as context:
        context.params = options
        refuse_strangers(settings)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", None])
def test_loopback_is_open(host):
    start(ALONE, host=host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "10.0.0.1", "localhost.example"])
def test_other_addresses_need_keys_or_permission(host):
    with pytest.raises(InvalidInput, match=f"listens on this machine only, not on {host}: set FLEXI_API_KEYS"):
        start(ALONE, host=host)
    start(WITH_KEYS, host=host)
    start(FOR_ALL, host=host)


def test_a_worker_looks_at_its_socket():
    with socket.create_server(("127.0.0.1", 0)) as inside, socket.create_server(("0.0.0.0", 0)) as outside:
        start(ALONE, fd=inside.fileno())
        with pytest.raises(InvalidInput, match=r"not on 0\.0\.0\.0"):
            start(ALONE, fd=outside.fileno())
        assert outside.getsockname()[1], "it is still open"


def test_whoever_only_imports_the_service_listens_nowhere():
    refuse_strangers(ALONE)

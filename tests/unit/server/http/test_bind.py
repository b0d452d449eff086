"""Without keys the server listens on this machine only, however it is started; and where it cannot listen it says so."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from registry.errors import InvalidInput
from server.config import Settings
from server.http.bind import refuse_strangers, refuse_unbindable

ALONE = Settings()
WITH_KEYS = Settings(api_keys=Path("keys.json"))
FOR_ALL = Settings(allow_anonymous=True)


def start(settings: Settings, check: Callable[..., None] = refuse_strangers, **options: object) -> None:
    """As from a command of BentoML with these options."""
    with click.Context(click.Command("serve")) as context:
        context.params = options
        check(*[settings] * (check is refuse_strangers))


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


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [
        ("localhost", 0, "--host: must be an IP address, got 'localhost'"),
        ("192.0.2.1", 0, "--port: cannot listen on 192.0.2.1, port 0: Cannot assign requested address"),
        (None, 65536, "--port: must be between 0 and 65535, got 65536"),
    ],
)
def test_an_address_where_nobody_can_listen_is_refused_in_one_line(host, port, said):
    with pytest.raises(InvalidInput) as refused:
        start(FOR_ALL, check=refuse_unbindable, host=host, port=port)
    assert refused.value.message == said


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_is_taken_is_refused_and_a_free_one_stays_free(host):
    with socket.create_server((host, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput, match=rf"{port}: Address already in use: another process listens there"):
            start(FOR_ALL, check=refuse_unbindable, host=host, port=port)
    start(FOR_ALL, check=refuse_unbindable, host=host, port=port)
    with socket.create_server((host, port)):
        pass


def test_a_worker_has_its_socket_already():
    with socket.create_server(("127.0.0.1", 0)) as bound:
        start(ALONE, check=refuse_unbindable, fd=bound.fileno())

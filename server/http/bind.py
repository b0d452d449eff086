"""Where the server listens, and whether it may: without API keys nobody but this machine gets in."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from typing import Any

import click

from registry.errors import InvalidInput
from server.config import Settings

HOST = "127.0.0.1"  # unless --host or BENTOML_HOST says otherwise; BentoML's own default is every address
PORT = 3000  # unless --port or BENTOML_PORT says otherwise


def refuse_strangers(settings: Settings) -> None:
    """Raises `InvalidInput` when the server would listen beyond loopback, without keys and without permission."""
    if settings.api_keys or settings.allow_anonymous or _is_loopback(host := _host()):
        return
    raise InvalidInput(
        f"without API keys the server listens on this machine only, not on {host}: set FLEXI_API_KEYS "
        "(python -m server.access new makes a key), or FLEXI_ALLOW_ANONYMOUS=true to let everybody in",
        param="FLEXI_API_KEYS",
    )


def refuse_unbindable() -> None:
    """In BentoML's supervisor, which would end in a traceback a moment later: raises `InvalidInput` where it cannot listen."""
    options = _options()
    if "host" not in options:
        return
    host, port = _host(), PORT if options.get("port") is None else int(options["port"])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise InvalidInput(f"must be an IP address, got {host!r}", param="--host") from None
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError:
            raise InvalidInput(f"must be between 0 and 65535, got {port}", param="--port") from None
        except OSError as error:
            hint = ": another process listens there; end it, or give another --port" * (error.errno == errno.EADDRINUSE)
            raise InvalidInput(f"cannot listen on {host}, port {port}: {error.strerror}{hint}", param="--port") from error


def _options() -> dict[str, Any]:
    """Of the command of BentoML in which the service is imported, if it is in one."""
    context = click.get_current_context(silent=True)
    return context.params if context else {}


def _host() -> str:
    """Asked where BentoML imports the service: by its supervisor, which will bind what the command line says, and by its
    workers, to which it hands the bound socket. Elsewhere nothing listens."""
    options = _options()
    if "fd" in options:
        with socket.socket(fileno=os.dup(options["fd"])) as listening:
            return str(listening.getsockname()[0])
    return options.get("host") or HOST


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # BentoML takes no names

"""Where the server listens, and whether it may: without API keys nobody but this machine gets in."""

from __future__ import annotations

import ipaddress
import os
import socket

import click

from registry.errors import InvalidInput
from server.config import Settings

HOST = "127.0.0.1"  # unless --host or BENTOML_HOST says otherwise; BentoML's own default is every address


def refuse_strangers(settings: Settings) -> None:
    """Raises `InvalidInput` when the server would listen beyond loopback, without keys and without permission."""
    if settings.api_keys or settings.allow_anonymous or _is_loopback(host := _host()):
        return
    raise InvalidInput(
        f"without API keys the server listens on this machine only, not on {host}: set FLEXI_API_KEYS "
        "(python -m server.access new makes a key), or FLEXI_ALLOW_ANONYMOUS=true to let everybody in",
        param="FLEXI_API_KEYS",
    )


def _host() -> str:
    """Asked where BentoML imports the service: by its supervisor, which will bind what the command line says, and by its
    workers, to which it hands the bound socket. Elsewhere nothing listens."""
    context = click.get_current_context(silent=True)
    options = context.params if context else {}
    if "fd" in options:
        with socket.socket(fileno=os.dup(options["fd"])) as listening:
            return str(listening.getsockname()[0])
    return options.get("host") or HOST


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # BentoML takes no names

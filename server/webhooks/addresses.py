"""Where a webhook may lead: to addresses of the public internet, unless the operator allows others.

A client chooses the URL and this server follows it, so a URL that leads into the server's own network would let the client
reach what only the server can (server-side request forgery, CWE-918). The name is resolved once, and that address is connected
to: a second answer of its owner's name server has no say.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

import httpx

from registry.errors import InvalidInput

MAX_URL = 2048  # characters
ALLOWED_BY = "FLEXI_WEBHOOK_PRIVATE"  # of jobs' webhooks, which clients name
_TRANSLATED = IPv6Network("64:ff9b::/96")  # NAT64, RFC 6052: an IPv4 address in its last 32 bits
_UNICAST = IPv6Network("2000::/3")  # RFC 4291: whatever else `is_global` does not know is not of the public internet
_NAMES = ThreadPoolExecutor(16, "names")  # a name server that hangs keeps only names waiting; the loop's own threads make files

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""(host, port) -> its addresses."""


def checked_url(url: str, private: bool, allowed_by: str = ALLOWED_BY) -> str:
    """A webhook's URL, as far as it can be judged without asking anybody. Raises `InvalidInput`.

    private: whether addresses that are not public, and plain HTTP, are allowed; allowed_by: the setting that says so.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        httpx.URL(url).host.encode("idna")  # as whoever calls it and the resolver will read the name
    except (ValueError, httpx.InvalidURL):
        raise InvalidInput("give a URL as in https://shop.example.com/done", param="webhook") from None
    schemes = ("https", "http") if private else ("https",)
    if parts.scheme not in schemes or not parts.hostname or port == 0 or not url.isascii() or any(c.isspace() for c in url):
        raise InvalidInput(f"give an {' or '.join(schemes)} URL as in https://shop.example.com/done", param="webhook")
    if parts.username or parts.password:
        raise InvalidInput("no user or password in a URL: deliveries are signed", param="webhook")
    try:
        address = ip_address(parts.hostname)
    except ValueError:
        return url  # a name
    if not (private or is_public(address)):
        raise _not_public(allowed_by)
    return url


async def public_address(host: str, port: int, private: bool, resolve: Resolve, allowed_by: str = ALLOWED_BY) -> str:
    """The address to connect to. Raises `InvalidInput` where any of the name's is not public, `OSError` where there is none."""
    addresses = await resolve(host, port)
    if not private and not all(is_public(ip_address(address)) for address in addresses):
        raise _not_public(allowed_by)
    return addresses[0]


async def resolved(host: str, port: int) -> list[str]:
    """What the system's resolver says. Raises `OSError`."""
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_NAMES, ask)
    return [str(entry[4][0]).partition("%")[0] for entry in found]


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is of the public internet, also by the IPv4 address that it may carry inside."""
    if isinstance(address, IPv6Address):
        if inside := address.ipv4_mapped or address.sixtofour:
            return is_public(inside)
        if address in _TRANSLATED:
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        return address.is_global and address in _UNICAST
    return address.is_global and not address.is_multicast


def _not_public(allowed_by: str) -> InvalidInput:
    return InvalidInput(f"it leads to an address that is not public: {allowed_by} allows those", param="webhook")

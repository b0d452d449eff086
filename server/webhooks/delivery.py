"""Calls to webhooks: signed as Standard Webhooks 1.0 has it, tried several times, led nowhere that they should not go."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache

import httpx

from registry.errors import FlexiError
from server.webhooks.addresses import ALLOWED_BY, Resolve, public_address, resolved
from server.webhooks.signature import signed

PAUSES = (5.0, 30.0, 120.0, 600.0, 3600.0)  # seconds before the second try and those after it
CALLS = 16  # tries at once
SECONDS = 10.0  # for one try, from the name to the answer's status
GONE = 410  # the receiver wants no more of it


class Delivery:
    """Calls a receiver until it has an event. A receiver knows a repeated one by its `webhook-id`."""

    def __init__(
        self,
        secret: bytes,
        private: bool = False,
        resolve: Resolve = resolved,
        pauses: Sequence[float] = PAUSES,
        clock: Callable[[], float] = time.time,
        allowed_by: str = ALLOWED_BY,
    ) -> None:
        """private: whether it may call addresses that are not public; allowed_by: the setting that says so."""
        self._secret = secret
        self._private = private
        self._resolve = resolve
        self._pauses = pauses
        self._clock = clock
        self._allowed_by = allowed_by
        self._free = asyncio.Semaphore(CALLS)

    async def deliver(self, url: str, event_id: str, body: bytes) -> str:
        """Call until a receiver says 2xx; what went wrong the last time, when that has been tried often enough, or nothing."""
        fault = ""
        for pause in (0.0, *self._pauses):
            await asyncio.sleep(pause)
            async with self._free:
                fault = await self._attempt(url, event_id, body)
            if fault in ("", str(GONE)):
                break
        return fault

    async def _attempt(self, url: str, event_id: str, body: bytes) -> str:
        """One call; what went wrong, or nothing."""
        try:
            async with asyncio.timeout(SECONDS):
                status = await self._call(httpx.URL(url), event_id, body)
        except TimeoutError:
            return f"no answer in {SECONDS:g} s"
        except FlexiError as error:
            return error.text
        except (OSError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            return type(error).__name__
        return "" if 200 <= status < 300 else str(status)

    async def _call(self, url: httpx.URL, event_id: str, body: bytes) -> int:
        """The status. No redirect is followed, no proxy asked, and of the answer's body nothing is read."""
        port = url.port or (443 if url.scheme == "https" else 80)
        address = await public_address(url.host, port, self._private, self._resolve, self._allowed_by)
        headers = signed(self._secret, event_id, int(self._clock()), body)
        headers |= {"Host": url.netloc.decode("ascii"), "Content-Type": "application/json", "User-Agent": "flexiffusion-serve"}
        async with httpx.AsyncClient(verify=tls(), timeout=SECONDS, trust_env=False, follow_redirects=False) as client:
            to_address = client.build_request(
                "POST", url.copy_with(host=address), content=body, headers=headers, extensions={"sni_hostname": url.host}
            )
            answer = await client.send(to_address, stream=True)
            await answer.aclose()
            return answer.status_code


@cache
def tls() -> ssl.SSLContext:
    """Whom to trust, read once: that takes longer than a call."""
    return httpx.create_ssl_context(trust_env=False)


def event_body(event_type: str, time: datetime, data: Mapping[str, object]) -> bytes:
    """The body of a call: what happened, when, and to what."""
    when = time.astimezone(UTC).isoformat(timespec="seconds")
    return json.dumps({"type": event_type, "timestamp": when, "data": data}).encode()

"""Calls to webhooks: signed as Standard Webhooks 1.0 has it, tried several times, led nowhere that they should not go."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import httpx

from registry.errors import FlexiError
from server.jobs.addresses import Resolve, public_address, resolved
from server.jobs.record import JobEnd
from server.telemetry import metrics
from server.webhook_signature import signed

log = logging.getLogger(__name__)

PAUSES = (5.0, 30.0, 120.0, 600.0, 3600.0)  # seconds before the second try and those after it
SECONDS = 10.0  # for one try, from the name to the answer's status
GONE = 410  # the receiver wants no more of it


class WebhookSender:
    """Delivers each event at least once: a receiver knows a repeated one by its `webhook-id`.

    An event says which job ended and how. What came of it is for whoever has the API key.
    """

    def __init__(
        self,
        secret: bytes,
        private: bool = False,
        resolve: Resolve = resolved,
        pauses: Sequence[float] = PAUSES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """private: whether it may call addresses that are not public."""
        self._secret = secret
        self._private = private
        self._resolve = resolve
        self._pauses = pauses
        self._clock = clock

    async def deliver(self, url: str, end: JobEnd) -> bool:
        """Call until a receiver says 2xx; False when that has been tried often enough."""
        job, body = end.job, event_of(end)
        for pause in (0.0, *self._pauses):
            await asyncio.sleep(pause)
            fault = await self._attempt(url, job.id, body)
            if not fault:
                metrics.webhooks_total.labels("ok").inc()
                return True
            if fault == str(GONE):
                break
        metrics.webhooks_total.labels("failed").inc()
        fields = {"job": job.id, "key": job.owner.name, "why": fault}
        log.warning("a webhook was not delivered", extra={"fields": fields})
        return False

    async def _attempt(self, url: str, event_id: str, body: bytes) -> str:
        """One call; what went wrong, or nothing."""
        try:
            async with asyncio.timeout(SECONDS):
                status = await self._call(httpx.URL(url), event_id, body)
        except TimeoutError:
            return f"no answer in {SECONDS:g} s"
        except FlexiError as error:
            return error.text
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            return type(error).__name__
        return "" if 200 <= status < 300 else str(status)

    async def _call(self, url: httpx.URL, event_id: str, body: bytes) -> int:
        """The status. No redirect is followed, no proxy asked, and of the answer's body nothing is read."""
        port = url.port or (443 if url.scheme == "https" else 80)
        address = await public_address(url.host, port, self._private, self._resolve)
        headers = signed(self._secret, event_id, int(self._clock()), body)
        headers |= {"Host": url.netloc.decode("ascii"), "Content-Type": "application/json", "User-Agent": "flexiffusion-serve"}
        async with httpx.AsyncClient(timeout=SECONDS, trust_env=False, follow_redirects=False) as client:
            to_address = client.build_request(
                "POST", url.copy_with(host=address), content=body, headers=headers, extensions={"sni_hostname": url.host}
            )
            answer = await client.send(to_address, stream=True)
            await answer.aclose()
            return answer.status_code


def event_of(end: JobEnd) -> bytes:
    """The body of the call that says how a job ended."""
    job = end.job
    data = {"id": job.id, "object": "job", "state": end.state, "created_at": int(job.created), "ended_at": int(end.ended)}
    data["error"] = end.error and end.error.model_dump()
    when = datetime.fromtimestamp(end.ended, UTC).isoformat(timespec="seconds")
    return json.dumps({"type": f"job.{end.state}", "timestamp": when, "data": data}).encode()

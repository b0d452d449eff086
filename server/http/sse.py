"""Server-sent events (WHATWG HTML, section 9.2), to clients that read them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Message, Send
from typing_extensions import override

from server.errors import ClientGone

READER_SECONDS = 60.0  # a client that takes nothing for so long counts as gone: its images would stay in memory


def event(name: str, body: dict[str, Any]) -> bytes:
    """One event; its data is JSON and says the name again, as OpenAI's do."""
    return f"event: {name}\ndata: {json.dumps({'type': name} | body)}\n\n".encode()


class EventStream(StreamingResponse):
    """Asks for an event when the one before it has left, and closes `events` however it ends."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(events, headers=headers)
        self._events = events

    @override
    async def stream_response(self, send: Send) -> None:
        """Raises `ClientGone` when nobody reads."""

        async def patiently(message: Message) -> None:
            try:
                async with asyncio.timeout(READER_SECONDS):
                    await send(message)
            except TimeoutError:
                raise ClientGone("the client does not read") from None

        try:
            await super().stream_response(patiently)
        finally:
            await self._events.aclose()

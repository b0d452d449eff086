"""The edge of the HTTP server: an ASGI layer that lets in who may come in, and gives every answer a request id and every
error one shape.

BentoML, FastAPI and Starlette each have error bodies of their own. None of them can be configured away, so all answers
pass here: an error that does not have our shape yet is put into it, whoever made it. Their own validation stays in use,
which keeps the OpenAPI documents true.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Sequence
from http import HTTPStatus
from time import monotonic
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry.errors import FlexiError
from server.access.keys import ANONYMOUS, Key, Keys
from server.api import REQUEST_ID
from server.errors import ClientGone, Unauthorized, problem
from server.http import body
from server.http.cors import Cors
from server.http.drain import Drain
from server.http.pages.routes import is_page
from server.requests.context import RequestContext
from server.telemetry import metrics

log = logging.getLogger(__name__)

FILES = "/v1/images/files/"  # whose names are secrets: who knows one needs no key, and no log line shows it
RETRY_AFTER = "5"  # seconds, for a 429 or 503 that does not say it itself
PROBES = {"/livez", "/readyz", "/healthz", "/metrics"}  # asked every few seconds, also by those who have no key: no log lines


class Edge:
    """Wraps the application. Handlers find the request's `RequestContext` in `scope["state"]["context"]`, and what they fill in
    gets into its log line."""

    def __init__(self, app: ASGIApp, drain: Drain, keys: Keys | None = None, origins: Sequence[str] = ()) -> None:
        """Without `keys` everybody is `ANONYMOUS`. `origins`: those whose pages may use the server from a browser."""
        self._app = app
        self._cors = Cors(app, origins)
        self._drain = drain
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = monotonic()
        given = Headers(scope=scope).get("x-request-id", "")
        context = RequestContext(given if re.fullmatch(REQUEST_ID, given) else uuid.uuid4().hex)
        scope["state"] = {**scope.get("state", {}), "context": context}
        answer = Answer(self._cors.sending(scope, send), context.request_id)
        try:
            if preflight := self._cors.preflight(scope):
                await preflight(scope, receive, answer.send)
            elif scope["path"] in PROBES:
                await self._app(_as_get(scope), receive, answer.send)
            else:
                async with self._drain.request():
                    await self._admit(scope, receive, answer.send, context)
        except FlexiError as error:
            if answer.status == 0:
                await problem(error)(scope, receive, answer.send)
            else:  # in the middle of a stream: returning breaks it off, which the client notices
                context.code = error.code
        except Exception:
            log.exception("unhandled", extra={"fields": {"request_id": context.request_id}})
            if answer.status == 0:
                await problem(FlexiError("internal error"))(scope, receive, answer.send)
        if scope["path"] not in PROBES:
            metrics.http_responses_total.labels(answer.status).inc()
            if answer.code and answer.status not in (ClientGone.status, 500):
                metrics.rejected_total.labels(answer.code).inc()
            if answer.code:
                context.code = answer.code
            path = FILES if scope["path"].startswith(FILES) else scope["path"]
            line = {"request_id": context.request_id, "method": scope["method"], "path": path}
            line |= {"status": answer.status, "ms": round(1000 * (monotonic() - start), 1)}
            log.info("request", extra={"fields": line | context.log_fields()})

    async def _admit(self, scope: Scope, receive: Receive, send: Send, context: RequestContext) -> None:
        headers = Headers(scope=scope)
        fetches = (scope["path"].startswith(FILES) or is_page(scope["path"])) and scope["method"] in ("GET", "HEAD")
        context.key = ANONYMOUS if fetches else self._identify(headers)
        if scope["method"] == "POST":
            receive = await body.checked(receive, headers, scope["path"], self._cors.takes_forms(headers))
        await self._app(_as_get(scope), receive, send)

    def _identify(self, headers: Headers) -> Key:
        if self._keys is None:
            return ANONYMOUS
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":  # a proxy's own, or none
            token = headers.get("x-api-key", "")
        if key := self._keys.find(token.strip()):
            return key
        raise Unauthorized("give a valid API key: Authorization: Bearer KEY, or X-API-Key: KEY")


def _as_get(scope: Scope) -> Scope:
    """What HEAD asks is what GET would answer; the HTTP server, which keeps the scope as it was, leaves the body out."""
    return {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope


class Answer:
    """One answer on its way out. An error's body is held back until it is whole, and leaves in our shape."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._start: Message = {}
        self._body = b""
        self.status = 0
        self.code = ""  # of an error

    async def send(self, message: Message) -> None:
        """The ASGI `send` of the application inside."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=message["headers"])
            headers["X-Request-Id"] = self._request_id
            if headers.get("allow") == "GET":
                headers["Allow"] = "GET, HEAD"
            self._start = message
            if self.status < 400:
                await self._send(message)
        elif self.status < 400:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_error()

    async def _send_error(self) -> None:
        self.status, error = shaped(self.status, self._body)
        self.code = error["code"]
        content = json.dumps({"error": error | {"request_id": self._request_id}}).encode()
        headers = MutableHeaders(raw=self._start["headers"])
        headers["Content-Type"], headers["Content-Length"] = "application/json", str(len(content))
        if self.status in (429, 503):
            headers.setdefault("Retry-After", RETRY_AFTER)
        await self._send({**self._start, "status": self.status})
        await self._send({"type": "http.response.body", "body": content})


def shaped(status: int, content: bytes) -> tuple[int, dict[str, Any]]:
    """(status, error object without request id) for anybody's error body."""
    try:
        said = json.loads(content)
    except ValueError:
        said = None
    if isinstance(said, dict) and isinstance(said.get("error"), dict) and "code" in said["error"]:
        return status, said["error"]
    if isinstance(said, dict) and isinstance(said.get("detail"), list) and said["detail"]:
        return 400, _validation(said["detail"][0])
    phrase = HTTPStatus(status).phrase
    code = "not_ready" if status == 503 else "internal_error" if status >= 500 else phrase.lower().replace(" ", "_")
    return status, {"code": code, "message": phrase, "param": None}


def _validation(fault: dict[str, Any]) -> dict[str, Any]:
    """The first fault that pydantic found, as BentoML reports it; one without a place is that of the whole body."""
    param, text = ".".join(map(str, fault["loc"])) or "body", fault["msg"].removeprefix("Value error, ")
    code = "invalid_json" if fault["type"] == "json_invalid" else "invalid_input"
    return {"code": code, "message": f"{param}: {text}", "param": param}

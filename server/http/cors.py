"""Pages of other origins: which may use this server from a browser (WHATWG Fetch, section 3.3), and what they may read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Scope, Send

from registry.errors import InvalidInput

METHODS = ("GET", "HEAD", "POST", "DELETE")
OPERATOR_ROUTES = "/v1/operator"  # routes that no page of another origin may use, whatever the setting says
READABLE = (
    "X-Request-Id",
    "Retry-After",
    "X-Should-Retry",
    "X-Flexi-Queue-Seconds",
    "X-Flexi-Repeats",
    "Location",
)  # beside what every page may read


class Cors:
    """Who may use the server from a browser.

    The rules are Starlette's. Its middleware is asked for headers only: its own answers have no request id and not our shape.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        """`origins`: as browsers write them, or `*`; none forbids all."""
        self._rules = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=["*"],  # OpenAI's client for browsers sends a dozen of its own
            allow_private_network=True,  # a page from elsewhere, this server in a network of one's own
            expose_headers=READABLE,
        )
        self._allowed = bool(origins)

    def sending(self, scope: Scope, send: Send) -> Send:
        """A `send` that adds the headers to whatever is answered, errors too: a page could not read them otherwise."""
        if not self._allowed or _of_operators(scope):
            return send
        headers = Headers(scope=scope)
        if not self._rules.is_allowed_origin(headers.get("origin", "")):
            headers = Headers()  # then it only says that answers vary with the origin
        return partial(self._rules.send, send=send, request_headers=headers)

    def takes_forms(self, headers: Headers) -> bool:
        """Whether a form may come: from no page, or from one that may use the server. Browsers send forms without asking first,
        and with the page's origin."""
        origin = headers.get("origin")
        return origin is None or (self._allowed and self._rules.is_allowed_origin(origin))

    def preflight(self, scope: Scope) -> Response | None:
        """The answer to a browser that asks whether a page may send a request, which it does without the page's key.

        Raises `InvalidInput` where it may not.
        """
        headers = Headers(scope=scope)
        if scope["method"] != "OPTIONS" or "origin" not in headers or "access-control-request-method" not in headers:
            return None
        if _of_operators(scope):
            raise InvalidInput("pages of other origins may not use the routes of operators", param="Origin")
        response = self._rules.preflight_response(headers)
        if response.status_code >= 400:
            origin = headers["origin"]
            if not self._rules.is_allowed_origin(origin):
                raise InvalidInput(
                    "pages of this origin may not use the server: FLEXI_CORS_ORIGINS names those that may", param="Origin"
                )
            raise InvalidInput(f"one of {', '.join(METHODS)}", param="Access-Control-Request-Method")
        return response


def _of_operators(scope: Scope) -> bool:
    return scope["path"] == OPERATOR_ROUTES or str(scope["path"]).startswith(f"{OPERATOR_ROUTES}/")

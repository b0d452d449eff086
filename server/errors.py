"""Errors that only the server raises, and the one shape in which every error reaches a client."""

from __future__ import annotations

import math

from starlette.responses import JSONResponse

from registry.errors import Conflict, FlexiError, InvalidInput, Overloaded


class NotReady(FlexiError):
    """The model is still loading, or the engine has stopped."""

    status = 503
    code = "not_ready"


class Stopping(NotReady):
    """The server is going down; another one may take the request."""

    code = "stopping"


class Unauthorized(FlexiError):
    """No API key, or one that is not in force."""

    status = 401
    code = "unauthorized"


class Forbidden(FlexiError):
    """Somebody who is known, and may not do this."""

    status = 403
    code = "forbidden"


class QuotaExceeded(Overloaded):
    """The key has used what it may use in a minute. `retry_after` is in seconds."""

    code = "quota_exceeded"


class GaveWay(Overloaded):
    """Background work whose LoRAs had to leave memory for a client's."""

    def __init__(self) -> None:
        super().__init__("clients need the memory of its LoRAs: try again later", retry_after=10, param="loras")


class MarkingFailed(NotReady):
    """An image could not be marked as generated, or none can be: it is not handed out without. Jobs are tried again.

    No 503: proxies try those at another worker, at once, and the image would be made and billed again.
    """

    status = 500
    code = "marking_failed"

    def __init__(self, text: str, retry_after: float = 60.0) -> None:
        """retry_after: seconds, as what is tried again costs MACs."""
        super().__init__(f"images cannot be marked as generated, and are not handed out without: {text}")
        self.retry_after = retry_after


class DeadlineExceeded(FlexiError):
    """The request's time is over; its images are given up."""

    status = 504
    code = "deadline_exceeded"


class GenerationFailed(FlexiError):
    """The engine could not make this image; the message says at which stage."""

    code = "generation_failed"


class ClientGone(FlexiError):
    """Nobody waits for the answer any more. The status is nginx's; only logs and metrics see it."""

    status = 499
    code = "client_gone"

    def __init__(self, message: str = "the client closed the connection") -> None:
        super().__init__(message)


class Cancelled(FlexiError):
    """Somebody cancelled the request by its id."""

    status = 409
    code = "cancelled"

    def __init__(self) -> None:
        super().__init__("the request was cancelled")


class BodyTooLarge(FlexiError):
    """The request's body is longer than any valid request."""

    status = 413
    code = "body_too_large"


class BodyTooSlow(FlexiError):
    """The request's body is still not there."""

    status = 408
    code = "body_too_slow"


class InvalidJson(InvalidInput):
    """The body is not JSON as RFC 8259 has it, in UTF-8, or it is nested too deep."""

    code = "invalid_json"


class UnsupportedMediaType(FlexiError):
    """The body is not JSON, or is compressed."""

    status = 415
    code = "unsupported_media_type"


def fault(error: FlexiError) -> dict[str, str | None]:
    """The error object, still without its request id."""
    return {"code": error.code, "message": error.message, "param": error.param}


def problem(error: FlexiError) -> JSONResponse:
    """The answer that says it. The edge adds the request id."""
    response = JSONResponse({"error": fault(error)}, status_code=error.status)
    if isinstance(error, Cancelled | Conflict | DeadlineExceeded):
        response.headers["X-Should-Retry"] = "false"  # the official openai client would try again, which nobody wants
    if (seconds := getattr(error, "retry_after", None)) is not None:
        response.headers["Retry-After"] = str(math.ceil(seconds))
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Stopping):
        response.headers["Connection"] = "close"  # the next request had better go elsewhere
    return response

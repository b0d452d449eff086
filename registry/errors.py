"""Everything this project raises on purpose. Each error knows the HTTP status that tells a client the same thing."""

from __future__ import annotations


class FlexiError(Exception):
    """Base of the family. `code` is stable and machine-readable, `param` names the field or object at fault.

    `text` says what is wrong with it; `message` is both in one line, for people.
    """

    status = 500
    code = "internal_error"

    def __init__(self, text: str, *, param: str | None = None) -> None:
        self.text = text
        self.param = param
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """`param: text`, or the text alone where nothing has a name."""
        return f"{self.param}: {self.text}" if self.param else self.text


class InvalidInput(FlexiError):
    """A value outside its limits; the message names the field and the limit."""

    status = 400
    code = "invalid_input"


class NotFound(FlexiError):
    """The named schedule, tier, version or model does not exist."""

    status = 404
    code = "not_found"


class Conflict(FlexiError):
    """Somebody else was first: a create-only key exists, or a compare-and-swap saw another value."""

    status = 409
    code = "conflict"


class Tampered(FlexiError):
    """A stored document is not what its name says: wrong digest, or not a schedule at all."""

    status = 500
    code = "tampered"


class Untrusted(FlexiError):
    """A schedule that no trusted key has signed, where only signed ones may be loaded."""

    status = 403
    code = "untrusted"


class NeedsApproval(FlexiError):
    """A promotion that takes a second person, and has none yet."""

    status = 403
    code = "needs_approval"


class Unsupported(FlexiError):
    """A model, solver, document format or store that this version cannot work with."""

    status = 400
    code = "unsupported"


class StoreUnavailable(FlexiError):
    """The registry's store cannot be reached or refuses us; nothing was changed."""

    status = 503
    code = "store_unavailable"


class Overloaded(FlexiError):
    """The queue is full. `retry_after` is in seconds."""

    status = 429
    code = "overloaded"

    def __init__(self, text: str, *, retry_after: float, param: str | None = None) -> None:
        super().__init__(text, param=param)
        self.retry_after = retry_after

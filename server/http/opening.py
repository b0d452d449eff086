"""What a worker does before it is open, in words: what /readyz and every refusal say until then."""

from __future__ import annotations

from time import monotonic

from starlette.requests import Request

from server.app import App
from server.errors import NotReady


class Opening:
    """From the start of a worker until its app is there, or until it is clear that it never will be."""

    def __init__(self) -> None:
        self._what = "the model is loading"
        self._since: float | None = monotonic()
        self.failed = False

    def waits(self, what: str) -> None:
        """It is at this now, a clause such as "the model is loading". The same as before is no news."""
        if what != self._what:
            self._what, self._since = what, monotonic()

    def fails(self, reason: str) -> None:
        """It will never be open."""
        self._what, self._since, self.failed = f"the server cannot start: {reason}", None, True

    def refusal(self) -> NotReady:
        """For whoever asks now: what the worker is at and for how many seconds, or why it failed."""
        return NotReady(self._what if self._since is None else f"{self._what} ({monotonic() - self._since:.0f} s)")


async def loaded_app(request: Request) -> App:
    """The app of this worker. Raises `NotReady` with the reason while there is none."""
    state = request.app.state
    app: App | None = getattr(state, "app", None)
    if app is None:
        opening: Opening = state.opening
        raise opening.refusal()
    return app

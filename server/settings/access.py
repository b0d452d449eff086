"""Who may ask, and from which pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from registry.document import misfit
from server.settings.group import SettingsGroup
from server.settings.values import Listed, as_origin


class AccessSettings(SettingsGroup):
    """Who may ask, and from which pages."""

    api_keys: Annotated[Path | None, Field(description="File of API keys; without it, only this machine gets in.")] = None
    allow_anonymous: Annotated[bool, Field(description="Listen beyond this machine without API keys.")] = False
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(as_origin)], ...],
        Field(
            max_length=64, description="Origins whose pages may use the server from a browser, with commas between; * is any."
        ),
        *Listed,
    ] = ()
    pages: Annotated[bool, Field(description="Serve the pages for people: the playground at / and what it loads.")] = True

    @model_validator(mode="after")
    def _either_keys_or_everybody(self) -> Self:
        if self.api_keys and self.allow_anonymous:
            raise misfit("with api_keys every request needs a key; set one of the two", "allow_anonymous")
        return self

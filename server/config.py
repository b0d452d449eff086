"""Every setting of the server, read once from FLEXI_* variables. A wrong one stops the start and says which and why."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import Field, ValidationError

from registry.document import NAME_RULE
from registry.errors import FlexiError, InvalidInput
from server.settings.access import AccessSettings
from server.settings.device import DeviceSettings
from server.settings.group import PREFIX
from server.settings.model import ModelSettings
from server.settings.registry import RegistrySettings
from server.settings.requests import RequestSettings

FORMS = {  # what to give instead of what does not match a field's pattern
    "device": "give cpu, cuda or cuda:1",
    "text_device": "give cpu, cuda or cuda:1",
    "model_aliases": "give names of at most 128 letters, digits, '.', '_', ':', '/' and '-', the first a letter or a digit",
    "default_tier": f"give {NAME_RULE}",
}
SECRETS = ("registry", "s3_endpoint", "webhook_secret", "event_webhook", "event_webhook_secret")  # where one may stand
GONE = {"channels_last": "is part of FLEXI_COMPILE now"}  # settings that there were


class Settings(AccessSettings, ModelSettings, DeviceSettings, RegistrySettings, RequestSettings):
    """The field `max_images` is the variable FLEXI_MAX_IMAGES, and so on."""

    drain_seconds: Annotated[
        float, Field(ge=0, le=600, description="After SIGTERM, how long running requests may go on; then they get 503.")
    ] = 30.0
    commit: Annotated[str, Field(description="Git commit of this build; the container image sets it.")] = ""


def load() -> Settings:
    """Read the environment. Raises `InvalidInput` with one line for each variable at fault."""
    unknown = [name for name in sorted(os.environ) if _is_unknown(name)]
    faults = {name: GONE.get(name.removeprefix(PREFIX).lower(), "there is no such setting") for name in unknown}
    settings = None
    try:
        settings = Settings()
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            field, text = str(fault["loc"][0]), fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "string_pattern_mismatch":
                text = FORMS[field]
            secret = field in SECRETS  # may hold what nobody should read in a log
            got = "" if secret or fault["input"] is None else f", got {fault['input']!r}"
            faults[f"{PREFIX}{field.upper()}"] = text + got
    if faults or settings is None:
        (variable, text), *others = faults.items()
        raise InvalidInput("; ".join([text, *(f"{name}: {fault}" for name, fault in others)]), param=variable)
    return settings


def refusal(error: FlexiError) -> str:
    """An error that stops the start, in one line; of a setting by the name of its variable."""
    is_setting = error.param in Settings.model_fields
    return f"{PREFIX}{error.param.upper()}: {error.text}" if error.param and is_setting else error.message


def _is_unknown(name: str) -> bool:
    return name.startswith(PREFIX) and name.removeprefix(PREFIX).lower() not in Settings.model_fields

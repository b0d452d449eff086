"""Where schedules come from, what of them is trusted and compared, and whom the server tells."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator

from engine.guidance import MAX_SCALE
from registry.document import Name, misfit
from registry.errors import InvalidInput
from registry.signing import TrustedKeys
from registry.stores.address import DEFAULT_ADDRESS
from registry.stores.urls import refuse_secrets
from server.settings.group import PREFIX, SettingsGroup
from server.settings.values import Listed, as_filled, as_secret
from server.webhooks.addresses import checked_url
from server.webhooks.signature import FORM

EVENTS_ALLOWED_BY = f"{PREFIX}EVENT_WEBHOOK_PRIVATE"


class RegistrySettings(SettingsGroup):
    """Where schedules come from, what of them is trusted and compared, and whom the server tells."""

    registry: Annotated[str, Field(min_length=1, description="A folder, or s3://bucket/prefix.")] = DEFAULT_ADDRESS
    s3_endpoint: Annotated[
        str | None, Field(description="URL of an S3 store that is not AWS; registry.stores.s3 reads it too.")
    ] = None
    trusted_keys: Annotated[
        Path | None, Field(description="PEM file, or folder of *.pem, of public keys; only what one of them signed is loaded.")
    ] = None
    approved_tiers: Annotated[
        tuple[Name, ...],
        Field(
            max_length=64, description="Tiers whose promotions two persons must stand for, whatever the registry's policy says."
        ),
        *Listed,
    ] = ()
    state: Annotated[
        Path, Field(description="Folder for the last good set of tiers, and for events on their way to the registry.")
    ] = Path(".flexi/state")
    watch_seconds: Annotated[
        float, Field(ge=0.1, le=3600, description="Pause between two looks at the registry's aliases.")
    ] = 5.0
    default_tier: Annotated[Name, Field(description="For requests that name neither tier nor schedule.")] = "balanced"
    require_tiers: Annotated[
        bool, Field(description="Not ready while no tier of the registry is served but `reference`, the teacher.")
    ] = False
    default_guidance: Annotated[
        float | None,
        Field(
            ge=0, le=MAX_SCALE, description="Guidance scale of requests that name none, where the schedule says none either."
        ),
    ] = None
    shadow_share: Annotated[
        float, Field(ge=0, le=1, description="Share of finished images that the teacher makes again while the engine idles.")
    ] = 0.0
    shadow_macs_per_minute: Annotated[
        int | None, Field(ge=1, description="What that may take in a minute; without it, whatever idle time gives.")
    ] = None
    features: Annotated[
        Path | None, Field(description="CLIP folder or Inception file for the distance to the teacher's images.")
    ] = None
    event_webhook: Annotated[
        SecretStr | None,
        AfterValidator(as_filled),
        Field(description="URL that is told of promotions, rollbacks, and tiers or a registry that cannot be followed."),
    ] = None
    event_webhook_secret: Annotated[
        SecretStr | None,
        AfterValidator(as_secret),
        Field(description="Signs those calls, as FLEXI_WEBHOOK_SECRET does jobs'; nobody's but the receiver's."),
    ] = None
    event_webhook_private: Annotated[
        bool, Field(description="Let that URL lead to an address that is not public, and be plain HTTP.")
    ] = False

    @field_validator("features")
    @classmethod
    def _is_there(cls, path: Path | None) -> Path | None:
        if path and not path.exists():
            raise ValueError(f"{path} is not there; name a CLIP folder, or a file of FID's InceptionV3 weights")
        return path

    @field_validator("trusted_keys")
    @classmethod
    def _are_keys(cls, path: Path | None) -> Path | None:
        try:
            if path:
                TrustedKeys.read(path)
        except InvalidInput as error:
            raise ValueError(error.text) from error
        return path

    @field_validator("registry", "s3_endpoint")
    @classmethod
    def _holds_no_secret(cls, url: str | None, about: ValidationInfo) -> str | None:
        try:
            refuse_secrets(url or "", str(about.field_name))
        except InvalidInput as error:
            raise ValueError(error.text) from error
        return url

    @field_validator("registry")
    @classmethod
    def _is_a_place(cls, url: str) -> str:
        if "://" in url and not (url.startswith("s3://") and url.removeprefix("s3://").partition("/")[0]):
            raise ValueError("give a folder or s3://bucket/prefix")
        return url

    @model_validator(mode="after")
    def _can_be_told(self) -> Self:
        if self.event_webhook:
            try:
                checked_url(self.event_webhook.get_secret_value(), self.event_webhook_private, EVENTS_ALLOWED_BY)
            except InvalidInput as error:
                raise misfit(error.text, "event_webhook") from error
            if self.event_webhook_secret is None:
                raise misfit(f"calls are signed: {FORM}", "event_webhook_secret")
        return self

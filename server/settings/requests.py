"""What clients may ask for, and what becomes of their images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from registry.document import misfit
from server.request_fields import MAX_IMAGES
from server.settings.group import SettingsGroup
from server.settings.values import as_authority, as_public_url, as_secret

DAY = 86_400  # seconds


class RequestSettings(SettingsGroup):
    """What clients may ask for, and what becomes of their images."""

    max_images: Annotated[int, Field(ge=1, le=MAX_IMAGES, description="Images in one request.")] = 4
    max_queue_seconds: Annotated[
        float, Field(gt=0, le=3600, description="Predicted seconds of work that may be accepted; past it the answer is 429.")
    ] = 60.0
    max_key_queue_seconds: Annotated[
        float | None, Field(gt=0, le=3600, description="The same for each API key; without it, as much as in all.")
    ] = None
    request_seconds: Annotated[
        float, Field(gt=0, le=280, description="Longest time a request may take, whatever its deadline_ms.")
    ] = 240.0
    public_url: Annotated[
        str | None,
        AfterValidator(as_public_url),
        Field(description="Where clients reach the server, for the URLs of image files; without it, where the request did."),
    ] = None
    file_seconds: Annotated[
        int,
        Field(ge=0, le=30 * DAY, description="How long an image with a URL can be fetched; 0 keeps none: URLs are data: URLs."),
    ] = 3600
    max_jobs: Annotated[
        int, Field(ge=0, le=100_000, description="Jobs of one API key that may wait or run; 0 takes no jobs.")
    ] = 1000
    job_seconds: Annotated[int, Field(ge=1, le=7 * DAY, description="How long a job may wait and run; then it is expired.")] = (
        DAY
    )
    job_keep_seconds: Annotated[
        int, Field(ge=60, le=30 * DAY, description="After FLEXI_JOB_SECONDS, how long a job and its images are kept.")
    ] = DAY
    job_lease_seconds: Annotated[
        float, Field(ge=1, le=600, description="A worker that shows no sign of life for so long has lost its jobs to others.")
    ] = 30.0
    webhook_secret: Annotated[
        SecretStr | None,
        AfterValidator(as_secret),
        Field(
            description="Signs the calls to jobs' webhooks: whsec_ and 24 to 64 bytes in base64; without it, none is called."
        ),
    ] = None
    webhook_private: Annotated[
        bool, Field(description="Let jobs' webhooks lead to addresses that are not public, and be plain HTTP.")
    ] = False
    repeats_mib: Annotated[
        int, Field(ge=0, le=2**20, description="Memory for finished images that are answered again, in MiB; 0 keeps none.")
    ] = 0
    repeats_seconds: Annotated[
        int, Field(ge=1, le=30 * DAY, description="How long a finished image may be answered again.")
    ] = 3600
    repeats_across_keys: Annotated[bool, Field(description="Answer one API key what was made for another one.")] = False
    marking_certificate: Annotated[
        Path | None, Field(description="PEM file of a chain, the signer's first: image files are marked as generated (C2PA).")
    ] = None
    marking_key: Annotated[Path | None, Field(description="PEM file of the key of its first certificate.")] = None
    marking_timestamp_url: Annotated[
        str | None,
        AfterValidator(as_authority),
        Field(description="A timestamp authority (RFC 3161) that is asked for each image file; without it, nobody is."),
    ] = None
    marking_prompt: Annotated[bool, Field(description="Let marks say prompt and negative prompt.")] = False

    @model_validator(mode="after")
    def _marks_have_certificate_and_key(self) -> Self:
        if (self.marking_certificate is None) != (self.marking_key is None):
            there, missing = ("certificate", "key") if self.marking_certificate else ("key", "certificate")
            raise misfit(f"with FLEXI_MARKING_{there.upper()} it is needed, too", f"marking_{missing}")
        return self

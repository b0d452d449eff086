"""Every setting of the server, read once from FLEXI_* variables. A wrong one stops the start and says which and why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engine.buckets import MAX_ROWS
from engine.compile_choice import CompileChoice, compiles
from engine.guidance import MAX_SCALE
from engine.image_size import ImageSize
from engine.prompt_syntax import MAX_CHUNKS, PLAIN, PromptSyntax
from registry.document import NAME_RULE, Name, is_name, misfit
from registry.errors import FlexiError, InvalidInput
from registry.signing import TrustedKeys
from registry.stores.address import DEFAULT_ADDRESS
from registry.stores.urls import refuse_secrets
from server.model_folders import ModelFolder
from server.request_fields import MAX_IMAGES
from server.setting_values import (
    Listed,
    as_authority,
    as_filled,
    as_origin,
    as_public_url,
    as_secret,
    as_size,
    as_socket_folder,
    as_switch,
)
from server.webhooks.addresses import checked_url
from server.webhooks.signature import FORM

PREFIX = "FLEXI_"

DAY = 86_400  # seconds
MAX_MODELS = 16  # of one server: a label of its metrics
FORMS = {  # what to give instead of what does not match a field's pattern
    "device": "give cpu, cuda or cuda:1",
    "model_aliases": "give names of at most 128 letters, digits, '.', '_', ':', '/' and '-', the first a letter or a digit",
    "default_tier": f"give {NAME_RULE}",
}


SECRETS = ("registry", "s3_endpoint", "webhook_secret", "event_webhook", "event_webhook_secret")  # where one may stand
EVENTS_ALLOWED_BY = f"{PREFIX}EVENT_WEBHOOK_PRIVATE"
GONE = {"channels_last": "is part of FLEXI_COMPILE now"}  # settings that there were


class Settings(BaseSettings):
    """The field `max_images` is the variable FLEXI_MAX_IMAGES, and so on."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", protected_namespaces=())

    model: Annotated[Path, Field(description="Folder of the diffusers pipeline to serve.")] = Path("models/emoji64")
    model_name: Annotated[
        Name | None,
        Field(description="What the registry calls the model; without it, the name whose tiers have its fingerprint is found."),
    ] = None
    models: Annotated[
        tuple[ModelFolder, ...],
        NoDecode,
        Field(
            max_length=MAX_MODELS,
            description="Several instead of FLEXI_MODEL: folders, each maybe as name=folder, with commas between, or a file "
            "with one a line. The first is the default.",
        ),
    ] = ()
    models_mib: Annotated[
        int | None,
        Field(ge=1, description="Memory for weights and slots of all models, in MiB; without it, nine tenths of the device's."),
    ] = None
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
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$", description="Where the model runs.")] = "cpu"
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], Field(description="Of the weights; latents are float32 always.")
    ] = "float32"
    compile: Annotated[
        CompileChoice, BeforeValidator(as_switch), Field(description="Compile UNet and decoder; auto: on CUDA.")
    ] = "auto"
    compile_cache: Annotated[Path, Field(description="Folder of what was compiled, for the next start.")] = Path(
        ".flexi/compile"
    )
    cuda_graphs: Annotated[bool, Field(description="On CUDA, launch each wave as one graph; off is for finding faults.")] = True
    workers: Annotated[int, Field(ge=1, le=64, description="Processes that share the port; each loads the model.")] = 1
    worker_sockets: Annotated[
        Path | None,
        AfterValidator(as_socket_folder),
        Field(description="Folder for a Unix socket of each worker, for a proxy that chooses among them."),
    ] = None
    threads: Annotated[int, Field(ge=0, le=256, description="CPU threads of one UNet call; 0 lets torch choose.")] = 0
    max_wave_rows: Annotated[
        int, Field(ge=2, le=MAX_ROWS, description="UNet rows in one call; an image with guidance takes two.")
    ] = 16
    cache_mib: Annotated[
        int | None, Field(ge=1, description="Memory for UNet rows in flight, in MiB; without it, what four full waves need.")
    ] = None
    max_queue_seconds: Annotated[
        float, Field(gt=0, le=3600, description="Predicted seconds of work that may be accepted; past it the answer is 429.")
    ] = 60.0
    max_key_queue_seconds: Annotated[
        float | None, Field(gt=0, le=3600, description="The same for each API key; without it, as much as in all.")
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
    model_aliases: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")], ...],
        Field(max_length=32, description="Other names that clients may call the model by, with commas between."),
        *Listed,
    ] = ()
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(as_origin)], ...],
        Field(
            max_length=64, description="Origins whose pages may use the server from a browser, with commas between; * is any."
        ),
        *Listed,
    ] = ()
    pages: Annotated[bool, Field(description="Serve the pages for people: the playground at / and what it loads.")] = True
    sizes: Annotated[
        tuple[Annotated[ImageSize, BeforeValidator(as_size)], ...],
        Field(
            max_length=16,
            description="Sizes that requests may ask for beside the model's own, WIDTHxHEIGHT in pixels, with commas between.",
        ),
        *Listed,
    ] = ()
    prompt_chunks: Annotated[
        int,
        Field(
            ge=1,
            le=MAX_CHUNKS,
            description="Chunks of the text encoder's length that are read of a prompt; what is beyond is cut.",
        ),
    ] = 3
    prompt_syntax: Annotated[
        PromptSyntax, Field(description="Of requests that name none: plain text, or webui, in which (word:1.3) weighs words.")
    ] = PLAIN
    loras: Annotated[
        Path | None,
        Field(description="Folder of NAME.safetensors: LoRAs that requests may name, of each model that they fit."),
    ] = None
    loras_mib: Annotated[
        int, Field(ge=1, description="Memory for weights that LoRAs changed, of each model, in MiB; beside weights and slots.")
    ] = 2048
    loras_on_schedules: Annotated[
        bool, Field(description="Let schedules that were searched without LoRAs run with them; else only the full model does.")
    ] = True
    max_images: Annotated[int, Field(ge=1, le=MAX_IMAGES, description="Images in one request.")] = 4
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
    drain_seconds: Annotated[
        float, Field(ge=0, le=600, description="After SIGTERM, how long running requests may go on; then they get 503.")
    ] = 30.0
    api_keys: Annotated[Path | None, Field(description="File of API keys; without it, only this machine gets in.")] = None
    allow_anonymous: Annotated[bool, Field(description="Listen beyond this machine without API keys.")] = False
    watch_seconds: Annotated[
        float, Field(ge=0.1, le=3600, description="Pause between two looks at the registry's aliases.")
    ] = 5.0
    teacher_steps: Annotated[
        int | None,
        Field(
            ge=1, le=1000, description="Steps of `reference` where the registry has no such tier; 50, or a distilled model's."
        ),
    ] = None
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
    commit: Annotated[str, Field(description="Git commit of this build; the container image sets it.")] = ""

    @property
    def compiled(self) -> bool:
        """Whether the model is, on its device."""
        return compiles(self.compile, self.device)

    @model_validator(mode="before")
    @classmethod
    def _the_first_is_the_default(cls, values: dict[str, Any]) -> dict[str, Any]:
        text = values.get("models")
        if not isinstance(text, str) or not text:
            return values
        if {"model", "model_name"} & values.keys():
            raise misfit("with FLEXI_MODELS, which may say name=folder, FLEXI_MODEL and FLEXI_MODEL_NAME say nothing", "models")
        try:
            models = ModelFolder.listed(text)
        except (OSError, ValueError) as error:
            raise misfit(str(error), "models") from error
        first = {"model": models[0].folder, "model_name": models[0].name} if models else {}
        return values | {"models": models} | first

    @field_validator("model")
    @classmethod
    def _is_a_pipeline(cls, folder: Path) -> Path:
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"{folder} is not a diffusers pipeline folder (it has no model_index.json)")
        return folder

    @field_validator("loras")
    @classmethod
    def _is_a_folder(cls, path: Path | None) -> Path | None:
        if path and not path.is_dir():
            raise ValueError(f"{path} is no folder; name one with NAME.safetensors in it")
        return path

    @field_validator("features")
    @classmethod
    def _is_there(cls, path: Path | None) -> Path | None:
        if path and not path.exists():
            raise ValueError(f"{path} is not there; name a CLIP folder, or a file of FID's InceptionV3 weights")
        return path

    @field_validator("model_name", mode="before")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name and not is_name(name):
            raise ValueError(f"give {NAME_RULE}")
        return name or None

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

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.api_keys and self.allow_anonymous:
            raise misfit("with api_keys every request needs a key; set one of the two", "allow_anonymous")
        if (self.marking_certificate is None) != (self.marking_key is None):
            there, missing = ("certificate", "key") if self.marking_certificate else ("key", "certificate")
            raise misfit(f"with FLEXI_MARKING_{there.upper()} it is needed, too", f"marking_{missing}")
        return self


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

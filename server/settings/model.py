"""What is served, and what it may take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import NoDecode

from engine.image_size import ImageSize
from engine.prompt_syntax import MAX_CHUNKS, PLAIN, PromptSyntax
from registry.document import NAME_RULE, Name, is_name, misfit
from server.model_folders import ModelFolder
from server.settings.group import SettingsGroup
from server.settings.values import Listed, as_size

MAX_MODELS = 16  # of one server: a label of its metrics


class ModelSettings(SettingsGroup):
    """What is served, and what it may take."""

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
    model_aliases: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")], ...],
        Field(max_length=32, description="Other names that clients may call the model by, with commas between."),
        *Listed,
    ] = ()
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
    teacher_steps: Annotated[
        int | None,
        Field(
            ge=1, le=1000, description="Steps of `reference` where the registry has no such tier; 50, or a distilled model's."
        ),
    ] = None

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

    @field_validator("model_name", mode="before")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name and not is_name(name):
            raise ValueError(f"give {NAME_RULE}")
        return name or None

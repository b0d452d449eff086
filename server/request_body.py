"""What the bodies of requests have in common: bounds, what counts as not given, and words for fields that people expect.

Clients that come from other programs send null or an empty string for what is not set, false for what only other routes do,
and fields of their own. The first mean what leaving the field out means; the last are refused, and the refusal says what to use
instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetJsonSchemaHandler, JsonValue, model_validator
from pydantic_core import CoreSchema

from registry.document import misfit

CLIENTS = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True)
NOTHING: dict[str, JsonValue] = {"enum": [None, ""]}  # JSON Schema of what counts as not given
OFF: dict[str, JsonValue] = {"enum": [None, "", False]}  # and of a switch that a route lacks
SWITCHES = ("progress", "stream")
GIVEN: dict[str, JsonValue] = {"not": NOTHING}

INSTEAD: dict[str, tuple[str, ...]] = {  # the fields that mean the same; a body has one of them
    "batch_count batch_size count n n_iter num_images num_images_per_prompt num_outputs num_samples samples": (
        "num_images",
        "n",
    ),
    "cfg cfg_scale guidance scale": ("guidance_scale",),
    "caption input inputs prompts query text": ("prompt",),
    "neg_prompt negative negativePrompt negative_prompts uc": ("negative_prompt",),
    "generator manual_seed noise_seed random_seed seeds": ("seed",),
    "deadline timeout timeout_ms": ("deadline_ms",),
    "prompt_parser prompt_weighting weighting": ("prompt_syntax",),
    "quality": ("tier",),
    "checkpoint model_id model_name sd_model_checkpoint": ("model",),
    "aspect_ratio height image_size resolution width": ("size",),
    "format image_format": ("output_format",),
    "compression jpeg_quality output_quality": ("output_compression",),
    "image_url images init_image init_images input_image": ("image",),
    "denoising_strength image_strength": ("strength",),
    "mask_image mask_url": ("mask",),
    "adapters lora lora_weights loras": ("loras",),
    "safety_identifier session session_id unit user user_id": ("unit", "user"),
}
ADVICE = {  # what to do where no field means the same
    "inference_steps num_inference_steps num_steps sample_steps sampling_steps step steps": (
        "choose a tier (GET /v1/tiers), whose schedule says how many steps there are"
    ),
    "eta sample_method sampler sampler_index sampler_name sampling_method scheduler scheduler_name sigmas solver timesteps": (
        "choose a tier (GET /v1/tiers), whose schedule names the solver and its steps"
    ),
    "guidance_rescale pag_scale true_cfg_scale": "leave it out, guidance_scale is the only guidance",
    "negative_prompt_2 negative_prompt_3 prompt_2 prompt_3": "say it in prompt or negative_prompt: all text encoders get it",
    "style style_preset style_type": "say it in the prompt",
    "enhance_prompt magic_prompt prompt_extend prompt_optimizer prompt_upsampling": "the prompt is taken as it is",
    "override_settings": "leave it out, the server's settings are its operator's; model chooses a model",
    "denoising_strength image image_strength image_url images init_image init_images input_image mask mask_image mask_url "
    "strength": ("POST /v1/images/edits and POST /generate start from an image"),
    "control_image controlnet controlnets image_prompt input_fidelity ip_adapter_image markup reference_images": (
        "leave it out, an image can be started from, and guides nothing"
    ),
    "cross_attention_kwargs embeddings hypernetwork lora_scale textual_inversion": (
        "a request loads no weights; loras names those that its operator offers, each with a scale"
    ),
    "clip_skip denoising_end enable_hr face_restoration freeu hires hires_fix hr_scale refiner restore_faces tiling upscale "
    "upscaler": "leave it out, this server does not do it",
    "enable_safety_checker disable_safety_checker nsfw safe_mode safety_checker safety_tolerance": (
        "leave it out, this server checks no content"
    ),
    "output_type response_type svg": "leave it out, images are files in base64 or have URLs; output_format says which files",
    "fps frame_count frame_duration_ms num_frames": "leave it out, an image has one frame",
    "complexity effort": "this server plans nothing; a tier says what an image may cost",
    "background moderation partial_images progress stream": "only the routes below /v1/images take it",
    "async callback_url sync_mode wait webhook webhook_url": "leave it out, the answer holds the images: POST /v1/jobs",
    "extra_body options parameters request": "its fields belong into the body itself, beside prompt",
}
_INSTEAD = {name: fields for names, fields in INSTEAD.items() for name in names.split()}
_ADVICE = {name: advice for names, advice in ADVICE.items() for name in names.split()}


def _as_integer(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_as_integer)  # 2.0 is the integer 2 to JSON Schema, and so to some clients


class RequestBody(BaseModel):
    """Base of what clients send."""

    model_config = CLIENTS

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_not_given(cls, body: Any) -> Any:
        """Without nulls and empty strings where a field may be absent. Refuses fields that there are not, and what has none."""
        if isinstance(body, cls):
            return body
        if not isinstance(body, dict):
            needed = [name for name, field in cls.model_fields.items() if field.is_required()]
            raise ValueError(f"must be an object with {', '.join(needed)}")
        given = {name: value for name, value in body.items() if not cls._asks_for_nothing(name, value)}
        for name in given:
            if name not in cls.model_fields:
                raise misfit(f"not a field here: {cls._advice(name)}", name)
        return given

    @classmethod
    def _asks_for_nothing(cls, name: str, value: object) -> bool:
        if value is False:
            return name in SWITCHES and name not in cls.model_fields
        return value in (None, "") and cls._may_be_absent(name)

    @classmethod
    def _may_be_absent(cls, name: str) -> bool:
        field = cls.model_fields.get(name)
        return not field.is_required() if field else name in _INSTEAD or name in _ADVICE

    @classmethod
    def _advice(cls, name: str) -> str:
        own = [field for field in _INSTEAD.get(name, ()) if field in cls.model_fields]
        return f"use {own[0]}" if own else _ADVICE.get(name, "GET /docs.json says which there are")

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The same in JSON Schema."""
        schema: dict[str, Any] = handler.resolve_ref_schema(handler(core_schema))
        properties: dict[str, dict[str, Any]] = schema["properties"]
        for name, field in cls.model_fields.items():
            if not field.is_required():
                properties[name] = _or_nothing(properties[name])
        return schema

    @classmethod
    def published_schema(cls) -> dict[str, Any]:
        """JSON Schema, with the foreign fields that may only be empty: `patternProperties`, which BentoML's cannot hold."""
        others = (_INSTEAD.keys() | _ADVICE.keys()) - cls.model_fields.keys()
        lacking = others & {*SWITCHES}
        schema = cls.model_json_schema()
        whole: dict[str, Any] = _inlined(schema, schema.pop("$defs", {}))
        kinds = {_one_of(names): kind for names, kind in ((others - lacking, NOTHING), (lacking, OFF)) if names}
        return whole | {"patternProperties": kinds}


def _inlined(schema: Any, parts: dict[str, Any]) -> Any:
    """JSON Schema with its parts where it refers to them: elsewhere than in a document of its own, nobody would find them."""
    if isinstance(schema, list):
        return [_inlined(item, parts) for item in schema]
    if not isinstance(schema, dict):
        return schema
    named = schema.get("$ref", "").removeprefix("#/$defs/") if isinstance(schema.get("$ref"), str) else ""
    if named in parts:
        return _inlined(parts[named], parts)
    return {key: _inlined(value, parts) for key, value in schema.items()}


def _one_of(names: Iterable[str]) -> str:
    return f"^({'|'.join(map(re.escape, sorted(names)))})$"


def _or_nothing(schema: dict[str, Any]) -> dict[str, Any]:
    about = {key: schema[key] for key in ("title", "description", "default") if key in schema}
    kinds = schema.get("anyOf") or [{key: value for key, value in schema.items() if key not in about}]
    return about | {"anyOf": [*(kind for kind in kinds if kind != {"type": "null"}), NOTHING]}

"""What clients send: null and empty strings, fields of other programs, and a JSON Schema that says the same."""

from __future__ import annotations

import json

import jsonschema_rs
import pytest
from pydantic import ValidationError

from registry.document import first_fault
from server.api import GenerateRequest
from server.http.openai import ImagesRequest
from server.request_body import ADVICE, INSTEAD
from server.request_fields import LoraWish

BODIES = [GenerateRequest, ImagesRequest]
OPTIONAL = [(body, name) for body in BODIES for name, field in body.model_fields.items() if not field.is_required()]
FOREIGN = sorted({name for table in (INSTEAD, ADVICE) for names in table for name in names.split()})


def read(body, **fields):
    """What a body becomes, or its first fault: as BentoML reads it, from JSON, and as FastAPI does, parsed already."""
    fields, results = {"prompt": "x"} | fields, []
    for validated in (lambda: body.model_validate_json(json.dumps(fields)), lambda: body.model_validate(fields)):
        try:
            results.append(validated())
        except ValidationError as error:
            results.append(first_fault(error))
    assert results[0] == results[1]
    return results[0]


def schema_takes(body, **fields):
    return jsonschema_rs.is_valid(body.published_schema(), {"prompt": "x"} | fields)


@pytest.mark.parametrize(("body", "name"), OPTIONAL)
@pytest.mark.parametrize("nothing", [None, ""])
def test_null_and_empty_mean_not_given(body, name, nothing):
    assert read(body, **{name: nothing}) == read(body)
    assert schema_takes(body, **{name: nothing})


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("nothing", [None, ""])
def test_a_prompt_must_be_given(body, nothing):
    assert read(body, prompt=nothing).param == "prompt"
    assert not schema_takes(body, prompt=nothing)


@pytest.mark.parametrize("body", BODIES)
def test_all_of_them_at_once_mean_nothing(body):
    names = [name for owner, name in OPTIONAL if owner is body]
    assert read(body, **dict.fromkeys([*names, *FOREIGN], "")) == read(body)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", FOREIGN)
def test_a_field_of_another_program_is_refused_with_what_to_use_instead(body, name):
    if name in body.model_fields:
        return
    fault = read(body, **{name: 7})
    assert (fault.param, fault.text.startswith("not a field here: ")) == (name, True)
    assert "docs.json" not in fault.text
    assert not schema_takes(body, **{name: 7})
    assert read(body, **{name: None}) == read(body)
    assert schema_takes(body, **{name: None})


@pytest.mark.parametrize(
    ("body", "name", "instead"),
    [
        (GenerateRequest, "n", "use num_images"),
        (ImagesRequest, "num_images", "use n"),
        (GenerateRequest, "user", "use unit"),
        (ImagesRequest, "unit", "use user"),
        (GenerateRequest, "quality", "use tier"),
        (ImagesRequest, "cfg_scale", "use guidance_scale"),
        (GenerateRequest, "jpeg_quality", "use output_compression"),
        (ImagesRequest, "format", "use output_format"),
        (GenerateRequest, "steps", "choose a tier (GET /v1/tiers), whose schedule says how many steps there are"),
        (GenerateRequest, "width", "use size"),
    ],
)
def test_advice_is_in_the_words_of_the_route(body, name, instead):
    assert read(body, **{name: 7}).text == f"not a field here: {instead}"


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("value", [7, None, ""])
def test_a_field_that_nobody_knows_is_refused_whatever_it_holds(body, value):
    fault = read(body, promt=value)
    assert fault == ("not a field here: GET /docs.json says which there are", "promt")
    assert not schema_takes(body, promt=value)


@pytest.mark.parametrize("body", BODIES)
def test_the_seed_minus_one_is_none_at_all(body):
    assert read(body, seed=-1).seed is None
    assert read(body, seed=-1.0).seed is None
    assert read(body, seed=0).seed == 0
    assert read(body, seed=-2).param == "seed"


@pytest.mark.parametrize("body", BODIES)
def test_prompts_have_up_to_4000_characters(body):
    face = "\N{GRINNING FACE}"
    assert read(body, prompt=face * 4000, negative_prompt=face * 4000).prompt == face * 4000
    for name in ("prompt", "negative_prompt"):
        assert "4000" in read(body, **{name: "x" * 4001}).text


TOGETHER = [
    {},
    {"stream": True, "partial_images": 2},
    {"stream": True, "response_format": "b64_json"},
    {"stream": False, "partial_images": 0, "response_format": "url"},
    {"stream": None, "partial_images": ""},
    {"stream": True, "progress": True},
    {"stream": False, "progress": False},
    {"progress": None},
    {"progress": True},
    {"quality": "auto", "tier": "best"},
    {"quality": "low", "tier": "", "schedule": None},
    {"stream": True, "response_format": "url"},
    {"stream": False, "partial_images": 1},
    {"partial_images": 1},
    {"quality": "low", "tier": "best"},
    {"quality": "low", "schedule": "12345678"},
    {"tier": "best", "schedule": "12345678"},
]
FILES = [
    {"output_format": name, "output_compression": quality}
    for name in ("png", "jpeg", "webp", "gif", "", None)
    for quality in (100, 99, 0, 0.0, -1, 101, 50.5, "", None)
]


@pytest.mark.parametrize("body", BODIES)
def test_the_schema_says_which_files_there_are(body):
    for fields in FILES:
        assert schema_takes(body, **fields) == isinstance(read(body, **fields), body), fields
    assert read(body, output_format="gif").param == "output_format"
    assert read(body, output_compression=101).param == "output_compression"
    made = read(body, output_format="webp", output_compression=50.0)
    assert (made.output_format, made.output_compression) == ("webp", 50)
    assert (read(body).output_format, read(body).output_compression) == ("png", 100)


@pytest.mark.parametrize("fields", TOGETHER, ids=str)
def test_the_schema_says_which_fields_fit_together(fields):
    assert schema_takes(ImagesRequest, **fields) == isinstance(read(ImagesRequest, **fields), ImagesRequest)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    ("given", "means"),
    [
        (7, "7"), (7.0, "7"), (0, "0"), (9_999_999, "9999999"), ("12", "12"), ("0a1b2c3d", "0a1b2c3d"),
        ("fast", None), (10_000_000, None), (-1, None), (7.5, None), (True, None), ("7\n", None), ([7], None),
    ],
)  # fmt: skip
def test_a_schedule_is_a_version_number_or_a_digest_and_a_refusal_says_so(body, given, means):
    assert schema_takes(body, schedule=given) == (means is not None)
    if means:
        assert read(body, schedule=given).schedule == means
    else:
        said = "must be a version number, a digest or a digest's first 8 hex digits or more; a tier goes into tier"
        assert read(body, schedule=given) == (said, "schedule")


@pytest.mark.parametrize("body", BODIES)
def test_what_is_no_object_is_refused_with_what_it_must_have(body):
    assert read(body, loras=["grey"]) == ("must be an object with name", "loras.0")
    for validate in (body.model_validate, lambda sent: body.model_validate_json(json.dumps(sent))):
        with pytest.raises(ValidationError) as refused:
            validate(["red heart"])
        assert first_fault(refused.value) == ("must be an object with prompt", "")


@pytest.mark.parametrize("name", ["stream", "progress"])
def test_a_switch_that_is_off_asks_for_nothing(name):
    assert read(GenerateRequest, **{name: False}) == read(GenerateRequest)
    assert schema_takes(GenerateRequest, **{name: False})
    for value in (True, 0):
        assert read(GenerateRequest, **{name: value}).param == name
        assert not schema_takes(GenerateRequest, **{name: value})


@pytest.mark.parametrize("name", ["disable_safety_checker", "wait", "partial_images"])
def test_what_is_false_for_another_program_may_be_a_wish(name):
    assert read(GenerateRequest, **{name: False}).param == name
    assert not schema_takes(GenerateRequest, **{name: False})


def test_what_other_programs_call_a_loras_fields_is_told_by_its_own_name() -> None:
    for word, own in (("weight", "scale"), ("strength", "scale"), ("path", "name"), ("model", "name")):
        with pytest.raises(ValidationError, match=f"not a field here: use {own}"):
            LoraWish.model_validate({"name": "grey", word: 1})

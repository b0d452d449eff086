"""A UNet's configuration is understood as diffusers understands it, or refused by the name of what is wrong in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DConditionModel, UNet2DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from engine.__main__ import app
from engine.config import BLOCKS, NUMBERS, SETTINGS, class_of, complete, context_width, defaults, refuse_unknown, sides
from engine.macs import count_steps, meta_network
from registry.errors import Unsupported

CLASSES = {"UNet2DConditionModel": UNet2DConditionModel, "UNet2DModel": UNet2DModel}
PLAIN: Mapping[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}
WORDS = {"one": "whole number", "many": "list", "null": "null"}


def without_class(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}


def refused(config: Mapping[str, Any]) -> Unsupported:
    """The error, which is the same for whoever looks at the configuration first."""
    with pytest.raises(Unsupported) as caught:
        refuse_unknown(config)
    with pytest.raises(Unsupported) as built:
        meta_network(config)
    assert built.value.message == caught.value.message
    return caught.value


@pytest.mark.parametrize("name", CLASSES)
def test_a_configuration_that_does_not_say_its_class_is_of_the_one_that_wrote_it(
    name: str, tiny_config: Mapping[str, Any]
) -> None:
    config = tiny_config if name == "UNet2DConditionModel" else PLAIN
    written = without_class(CLASSES[name](**config).config)
    for said in (written, without_class(config)):
        assert class_of(said) == name
        shape = (config["in_channels"], 8, 8)
        assert count_steps(said, shape, 3) == count_steps({**said, "_class_name": name}, shape, 3)


@pytest.mark.parametrize(("name", "other"), [tuple(CLASSES), tuple(CLASSES)[::-1]])
def test_one_setting_of_its_own_gives_a_class_away(name: str, other: str) -> None:
    own = defaults(name).keys() - defaults(other).keys()
    assert own
    for setting in own:
        assert class_of({"in_channels": 4, setting: None}) == name


def test_blocks_give_a_class_away_where_no_setting_does() -> None:
    assert class_of({"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}) == "UNet2DConditionModel"
    assert class_of({"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}) == "UNet2DModel"


@pytest.mark.parametrize("config", [{"_class_name": name} for name in CLASSES] + [{"cross_attention_dim": 768}])
def test_what_is_left_out_has_diffusers_default(config: dict[str, Any]) -> None:
    said, built = complete(config), dict(meta_network(config).config)
    assert {name: built[name] for name in said} == said


@pytest.mark.parametrize("name", ["UNet3DConditionModel", "AutoencoderKL", ["UNet2DModel"], 3])
def test_another_class_is_named_whatever_else_is_wrong(name: object) -> None:
    error = refused({"_class_name": name, "in_channels": "x", "down_block_types": ["Foo"], "time_cond_proj_dim": 3})
    assert error.param == "unet"
    assert str(name) in error.message


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("field", BLOCKS)
@pytest.mark.parametrize("block", ["AttnSkipDownBlock2D", "KUpBlock2D", "FooBlock", "UNetResFooBlock"])
def test_an_unknown_block_is_named_whatever_else_is_wrong(name: str, field: str, block: str) -> None:
    blocks = block if field == "mid_block_type" else ["DownBlock2D" if field[0] == "d" else "UpBlock2D", block]
    error = refused({"_class_name": name, field: blocks, "block_out_channels": [4, 6], "sample_size": None, "act_fn": "none"})
    assert error.param == "unet"
    assert block in error.message
    assert field in error.message


@pytest.mark.parametrize("blocks", [None, "DownBlock2D", 3, [3], [None], {}])
def test_blocks_that_are_no_names_are_refused(blocks: object) -> None:
    assert "down_block_types" in refused({"_class_name": "UNet2DModel", "down_block_types": blocks}).message


def test_the_prefix_of_old_configurations_is_diffusers() -> None:
    old = {**PLAIN, "_class_name": "UNet2DModel", "down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"]}
    new = {**PLAIN, "_class_name": "UNet2DModel"}
    assert count_steps(old, (3, 8, 8), 0) == count_steps(new, (3, 8, 8), 0)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("value", ["image_hint", 3, [3], {}])
def test_a_setting_that_changes_the_forward_pass_is_named(tiny_config: Mapping[str, Any], setting: str, value: object) -> None:
    config = {**(PLAIN if setting.endswith("sample_type") else tiny_config), setting: value}
    assert refused(config).param == setting


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [0, -8, 8.0, True, "8", {}, [], [0, 8], [8, "8"], None, [[8]]])
def test_what_is_no_number_where_one_belongs_is_named(tiny_config: Mapping[str, Any], field: str, value: object) -> None:
    if value is None and "null" in NUMBERS[field]:
        refuse_unknown({**tiny_config, field: value})
        return
    error = refused({**tiny_config, field: value})
    assert error.param == field
    assert all(WORDS[kind] in error.message for kind in NUMBERS[field])


@pytest.mark.parametrize(
    ("dims", "field"),
    [
        ({}, "addition_time_embed_dim"),
        ({"addition_time_embed_dim": 4}, "projection_class_embeddings_input_dim"),
        ({"projection_class_embeddings_input_dim": 32}, "addition_time_embed_dim"),
        ({"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 24}, "projection_class_embeddings_input_dim"),
    ],
)
def test_added_conditioning_needs_its_dimensions(tiny_config: Mapping[str, Any], dims: dict[str, int], field: str) -> None:
    assert refused({**tiny_config, "addition_embed_type": "text_time", **dims}).param == field


@pytest.mark.parametrize("width", [[6, 6], (6, 6), 6])
def test_one_width_of_context_may_be_said_once_for_each_block(tiny_config: Mapping[str, Any], width: object) -> None:
    config = {**tiny_config, "cross_attention_dim": width}
    assert context_width(config) == 6
    assert count_steps(config, (4, 8, 8), 3) == count_steps(tiny_config, (4, 8, 8), 3)


@pytest.mark.parametrize("width", [[6, 8], None])
def test_widths_that_differ_are_refused_where_a_block_attends(tiny_config: Mapping[str, Any], width: object) -> None:
    config = {**tiny_config, "cross_attention_dim": width}
    with pytest.raises(Unsupported, match="cross_attention_dim") as caught:
        context_width(config)
    assert caught.value.param == "cross_attention_dim"
    plain = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "mid_block_type": "UNetMidBlock2D"}
    assert context_width({**config, **plain}) is None
    if width is not None:  # of which diffusers makes nothing
        assert count_steps({**config, **plain}, (4, 8, 8), 3) == count_steps({**tiny_config, **plain}, (4, 8, 8), 0)


@pytest.mark.parametrize("size", [[8], [3, 8, 8], [], "8", 8.0, {}, True, 0, -8, [8, 0], [8, "8"], None])
def test_a_size_that_is_none_is_named(size: object) -> None:
    with pytest.raises(Unsupported, match="sample_size") as caught:
        sides(size)
    assert caught.value.param == "sample_size"


def test_a_size_is_one_number_or_two() -> None:
    assert sides(8) == (8, 8)
    assert sides([8, 12]) == sides((8, 12)) == (8, 12)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")  # heads wider than their block
@pytest.mark.parametrize(
    ("changes", "size"),
    [({}, (10**12, 10**12)), ({}, (10**6, 10**6)), ({"downsample_padding": 0}, (1, 1)), ({"attention_head_dim": 99}, (8, 8))],
)
def test_a_size_at_which_a_unet_cannot_run_is_named(
    tiny_config: Mapping[str, Any], changes: dict[str, Any], size: tuple[int, int]
) -> None:
    with pytest.raises(Unsupported, match=f"cannot run at {size[0]}×{size[1]}|cannot build"):
        count_steps({**tiny_config, **changes}, (4, *size), 3)


@pytest.mark.parametrize("changes", [{"in_channels": 9}, {"out_channels": 8}, {"num_class_embeds": 10}])
def test_what_cannot_be_loaded_is_counted(tiny_config: Mapping[str, Any], changes: dict[str, int]) -> None:
    assert count_steps({**tiny_config, **changes}, (changes.get("in_channels", 4), 8, 8), 3).full.macs > 0


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | st.sampled_from(["", "8", "silu", "conv", "scale_shift"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=1),
    max_leaves=4,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from([*CLASSES, None]))
def test_whatever_a_file_says_it_is_counted_or_refused_in_one_line(
    tmp_path: Path, tiny_config: Mapping[str, Any], data: st.DataObject, name: str | None
) -> None:
    fields = sorted(set().union(*(defaults(known) for known in CLASSES)))
    changes = data.draw(st.dictionaries(st.sampled_from(fields), ANYTHING, min_size=1, max_size=2))
    config = {**(PLAIN if name == "UNet2DModel" else tiny_config), **changes, **({"_class_name": name} if name else {})}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    result = CliRunner().invoke(app, ["macs", str(file), "--json"])
    assert result.exit_code in (0, 1), result.output
    assert result.exit_code == 0 or isinstance(result.exception, SystemExit), config
    if result.exit_code == 1:
        assert any(line.startswith("error: ") for line in result.stderr.splitlines())

"""The command line: python -m engine macs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from engine_command import call, refused
from places import ROOT

from engine.macs import count_steps
from engine.model import Model


def counted(*args: str | Path) -> Any:
    result = call("macs", *args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def tiny_file(tmp_path: Path, tiny_config: Mapping[str, Any]) -> Path:
    """A bare UNet configuration."""
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(dict(tiny_config)))
    return file


def test_help_imports_no_torch() -> None:
    code = "import sys, engine.__main__; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'diffusers')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_macs_json_of_a_bare_config_assumes_clips_77_tokens(tiny_file: Path, tiny_config: Mapping[str, Any]) -> None:
    want = count_steps(tiny_config, (4, 8, 8), 77)
    partial = {str(s): {"macs": m.macs, "paper_macs": m.paper_macs} for s, m in want.partial.items()}
    full = {"macs": want.full.macs, "paper_macs": want.full.paper_macs}
    features = {str(s): list(shape) for s, shape in want.features.items()}
    assert counted(tiny_file) == {"parameters": want.parameters, "full": full, "partial": partial, "features": features}


def test_macs_of_a_folder_are_the_models_own(model: Model) -> None:
    answer = counted(ROOT / "models" / "emoji64")
    assert answer["full"]["macs"] == model.macs.full.macs  # the text encoder's 16 tokens, not CLIP's 77
    assert answer["partial"]["3"]["macs"] == model.macs.partial[3].macs


def test_macs_of_one_branch_at_another_size_and_context(tiny_file: Path, tiny_config: Mapping[str, Any]) -> None:
    want = count_steps(tiny_config, (4, 16, 6), 3)
    answer = counted(tiny_file, "--branch", "2", "--size", "16", "6", "--tokens", "3")
    assert answer["full"]["macs"] == want.full.macs
    assert answer["partial"] == {"2": {"macs": want.partial[2].macs, "paper_macs": want.partial[2].paper_macs}}


NAMED = {"text_encoder": ["transformers", "CLIPTextModel"], "class_embedder": ["flexiffusion", "ClassEmbedder"]}


@pytest.mark.parametrize(
    ("files", "named", "width", "tokens"),
    [
        ([], [], 6, 77),  # of a text-to-image model only the UNet may have been copied
        ([], ["text_encoder"], 6, 77),
        ([], ["text_encoder"], 512, 77),
        ([], [], 512, 1),
        (["class_embedder"], [], 6, 1),
        ([], ["class_embedder"], 6, 1),
        (["text_encoder"], ["text_encoder"], 6, 16),
        (["text_encoder"], [], 512, 16),
    ],
)
def test_a_folder_has_the_context_of_its_kind(
    tmp_path: Path, tiny_config: Mapping[str, Any], files: list[str], named: list[str], width: int, tokens: int
) -> None:
    for name in ("unet", *files):
        (tmp_path / name).mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({**tiny_config, "cross_attention_dim": width}))
    if named:
        (tmp_path / "model_index.json").write_text(json.dumps({name: NAMED[name] for name in named}))
    if "text_encoder" in files:
        (tmp_path / "text_encoder" / "config.json").write_text('{"max_position_embeddings": 16}')
    assert counted(tmp_path) == counted(tmp_path / "unet" / "config.json", "--tokens", str(tokens))


@pytest.mark.parametrize("limit", [None, 0, -1, "77", 7.5])
def test_a_text_encoder_without_a_length_is_named(tmp_path: Path, tiny_file: Path, limit: object) -> None:
    for name in ("unet", "text_encoder"):
        (tmp_path / name).mkdir()
    shutil.copy(tiny_file, tmp_path / "unet" / "config.json")
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps({"max_position_embeddings": limit}))
    assert "max_position_embeddings" in refused("macs", tmp_path)


def test_what_a_bare_config_leaves_out_has_diffusers_default(tmp_path: Path, tiny_config: Mapping[str, Any]) -> None:
    """Four channels and a context of 1280; only a size there is none for."""
    full, short = tmp_path / "full.json", tmp_path / "short.json"
    said = {**tiny_config, "cross_attention_dim": 1280}
    full.write_text(json.dumps(said))
    for name in ("in_channels", "cross_attention_dim", "sample_size"):
        said.pop(name)
    short.write_text(json.dumps({**said, "_class_name": "UNet2DConditionModel"}))
    assert counted(short, "--size", "8", "8") == counted(full)
    assert "--size" in refused("macs", short)


def test_a_bare_config_as_wide_as_latent_diffusions_classes_has_one_token() -> None:
    """Nothing in the file says so; the published figures of LDM-4-G need no option."""
    answer = counted(ROOT / "tests" / "data" / "ldm4g-unet.json")
    assert round(answer["full"]["macs"] / 1e9, 4) == 104.2272
    assert counted(ROOT / "tests" / "data" / "sd15-unet.json", "--branch", "1")["full"]["macs"] == 401_636_720_640


def test_a_folder_that_is_a_unets_own_is_its_config(tmp_path: Path, tiny_file: Path) -> None:
    shutil.copy(tiny_file, tmp_path / "config.json")
    assert counted(tmp_path) == counted(tiny_file)


def test_macs_of_an_unconditional_unet(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    levels = {"block_out_channels": [32, 32], "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    file.write_text(json.dumps({"_class_name": "UNet2DModel", "sample_size": [8, 12], "in_channels": 3, **levels}))
    assert counted(file) == counted(file, "--size", "8", "12")
    assert "tokens" in refused("macs", file, "--tokens", "3")


def test_macs_prints_a_table_for_people(tiny_file: Path) -> None:
    result = call("macs", tiny_file, "--branch", "3")
    assert result.exit_code == 0
    for word in ("parameters", "full", "partial, branch 3", "paper_macs"):
        assert word in result.stdout
    assert "branch 2" not in result.stdout


def test_macs_refuses_by_name(tmp_path: Path, tiny_file: Path) -> None:
    broken, listed, bare = tmp_path / "broken.json", tmp_path / "list.json", tmp_path / "bare.json"
    broken.write_text("{")
    listed.write_text("[]")
    bare.write_text('{"in_channels": 4, "cross_attention_dim": 8}')
    assert "nowhere" in refused("macs", tmp_path / "nowhere")
    assert "config.json" in refused("macs", tmp_path)
    assert "not JSON" in refused("macs", broken)
    assert "object" in refused("macs", listed)
    assert "size" in refused("macs", bare)
    assert "size" in refused("macs", tiny_file, "--size", "0", "64")
    assert "tokens" in refused("macs", tiny_file, "--tokens", "0")
    assert "1 to 4" in refused("macs", tiny_file, "--branch", "5")
    assert "cannot run at 1000000×1000000" in refused("macs", tiny_file, "--size", "1000000", "1000000")


def test_macs_of_what_cannot_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_file: Path) -> None:
    nested = tmp_path / "nested.json"
    nested.write_text("[" * 100_000)
    assert "not JSON" in refused("macs", nested)
    assert "cannot read" in refused("macs", tmp_path / ("x" * 300))

    def forbidden(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied", str(tiny_file))

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    assert "Permission denied" in refused("macs", tiny_file)


def test_macs_of_a_pipelines_index_names_its_class() -> None:
    assert "StableDiffusionPipeline" in refused("macs", ROOT / "models" / "emoji64" / "model_index.json")

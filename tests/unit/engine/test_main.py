"""The command line: python -m engine generate | macs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from places import ROOT
from typer.testing import CliRunner

from engine import loading
from engine.__main__ import app
from engine.image_size import ImageSize
from engine.macs import count_steps
from engine.model import Model
from engine.notice import Notice
from registry.corrections import Correction, ScaledCorrections
from registry.schedule import Schedule, Segment, Validated, teacher


def call(*args: str | Path) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def counted(*args: str | Path) -> Any:
    result = call("macs", *args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(*args: str | Path) -> str:
    """The one line on stderr."""
    result = call(*args)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


@pytest.fixture
def tiny_file(tmp_path: Path, tiny_config: Mapping[str, Any]) -> Path:
    """A bare UNet configuration."""
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(dict(tiny_config)))
    return file


@pytest.fixture
def loaded(model: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """`generate` uses the session's model instead of loading its own."""
    monkeypatch.setattr(loading, "load", lambda *_, **__: model)
    return model


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
    assert "1 and 4" in refused("macs", tiny_file, "--branch", "5")
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


@pytest.mark.parametrize("timesteps", [None, (900, 700, 400, 100)])
def test_generate_writes_images_and_prints_what_they_cost(
    loaded: Model, tmp_path: Path, timesteps: tuple[int, ...] | None
) -> None:
    segments = (Segment(partial=(1,), branch=3),) * 2
    solver = loaded.solver("dpmsolver++", 6)
    schedule = Schedule(model=loaded.ref, solver=solver, segments=segments, timesteps=timesteps)
    file = tmp_path / "schedule.json"
    file.write_bytes(schedule.document())
    result = call("generate", "--prompt", "cat", "--schedule", file, "--num-images", "2", "--out", tmp_path / "cat.png")
    assert result.exit_code == 0, result.stderr
    assert "steps      4 computed of the teacher's 6: 2 full, 2 partial\n" in result.stdout
    macs = 4 * (loaded.macs.full.macs + loaded.macs.partial[3].macs)
    assert f"{macs / 1e9:.4f} G" in result.stdout
    assert f"{macs / (12 * loaded.macs.full.macs):.4f}" in result.stdout
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["cat-1.png", "cat-2.png"]
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            assert image.size == (64, 64)


def test_generate_takes_a_size_counts_at_it_and_tells_where_the_schedule_was_not_measured(
    loaded: Model, tmp_path: Path
) -> None:
    schedule = Schedule(model=loaded.ref, solver=loaded.solver("ddim", 2), segments=(Segment(partial=(1,), branch=3),))
    file = tmp_path / "schedule.json"
    file.write_bytes(schedule.document())
    asked = ("generate", "--prompt", "cat", "--schedule", file, "--guidance", "1", "--out", tmp_path / "cat.png")
    result = call(*asked, "--size", "32x64")
    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "cat.png") as image:
        assert image.size == (32, 64)
    macs = loaded.macs_at(ImageSize(64, 32))
    assert f"{(macs.full.macs + macs.partial[3].macs) / 1e9:.4f} G" in result.stdout
    assert "size: the schedule was not measured at 32x64\n" in result.stderr
    assert "must be multiples of 32 for this model, got 48x64" in refused(*asked, "--size", "48x64")


def test_an_image_is_the_same_alone_or_as_one_of_several(loaded: Model, tmp_path: Path) -> None:
    """Up to one grey level: the batch size changes the last bit of a sum."""
    common = ["generate", "--prompt", "cat", "--solver", "ddim", "--steps", "2", "--guidance", "1"]
    assert call(*common, "--seed", "7", "--num-images", "2", "--out", tmp_path / "both.png").exit_code == 0
    result = call(*common, "--seed", "8", "--out", tmp_path / "alone.png")
    assert "1.0000" in result.stdout
    with Image.open(tmp_path / "both-2.png") as second, Image.open(tmp_path / "alone.png") as alone:
        assert max(abs(a - b) for a, b in zip(second.tobytes(), alone.tobytes(), strict=True)) <= 1


def test_guidance_of_at_most_one_is_none(loaded: Model, tmp_path: Path) -> None:
    images = []
    for guidance in ("0", "0.5", "1"):
        file = tmp_path / f"{guidance}.png"
        asked = ("generate", "--prompt", "cat", "--solver", "ddim", "--steps", "2", "--guidance", guidance, "--out", file)
        result = call(*asked)
        assert f"{2 * loaded.macs.full.macs / 1e9:.4f} G" in result.stdout, "one UNet row a step"
        images.append(file.read_bytes())
    assert images[0] == images[1] == images[2]


def test_a_schedule_is_run_at_the_scale_that_it_was_validated_at_and_another_one_is_told(loaded: Model, tmp_path: Path) -> None:
    validated = Validated(sizes=(loaded.image_size,), guidance=(1.0,))
    schedule = teacher(loaded.ref, loaded.solver("ddim", 2)).model_copy(update={"validated": validated})
    file = tmp_path / "schedule.json"
    file.write_bytes(schedule.document())
    asked = ("generate", "--prompt", "cat", "--schedule", file, "--out", tmp_path / "x.png")
    own, other = call(*asked), call(*asked, "--guidance", "3")
    assert f"{2 * loaded.macs.full.macs / 1e9:.4f} G" in own.stdout
    assert "guidance" not in own.stderr
    assert f"{4 * loaded.macs.full.macs / 1e9:.4f} G" in other.stdout
    assert "guidance: the schedule was validated at 1\n" in other.stderr


def test_a_schedule_of_several_scales_is_run_where_it_was_made_for_and_told_outside(loaded: Model, tmp_path: Path) -> None:
    fits = tuple(ScaledCorrections(guidance=scale, corrections=(Correction(),) * 2) for scale in (1.0, 7.5))
    validated = Validated(sizes=(loaded.image_size,), guidance=(1.0, 7.5), default_guidance=1.0)
    schedule = teacher(loaded.ref, loaded.solver("ddim", 2))
    file = tmp_path / "schedule.json"
    file.write_bytes(schedule.model_copy(update={"scaled_corrections": fits, "validated": validated}).document())
    asked = ("generate", "--prompt", "cat", "--schedule", file, "--out", tmp_path / "x.png")
    own, between, outside = call(*asked), call(*asked, "--guidance", "3"), call(*asked, "--guidance", "9")
    assert f"{2 * loaded.macs.full.macs / 1e9:.4f} G" in own.stdout, "not at 7.5, which is nearer to what diffusers takes"
    assert "guidance" not in own.stderr + between.stderr
    assert "guidance: the schedule was validated at 1, 7.5\n" in outside.stderr


def test_a_distilled_model_draws_as_it_was_taught_and_what_its_folder_asks_for_is_told(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    distilled = replace(model, few_steps=2, own_solver="euler", notices=(Notice("code", "the folder has a safety checker"),))
    monkeypatch.setattr(loading, "load", lambda *_, **__: distilled)
    result = call("generate", "--prompt", "cat", "--out", tmp_path / "x.png")
    assert "steps      2 computed of the teacher's 2: 2 full, 0 partial\n" in result.stdout
    assert ", euler\n" in result.stdout
    assert f"{2 * model.macs.full.macs / 1e9:.4f} G" in result.stdout, "one UNet row a step"
    assert result.stderr == "the folder has a safety checker\n"
    asked = ("generate", "--prompt", "cat", "--negative", "dog", "--out", tmp_path / "x.png")
    assert refused(*asked) == "error: negative: needs guidance above 1: this model is not guided unless --guidance says so\n"


def test_what_the_model_does_not_read_of_a_prompt_is_told(tmp_path: Path) -> None:
    texts = ("--prompt", "cat " * 14 + "and a Purple dog", "--negative", "tree " * 15)
    result = call("generate", *texts, "--steps", "1", "--out", tmp_path / "x.png")
    assert "prompt: the model reads 16 tokens and ignored the end: and a Purple dog\n" in result.stderr
    assert "negative: the model reads 16 tokens and ignored the end: tree" in result.stderr


def test_generate_refuses_by_name(loaded: Model, tmp_path: Path) -> None:
    def why(*args: str) -> str:
        return refused("generate", "--prompt", "cat", "--out", tmp_path / "x.png", *args)

    assert "steps" in why("--steps", "0")
    assert "steps" in why("--steps", "1001")
    assert "num_images" in why("--num-images", "0")
    assert "guidance" in why("--negative", "dog", "--guidance", "1")
    assert ".png" in why("--out", str(tmp_path / "x.gif"))
    assert "folder" in why("--out", str(tmp_path / "nowhere" / "x.png"))
    assert "no file" in why("--schedule", "fast")
    assert "--solver" in why("--schedule", "x.json", "--solver", "ddim")
    assert "seed" in why("--seed", "-1")
    for guidance in ("nan", "inf", "-0.5", "-1"):
        assert "guidance" in why("--guidance", guidance)
    (tmp_path / "folder-2.png").mkdir()
    assert "folder-2.png is a folder" in why("--out", str(tmp_path / "folder.png"), "--num-images", "2")
    (tmp_path / "folder-2.png").rmdir()
    assert not list(tmp_path.iterdir())


def test_any_folder_will_do_and_a_name_that_is_given_must_be_one(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models" / "emoji64", tmp_path / "Another one")
    asked = ["generate", "--model", tmp_path / "Another one", "--prompt", "cat", "--steps", "1", "--out", tmp_path / "x.png"]
    assert "name: 'Another one' cannot name a model; give 1 to 64 of a-z" in refused(*asked, "--name", "Another one")
    assert call(*asked).exit_code == 0

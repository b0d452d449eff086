"""Files that are damaged, or made to do harm: one line says which option's file it is and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import single_file, write_single_file
from torch import Tensor
from typer.testing import CliRunner

from engine import random_model
from engine.__main__ import app
from engine.importing.whole_folder import whole_folder

LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
IMPOSSIBLE = 1  # the exit code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("damaged") / "tiny"
    random_model.write("tiny", made)
    write_single_file(made, made.with_name("model.safetensors"))
    return made


def run(folder: Path, *args: object) -> Any:
    """Import the file after --source, or else the model's, with the configurations of `folder` where no others are named."""
    words = args[1:] if args[0] == "--source" else (folder.with_name("model.safetensors"), *args)
    config = () if "--config" in args else ("--config", folder)
    return CliRunner().invoke(app, ["import", *map(str, (*words, *config))])


def lora(folder: Path, file: Path, metadata: dict[str, str] | None = None, **changes: Tensor) -> Path:
    """A LoRA of one layer; changes: of its down, up or alpha."""
    shape = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")[f"{LAYER.removeprefix('unet.')}.weight"].shape
    parts = {"lora_A.weight": torch.ones(2, shape[1]), "lora_B.weight": torch.ones(shape[0], 2)}
    parts |= {{"down": "lora_A.weight", "up": "lora_B.weight"}.get(name, name): tensor for name, tensor in changes.items()}
    save_file({f"{LAYER}.{name}": tensor for name, tensor in parts.items()}, file, metadata=metadata)
    return file


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"down": torch.ones(0, 32), "up": torch.ones(32, 0)}, "expected a change of"),
        ({"alpha": torch.ones(2)}, "alpha must be one finite number"),
        ({"alpha": torch.ones(0)}, "alpha must be one finite number"),
        ({"alpha": torch.tensor(torch.nan)}, "alpha must be one finite number"),
        ({"alpha": torch.tensor(2)}, "as I64"),
        ({"down": torch.full((2, 32), torch.nan)}, "lora_A.weight has numbers that are not finite"),
    ],
)
def test_a_lora_without_sense_is_refused_by_its_option(
    folder: Path, tmp_path: Path, changes: dict[str, Tensor], said: str
) -> None:
    done = run(folder, "--lora", lora(folder, tmp_path / "style.safetensors", **changes), "--out", tmp_path / "out")
    assert done.exit_code == IMPOSSIBLE, done.output
    assert done.stderr.startswith("error: lora: "), done.stderr
    assert said in done.stderr, done.stderr


@pytest.mark.parametrize(
    "settings",
    [
        {"unet.lora_alpha": "much"},
        {"unet.lora_alpha": [1]},
        {"unet.lora_alpha": float("nan")},
        {"unet.alpha_pattern": ["to_k"]},
        {"unet.alpha_pattern": {"(": 1}},
    ],
)
def test_settings_of_a_trainer_that_are_no_numbers_are_refused(folder: Path, tmp_path: Path, settings: object) -> None:
    file = lora(folder, tmp_path / "style.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    done = run(folder, "--lora", file, "--out", tmp_path / "out")
    assert done.exit_code == IMPOSSIBLE, done.output
    assert done.stderr.startswith(f"error: lora: {file}: "), done.stderr
    assert "alpha" in done.stderr, done.stderr


def test_a_missing_lora_in_a_folder_with_a_colon_is_called_missing(folder: Path, tmp_path: Path) -> None:
    done = run(folder, "--lora", tmp_path / "a:b" / "style.safetensors", "--out", tmp_path / "out")
    assert "No such file" in done.stderr, done.stderr


def test_an_error_names_the_option_that_named_the_file(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    save_file({name: tensor.to(torch.int8) for name, tensor in weights.items()}, tmp_path / "small.safetensors")
    save_file({"decoder.conv_in.bias": torch.ones(3)}, tmp_path / "part.safetensors")
    for name in ("small", "part"):
        done = run(folder, "--vae", tmp_path / f"{name}.safetensors", "--out", tmp_path / "out")
        assert done.stderr.startswith("error: vae: "), done.stderr
    done = run(folder, "--config", tmp_path / "none", "--out", tmp_path / "out")
    assert done.stderr.startswith("error: config: "), done.stderr


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_by_file_and_name_unless_asked_for(
    folder: Path, tmp_path: Path, number: float
) -> None:
    name, file, out = "model.diffusion_model.out.2.bias", tmp_path / "model.safetensors", tmp_path / "out"
    tensors = single_file(folder)
    tensors[name] = tensors[name].clone()
    tensors[name][0] = number
    save_file(tensors, file)
    done = run(folder, "--source", file, "--out", out)
    assert done.exit_code == IMPOSSIBLE, done.output
    assert done.stderr.startswith(f"error: source: {file}: {name} has 1 of "), done.stderr
    assert not out.exists()
    done = run(folder, "--source", file, "--allow-nonfinite", "--out", out)
    assert done.exit_code == 0, done.output
    assert "--allow-nonfinite" in (out / "README.md").read_text()


@pytest.mark.parametrize("out", [".", ""])
def test_a_folder_without_a_name_cannot_be_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)  # which is empty
    done = run(folder, "--out", out)
    assert (done.exit_code, done.stderr.startswith("error: out: ")) == (IMPOSSIBLE, True), done.output


def test_names_from_a_file_write_nothing_of_their_own_into_the_card(folder: Path, tmp_path: Path) -> None:
    tensors = single_file(folder) | {"extra\n# Licence: MIT\x1b[2J" + "z" * 10_000: torch.ones(1)}
    save_file(tensors, tmp_path / "model.safetensors")
    done = run(folder, "--source", tmp_path / "model.safetensors", "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert done.exit_code == 0, done.output
    assert "extra # Licence" in card
    assert len(card) < 5_000
    for text in (card, done.stdout):
        assert "\n# Licence" not in text
        assert "\x1b" not in text


def test_pickles_of_odd_tensors_are_read_or_refused(folder: Path, tmp_path: Path) -> None:
    tensors, file = single_file(folder), tmp_path / "model.ckpt"
    name, other = (f"model.diffusion_model.out.0.{part}" for part in ("weight", "bias"))

    def tried(content: object) -> Any:
        torch.save(content, file)
        return run(folder, "--source", file, "--allow-pickle", "--out", tmp_path / "out")

    for odd in (tensors[name].to("meta"), tensors[name].float().to_sparse()):
        done = tried({"state_dict": tensors | {name: odd}})
        assert done.exit_code == IMPOSSIBLE, done.output
        assert name in done.stderr, done.output
    done = tried({"state_dict": tensors | {other: tensors[name]}})  # both in the same memory
    assert done.exit_code == 0, done.output


def test_a_pickle_of_the_first_releases_of_torch_is_read_too(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": single_file(folder)}, file, _use_new_zipfile_serialization=False)
    assert "--allow-pickle" in run(folder, "--source", file, "--out", tmp_path / "out").stderr
    done = run(folder, "--source", file, "--allow-pickle", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output


def test_what_a_killed_import_left_is_removed_by_the_next_and_what_a_running_one_makes_is_not(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    left, other = (tmp_path / f".{name}.{'0' * 32}.tmp" for name in ("mine", "yours"))
    for kept in (left, other, tmp_path / ".mine.notes.tmp"):
        kept.mkdir()
    with whole_folder(out) as running, whole_folder(tmp_path / "mine"):
        assert not left.exists()
        assert running.exists()
        (running / "weights").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.notes.tmp", other.name, "mine"]


@pytest.mark.timeout(60)
def test_a_pickle_that_holds_itself_has_an_end(folder: Path, tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["state_dict"] = endless
    torch.save(endless, tmp_path / "model.ckpt")
    done = run(folder, "--source", tmp_path / "model.ckpt", "--allow-pickle", "--out", tmp_path / "out")
    assert done.exit_code == IMPOSSIBLE, done.output
    assert "no Stable Diffusion checkpoint" in done.stderr, done.output

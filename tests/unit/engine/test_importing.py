"""Checkpoints of other layouts become folders: every weight arrives, and diffusers is the judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from places import ROOT
from safetensors.torch import load_file, save_file
from single_files import single_file, vae, write_single_file
from torch import Tensor
from typer.testing import CliRunner

from engine import loading, random_model, sampler
from engine.__main__ import app
from engine.folder import Folder
from engine.importing.sources import SingleFile
from engine.importing.tensor_file import open_tensors
from registry.errors import FlexiError, Unsupported

KINDS = {"sd1": ("tiny", False), "sd2": ("tiny", True), "sdxl": ("tiny-sdxl", False)}  # of SD 2: the text encoder's layout
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")


def run(*args: object) -> Any:
    return CliRunner().invoke(app, ["import", *map(str, args)])


def imported(*args: object) -> str:
    """What was printed."""
    done = run(*args)
    assert done.exit_code == 0, done.stderr
    return str(done.stdout)


def refused(*args: object) -> str:
    """The one line on stderr; nothing is left where the folder would be."""
    out = Path(str(args[list(args).index("--out") + 1]))
    before = sorted(out.parent.iterdir())
    done = run(*args)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.output
    assert sorted(out.parent.iterdir()) == before
    return str(done.stderr)


def weights(folder: Path) -> dict[str, Tensor]:
    """All of a folder's weights."""
    files = [(name, file) for name in NETWORKS for file in (folder / name).glob("*.safetensors")]
    return {f"{name}.{key}": tensor for name, file in files for key, tensor in load_file(file).items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


def images(folder: Path) -> Tensor:
    """Two images (2, 3, H, W) in [0, 1], guided."""
    model = loading.load(folder)
    noise = torch.stack([model.noise(seed) for seed in range(2)])
    program = model.compile(model.teacher(3))
    condition, negative = model.encode(["red heart", "tiger!! by night"]), model.negative(["", ""])
    return model.decode(sampler.generate(model.network, program, noise, condition, negative, 3.0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each size, in half precision."""
    root = tmp_path_factory.mktemp("folders")
    for size in ("tiny", "tiny-sdxl"):
        random_model.write(size, root / size)
    return {kind: root / size for kind, (size, _) in KINDS.items()}


@pytest.fixture
def tiny_folder(folders: dict[str, Path]) -> Path:
    return folders["sd1"]


@pytest.fixture
def file(tiny_folder: Path, tmp_path: Path) -> Path:
    return write_single_file(tiny_folder, tmp_path / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_becomes_the_folder_that_it_was_made_of_as_diffusers_own_loader_says(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    folder = folders[kind]
    file = write_single_file(folder, tmp_path / "model.safetensors", open_clip=KINDS[kind][1])
    imported(file, "--config", folder, "--out", tmp_path / "out")
    assert same(weights(tmp_path / "out"), weights(folder))
    assert (images(tmp_path / "out") - images(folder)).abs().max() < 1e-6
    family = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    theirs = family.from_single_file(str(file), config=str(folder), local_files_only=True, torch_dtype=torch.float16)
    ours = DiffusionPipeline.from_pretrained(tmp_path / "out", dtype=torch.float16)
    for name in NETWORKS:
        if (folder / name).is_dir():
            assert same(getattr(ours, name).state_dict(), getattr(theirs, name).state_dict())


def test_averaged_weights_are_taken_where_they_are_asked_for(tiny_folder: Path, tmp_path: Path) -> None:
    file = write_single_file(tiny_folder, tmp_path / "model.safetensors", ema=0.5)
    imported(file, "--config", tiny_folder, "--out", tmp_path / "plain")
    imported(file, "--config", tiny_folder, "--ema", "--out", tmp_path / "ema")
    plain, averaged = weights(tmp_path / "plain"), weights(tmp_path / "ema")
    assert any(name.startswith("unet.") for name in plain)
    for name, tensor in plain.items():
        assert torch.equal(averaged[name], tensor * 0.5 if name.startswith("unet.") else tensor)
    assert "ema" in refused(file_without_ema(tiny_folder, tmp_path), "--config", tiny_folder, "--ema", "--out", tmp_path / "no")


def file_without_ema(folder: Path, tmp_path: Path) -> Path:
    return write_single_file(folder, tmp_path / "plain.safetensors")


@pytest.mark.parametrize("layout", ["original", "diffusers", "old diffusers"])
def test_an_autoencoder_of_its_own_takes_the_place_of_the_models(
    tiny_folder: Path, tmp_path: Path, file: Path, layout: str
) -> None:
    saved = load_file(tiny_folder / "vae" / "diffusion_pytorch_model.safetensors")
    other = {name: tensor + 1 for name, tensor in (vae(saved) if layout == "original" else saved).items()}
    if layout == "old diffusers":
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            other = {name.replace(new, old): tensor for name, tensor in other.items()}
    other["loss.discriminator.main.3.num_batches_tracked"] = torch.tensor(7)
    save_file({name: tensor.contiguous() for name, tensor in other.items()}, tmp_path / "vae.safetensors")
    imported(file, "--config", tiny_folder, "--vae", tmp_path / "vae.safetensors", "--out", tmp_path / "out")
    expected = weights(tiny_folder) | {f"vae.{name}": tensor + 1 for name, tensor in saved.items()}
    assert same(weights(tmp_path / "out"), expected)


def test_a_file_without_an_autoencoder_needs_one(tiny_folder: Path, tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in single_file(tiny_folder).items() if not name.startswith("first_stage_model.")}
    save_file(tensors, tmp_path / "model.safetensors")
    assert "give one with --vae" in refused(tmp_path / "model.safetensors", "--config", tiny_folder, "--out", tmp_path / "out")
    own = vae(load_file(tiny_folder / "vae" / "diffusion_pytorch_model.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in own.items()}, tmp_path / "vae.safetensors")
    options = ("--config", tiny_folder, "--vae", tmp_path / "vae.safetensors", "--out", tmp_path / "out")
    imported(tmp_path / "model.safetensors", *options)
    assert same(weights(tmp_path / "out"), weights(tiny_folder))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda t: t.pop("model.diffusion_model.middle_block.1.norm.weight"),
            "its unet lacks mid_block.attentions.0.norm.weight",
        ),
        (
            lambda t: t.update({"model.diffusion_model.out.2.bias": torch.zeros(3)}),
            "conv_out.bias of its unet is 3, expected 4",
        ),
        (lambda t: t.update({"model.diffusion_model.middle_block.1.extra.weight": torch.zeros(3)}), "has besides"),
        (lambda t: t.pop("first_stage_model.quant_conv.weight"), "its vae lacks quant_conv.weight"),
        (lambda t: t.update({"model.diffusion_model.out.2.bias": torch.zeros(4, dtype=torch.uint8)}), "as U8"),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith("cond_stage_model")], "has no text_encoder"),
    ],
)
def test_weights_that_do_not_fit_are_named(tiny_folder: Path, tmp_path: Path, spoil: Any, words: str) -> None:
    tensors = single_file(tiny_folder)
    spoil(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    line = refused(tmp_path / "model.safetensors", "--config", tiny_folder, "--out", tmp_path / "out")
    assert words in line
    assert "model.safetensors" in line


def test_what_is_left_over_is_said(tiny_folder: Path, tmp_path: Path) -> None:
    tensors = single_file(tiny_folder) | {"embedding_of_mine.weight": torch.zeros(1)}
    tensors["cond_stage_model.transformer.text_model.text_projection.weight"] = torch.zeros(2, 2)
    save_file(tensors, tmp_path / "model.safetensors")
    said = imported(tmp_path / "model.safetensors", "--config", tiny_folder, "--out", tmp_path / "out")
    names = "embedding_of_mine.weight, text_model.text_projection.weight"
    assert f"not used, because nothing in the model is called so: {names}\n" in said
    assert "alphas_cumprod" not in said


def test_a_pickle_is_refused_unless_asked_for_and_then_runs_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    class Trap:  # as a trainer's callbacks lie in checkpoints
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "trapped"), "w"))

    content = {"state_dict": single_file(tiny_folder), "callbacks": {"one": Trap()}, "global_step": 7}
    torch.save(content, tmp_path / "model.ckpt")
    options = (tmp_path / "model.ckpt", "--config", tiny_folder, "--out", tmp_path / "out")
    assert "is a pickle" in refused(*options)
    done = run(*options, "--allow-pickle")
    assert not (tmp_path / "trapped").exists()
    assert done.exit_code == 1
    assert "without running what is in it" in done.stderr

    torch.save({**content, "callbacks": {"one": Callback()}}, tmp_path / "model.ckpt")
    imported(*options, "--allow-pickle")
    assert same(weights(tmp_path / "out"), weights(tiny_folder))


class Callback:
    """Of a trainer: an object of a class that torch does not know."""

    def __init__(self) -> None:
        self.best = 0.5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\x00" * 64, "cut short or damaged"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{}" + b" " * 14, "is no Stable Diffusion checkpoint: none of its 0 tensors"),
    ],
)
def test_what_is_no_checkpoint_is_said(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert words in refused(tmp_path / "model.safetensors", "--out", tmp_path / "out")


def test_a_file_that_was_cut_short_is_refused(tiny_folder: Path, tmp_path: Path, file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 100)
    assert "cut short or damaged" in refused(file, "--config", tiny_folder, "--out", tmp_path / "out")


def test_nothing_is_written_over_something_else(tiny_folder: Path, tmp_path: Path, file: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "full is not empty" in refused(file, "--config", tiny_folder, "--out", tmp_path / "full")
    assert "is not a folder" in refused(file, "--config", tiny_folder, "--out", tmp_path / "full" / "notes.txt")
    assert "there is no folder" in run(file, "--config", tiny_folder, "--out", tmp_path / "none" / "out").stderr
    (tmp_path / "empty").mkdir()
    imported(file, "--config", tiny_folder, "--out", tmp_path / "empty")
    assert loading.load(tmp_path / "empty").ref.family == "unet2d-condition"


def test_a_full_disk_is_said_and_leaves_nothing(
    tiny_folder: Path, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (file, "--config", tiny_folder, "--out", tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))  # type: ignore[attr-defined]
    assert "0.00 GB free: make room there" in refused(*options)
    monkeypatch.undo()
    # /dev/full cannot stand for a file that is renamed, so the system's limit on a file's size does
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        line = refused(*options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "diffusion_pytorch_model.safetensors: File too large: make room there" in line


def test_the_card_says_where_every_weight_comes_from(tiny_folder: Path, tmp_path: Path, file: Path) -> None:
    import hashlib

    imported(file, "--config", tiny_folder, "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| checkpoint | model.safetensors | `{hashlib.sha256(file.read_bytes()).hexdigest()}` |" in card
    assert "Command: `python -m engine import model.safetensors --config tiny --out out`" in card
    assert "no safety checker" in card
    assert str(tmp_path) not in card


def test_all_files_may_be_read_by_whoever_may_read_others(tiny_folder: Path, tmp_path: Path, file: Path) -> None:
    imported(file, "--config", tiny_folder, "--out", tmp_path / "out")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*.*") if path.is_file()}
    assert modes == {(tmp_path / "out" / "model_index.json").stat().st_mode & 0o777}


def test_a_folder_is_imported_as_it_is_and_is_known_by_the_same_weights(tmp_path: Path) -> None:
    emoji = ROOT / "models" / "emoji64"
    imported(emoji, "--out", tmp_path / "out")
    assert same(weights(tmp_path / "out"), weights(emoji))
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["requires_safety_checker"] is False
    assert Folder(tmp_path / "out").components == Folder(emoji).components
    for option in (("--ema",), ("--prediction", "v"), ("--size", "512"), ("--config", emoji)):
        assert "is for a single file" in refused(emoji, *option, "--out", tmp_path / "other")


def test_a_config_of_another_family_is_refused(tiny_folder: Path, file: Path) -> None:
    source = SingleFile(open_tensors(file, "source"), None, Folder(tiny_folder), "", None, ema=False)
    with pytest.raises(Unsupported, match="no single file has a vqvae"):  # as latent diffusion calls its autoencoder
        source.weights("vqvae", Folder(tiny_folder), values=False)


def test_options_that_say_nothing_are_refused(tiny_folder: Path, tmp_path: Path, file: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "must be epsilon or v" in refused(file, "--prediction", "x0", *out)
    assert "multiple of 64" in refused(file, "--size", 100, *out)
    assert "--config says it already" in refused(file, "--config", tiny_folder, "--size", 512, *out)
    assert "there is no" in refused(tmp_path / "none.safetensors", *out)


def test_a_file_that_changes_meanwhile_is_refused(
    tiny_folder: Path, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.importing import model_import

    real = model_import.save_weights

    def touching(*arguments: Any) -> None:
        real(*arguments)
        file.touch()

    monkeypatch.setattr(model_import, "save_weights", touching)
    assert "was changed while it was read" in refused(file, "--config", tiny_folder, "--out", tmp_path / "out")


def test_errors_of_an_import_are_of_the_family(tmp_path: Path) -> None:
    from engine.importing.model_import import ImportOptions, import_model

    with pytest.raises(FlexiError):
        import_model(ImportOptions(tmp_path / "none", tmp_path / "out"))

"""A fingerprint stands for the files that are read, and for no others; what is wrong with one is said before loading."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_folders import LATENT_SCHEDULER
from places import ROOT

from engine import loading
from engine.folder import Folder
from engine.loading import load
from registry.errors import Conflict, FlexiError, NotFound, Unsupported
from registry.schedule import teacher

EMOJI = ROOT / "models" / "emoji64"
PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
FINGERPRINT = "sha256:6658a90a5f351fb699912550ba780f1cec5c57304bd487782d9996115e2d5897"  # as schedules of 2026 say it
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The bundled model without what lies beside it."""
    made = tmp_path / "emoji64"
    made.mkdir()
    for part in PARTS:
        shutil.copytree(EMOJI / part, made / part)
    shutil.copy(EMOJI / "model_index.json", made)
    return made


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_the_bundled_model_keeps_the_fingerprint_that_its_schedules_say(folder: Path) -> None:
    for root in (EMOJI, folder):
        assert Folder(root).fingerprint() == Folder(root).earlier_fingerprint() == FINGERPRINT


STRAYS = (
    "unet/.DS_Store",
    "unet/._diffusion_pytorch_model.safetensors",
    "unet/.ipynb_checkpoints/config-checkpoint.json",
    "unet/config.json.bak",
    "unet/config.json~",
    "unet/README.md",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_flax_model.msgpack",
    "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    "unet/openvino_model.xml",
    "vae/diffusion_pytorch_model.bf16.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder/model.safetensors.index.json",
    "text_encoder/tf_model.h5",
    "text_encoder/adapter_config.json",
    "text_encoder/generation_config.json",
    "tokenizer/.DS_Store",
    "tokenizer/chat_template.jinja",
    "tokenizer/config.json",
    "scheduler/config.json",
    "scheduler/scheduler_config-2.json",
    "safety_checker/model.safetensors",
    "README.md",
    "Thumbs.db",
)


@pytest.mark.parametrize("stray", STRAYS)
def test_a_file_that_nobody_reads_changes_nothing(folder: Path, stray: str) -> None:
    """Nor is it read: what lies there could not be."""
    (folder / stray).parent.mkdir(exist_ok=True)
    (folder / stray).write_bytes(b"\xff not what it is called")
    assert Folder(folder).fingerprint() == FINGERPRINT
    Folder(folder).check()
    assert folder / stray not in Folder(folder).read_files()


def test_with_all_of_them_the_model_loads_as_without(folder: Path) -> None:
    for stray in STRAYS:
        (folder / stray).parent.mkdir(exist_ok=True)
        (folder / stray).write_bytes(b"\xff not what it is called")
    assert load(folder).ref.fingerprint == FINGERPRINT


@pytest.fixture
def snapshot(folder: Path, tmp_path: Path) -> Path:
    """The folder as a hub's cache has it: every file a link to a blob."""
    root = tmp_path / "hub" / "models--org--Emoji-64" / "snapshots" / ("0" * 40)
    blobs = root.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(file for file in sorted(folder.rglob("*")) if file.is_file()):
        link = root / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blobs / f"{number:040}")
        link.symlink_to(Path(os.path.relpath(blobs / f"{number:040}", link.parent)))
    return root


def test_a_snapshot_of_a_hub_is_the_same_model_called_as_its_repository(snapshot: Path) -> None:
    model = load(snapshot)
    assert (model.ref.name, model.ref.fingerprint) == ("emoji-64", FINGERPRINT)
    (snapshot / UNET).resolve().write_bytes(b"another blob")
    assert Folder(snapshot).fingerprint() != FINGERPRINT


def test_a_hub_s_folder_instead_of_a_snapshot_is_said(snapshot: Path) -> None:
    with pytest.raises(NotFound, match=f"name one of the folders in {snapshot.parent}"):
        Folder(snapshot.parents[1])


READ = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    UNET,
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
)


@pytest.mark.parametrize("file", READ)
def test_one_byte_of_a_file_that_is_read_changes_the_fingerprint(folder: Path, file: str) -> None:
    data = bytearray((folder / file).read_bytes())
    data[-1] ^= 1 if file.endswith("safetensors") else ord("}") ^ ord(" ") if data[-1:] == b"}" else ord("\n") ^ ord(" ")
    if file == "model_index.json":
        data = bytearray((folder / file).read_bytes() + b" ")
    (folder / file).write_bytes(data)
    assert Folder(folder).fingerprint() != FINGERPRINT


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"])
def test_whatever_a_tokenizer_may_read_is_a_part_of_it(folder: Path, file: str) -> None:
    (folder / "tokenizer" / file).write_text("{}")
    assert Folder(folder).fingerprint() != FINGERPRINT


def test_where_a_folder_lies_is_no_part_of_it(folder: Path) -> None:
    assert Folder(folder.rename(folder.with_name("elsewhere"))).fingerprint() == FINGERPRINT


class TestEarlier:
    """While every file of a component counted, read or not, schedules were made that are still good."""

    def test_a_schedule_made_while_all_files_counted_is_still_accepted(self, folder: Path) -> None:
        (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another")
        (folder / "safety_checker").mkdir()
        (folder / "safety_checker" / "model.safetensors").write_bytes(b"unused")
        change(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
        earlier, other = Folder(folder).earlier_fingerprint(), f"sha256:{'0' * 64}"
        assert earlier != Folder(folder).fingerprint()
        model = load(folder)
        assert model.ref.fingerprint == Folder(folder).fingerprint()
        schedule = teacher(model.ref, model.solver("ddim", 4))
        old = teacher(model.ref.model_copy(update={"fingerprint": earlier}), model.solver("ddim", 4))
        assert model.compile(old).steps == model.compile(schedule).steps
        foreign = teacher(model.ref.model_copy(update={"fingerprint": other}), model.solver("ddim", 4))
        with pytest.raises(FlexiError, match="was made for") as refused:
            model.compile(foreign)
        assert refused.value.param == "model.fingerprint"

    def test_it_is_what_it_was_to_the_byte(self, folder: Path) -> None:
        """Over all files below the components, whatever they are. The version of then said this of such a folder."""
        (folder / "unet" / ".DS_Store").write_bytes(b"x")
        (folder / "unet" / "more").mkdir()
        (folder / "unet" / "more" / "notes.txt").write_bytes(b"y")
        assert Folder(folder).earlier_fingerprint() == "sha256:bea435818e397fbdaa32181b959e8c08409379748e386e7f3fa5962361bd0939"

    def test_a_component_whose_folder_was_removed_is_no_fault(self, folder: Path) -> None:
        change(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
        (folder / "notes.txt").write_text("the safety checker's folder was removed to save its gigabyte")
        Folder(folder).check()
        assert Folder(folder).earlier_fingerprint() != Folder(folder).fingerprint()

    def test_what_cannot_be_read_beside_is_no_fault(self, folder: Path) -> None:
        (folder / "unet" / "more").symlink_to("more")  # a loop
        assert Folder(folder).earlier_fingerprint() == FINGERPRINT


def lfs_pointer(file: Path) -> None:
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 14262248\n")


def empty(file: Path) -> None:
    file.write_bytes(b"")


def web_page(file: Path) -> None:
    file.write_text("\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>")


def broken_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("../../blobs/5d1f")


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


SPOILT = {
    lfs_pointer: "is a pointer of git-lfs, not the file itself: run git lfs pull",
    empty: "is empty: download it again",
    web_page: "is a web page, not the file itself: download it again",
    broken_link: "is a link to ../../blobs/5d1f, which is not there: download the model again",
    a_folder: "is a folder, it must be a file",
}


@pytest.mark.parametrize("file", [UNET, "text_encoder/model.safetensors", "tokenizer/tokenizer.json", "unet/config.json"])
@pytest.mark.parametrize("spoil", SPOILT)
def test_what_only_stands_for_a_file_is_said_with_what_to_do(folder: Path, file: str, spoil: Callable[[Path], None]) -> None:
    spoil(folder / file)
    with pytest.raises(FlexiError) as refused:
        Folder(folder).check()
    assert refused.value.message == f"model: {folder / file} {SPOILT[spoil]}"
    if spoil is not a_folder or not file.startswith("unet/config"):
        with pytest.raises(FlexiError, match=str(folder / file)):
            load(folder)


def cut_in_the_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


def cut_at_the_end(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("cut", [cut_in_the_header, cut_at_the_end])
@pytest.mark.parametrize("file", [UNET, "text_encoder/model.safetensors"])
def test_weights_that_are_cut_short_are_said_before_anything_is_loaded(
    folder: Path, file: str, cut: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(folder / file)
    monkeypatch.setattr("engine.weights.read_weights", None)
    with pytest.raises(Unsupported, match=rf"{file} is cut short or damaged \(.*\): download it again"):
        load(folder)


def test_a_file_that_must_not_be_read_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def denied(path: Path, *mode: Any, **options: Any) -> Any:
        if path == folder / UNET:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *mode, **options)

    monkeypatch.setattr(Path, "open", denied)  # root, which tests may run as, may read everything
    with pytest.raises(NotFound, match=f"cannot read {folder / UNET}: Permission denied: let this user read it"):
        Folder(folder).check()


@pytest.mark.parametrize("spoil", SPOILT)
def test_an_index_that_only_stands_for_one_is_said(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder / "model_index.json")
    with pytest.raises(FlexiError) as refused:
        Folder(folder)
    assert refused.value.text == f"{folder / 'model_index.json'} {SPOILT[spoil]}"


@pytest.mark.parametrize("part", PARTS)
def test_a_component_without_its_folder_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(NotFound, match=f"{part} is missing: there is no folder {folder / part}"):
        Folder(folder).check()
    with pytest.raises(NotFound, match=f"{part} is missing"):
        load(folder)


def test_a_vocabulary_without_its_merges_is_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").rename(folder / "tokenizer" / "vocab.json")
    with pytest.raises(NotFound, match=r"neither tokenizer\.json nor vocab\.json with merges\.txt"):
        load(folder)


@pytest.mark.parametrize("file", [UNET, "unet/config.json", "tokenizer/tokenizer_config.json"])
def test_a_file_that_changes_while_the_model_is_loaded_is_said(
    folder: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: object) -> dict[str, object]:
        (folder / file).write_bytes((folder / file).read_bytes())
        return {}

    monkeypatch.setattr("engine.loading._class_names", late)
    monkeypatch.setattr("engine.loading.Folder.check", lambda self: late())
    with pytest.raises(Conflict, match=f"{folder / file} was changed while the model was loaded"):
        load(folder)


def test_files_are_hashed_while_weights_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = threading.Barrier(2, timeout=30)
    real, hashing = loading.read_weights_to, Folder.fingerprint

    def read(device: Any, family: Any, files: Folder, component: str, **options: Any) -> Any:
        if component == "unet":
            meeting.wait()
        return real(device, family, files, component, **options)

    def fingerprint(files: Folder) -> str:
        meeting.wait()
        return hashing(files)

    monkeypatch.setattr(loading, "read_weights_to", read)
    monkeypatch.setattr(Folder, "fingerprint", fingerprint)
    assert load(folder).ref.fingerprint == FINGERPRINT


def test_the_files_of_an_old_pipeline_lie_at_its_root(tmp_path: Path) -> None:
    root = tmp_path / "ddpm"
    root.mkdir()
    (root / "model_index.json").write_text(
        '{"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}'
    )
    (root / "config.json").write_text("{}")
    (root / "scheduler_config.json").write_text(json.dumps(LATENT_SCHEDULER))
    (root / "diffusion_pytorch_model.bin").write_bytes(b"x")
    first = Folder(root).fingerprint()
    (root / "README.md").write_text("hello")
    assert Folder(root).fingerprint() == first
    (root / "diffusion_pytorch_model.bin").write_bytes(b"y")
    assert Folder(root).fingerprint() != first

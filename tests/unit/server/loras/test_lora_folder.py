"""The operator's folder: what fits a model is offered, what does not is said, and a file never stands for another one."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path

import pytest
import torch
from lora_files import write_lora
from safetensors.torch import load_file, save_file

from engine import random_model
from engine.loading import load
from engine.model import Model
from registry.errors import Conflict, InvalidInput, NotFound, Unsupported
from server.loras.lora_folder import LoraFolder
from server.loras.offered_loras import OfferedLoras
from server.request_fields import LoraWish

TO_V = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
TO_K = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"
Q_PROJ = "encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model") / "tiny"
    random_model.write("tiny", made, "float32")
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    torch.set_num_threads(1)
    return load(folder)


@pytest.fixture(scope="module")
def written(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    loras = tmp_path_factory.mktemp("loras")
    networks = {"unet": model.network.unet, "text_encoder": model.prompts.encoder}  # type: ignore[attr-defined]
    write_lora(loras / "style.safetensors", networks, {"unet": [TO_V]}, seed=1)
    write_lora(loras / "Words-2.safetensors", networks, {"unet": [TO_V, TO_K], "text_encoder": [Q_PROJ]}, seed=2)
    return loras


@pytest.fixture
def loras(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(written, tmp_path / "loras"))


def offered(loras: Path, folder: Path, model: Model, most: int = 2**30, alone: bool = True) -> OfferedLoras:
    found = LoraFolder(loras, most, alone).offered(folder, model)
    assert found
    return found


def wishes(**scales: float) -> list[LoraWish]:
    return [LoraWish(name=name.replace("_", "-"), scale=scale) for name, scale in scales.items()]


def test_what_fits_is_offered_with_its_digest_and_what_it_changes_whether_or_not_the_model_has_weights(folder, model, loras):
    found, away = offered(loras, folder, model), offered(loras, folder, load(folder, weights=False))
    assert found.loras == away.loras
    assert {name: lora.counts for name, lora in found.loras.items()} == {
        "Words-2": {"text_encoder": 1, "unet": 2},
        "style": {"unet": 1},
    }
    assert found.loras["style"].digest == hashlib.sha256((loras / "style.safetensors").read_bytes()).hexdigest()


def test_what_is_no_lora_for_this_model_is_said_and_not_offered(folder, model, loras, caplog):
    (loras / "torn.safetensors").write_bytes((loras / "style.safetensors").read_bytes()[:200])
    (loras / "pickle.ckpt").write_bytes(b"\x80\x02.")
    (loras / "README.md").write_text("not looked at")
    shutil.copy(loras / "style.safetensors", loras / "my style.safetensors")
    shutil.copy(loras / "style.safetensors", loras / "..safetensors")
    save_file({f"unet.nowhere.lora_{half}.weight": torch.ones(1, 1) for half in "AB"}, loras / "odd.safetensors")
    style = load_file(loras / "style.safetensors")
    wide = {name: torch.ones(2, 5) if "lora_A" in name else tensor for name, tensor in style.items()}
    save_file(wide, loras / "wide.safetensors")
    peft = {name.replace("unet.", "base_model.model."): tensor for name, tensor in style.items()}
    save_file(peft, loras / "peft.safetensors")
    (loras / "broken.safetensors").symlink_to(loras / "nowhere")
    with caplog.at_level(logging.WARNING):
        found = offered(loras, folder, model)
    assert set(found.loras) == {"Words-2", "style"}
    said = {record.args[0]: record.getMessage() for record in caplog.records if "not offered" in record.msg}
    for name, why in (
        ("torn.safetensors", "is cut short or damaged"),
        ("pickle.ckpt", "pickle"),
        ("my style.safetensors", "its name must be"),
        ("odd.safetensors", "nothing in this model is called"),
        ("wide.safetensors", "expected a change of"),
        ("peft.safetensors", "adapter_config.json"),
        ("broken.safetensors", ""),
    ):
        assert why in said.pop(name)
    assert set(said) == {"..safetensors"}


def test_of_several_models_each_offers_what_fits_it_and_a_misfit_is_no_warning(folder, model, loras, caplog, tmp_path):
    random_model.write("tiny-sdxl", tmp_path / "other", "float32")
    other = load(tmp_path / "other", weights=False)
    both = LoraFolder(loras, 2**30, alone=False)
    with caplog.at_level(logging.INFO):
        found = both.offered(folder, model), both.offered(tmp_path / "other", other)
    names = [set(one.loras) for one in found if one]
    assert names == [{"Words-2", "style"}, set()]
    assert {record.levelname for record in caplog.records if "not offered" in record.msg} == {"INFO"}


def test_a_choice_is_the_same_in_any_order_and_another_for_another_scale_or_content(folder, model, loras):
    found = offered(loras, folder, model)
    one = found.chosen(wishes(style=0.5, Words_2=1))
    assert one == found.chosen(wishes(Words_2=1.0, style=0.5))
    assert one.key == found.chosen(wishes(Words_2=1.0, style=0.5)).key != ""
    assert one != found.chosen(wishes(Words_2=1.0, style=0.6))
    assert found.chosen(wishes(style=1, Words_2=0)) == found.chosen(wishes(style=1))
    assert not found.chosen(wishes(style=0))
    assert found.chosen(wishes(style=0)).key == ""
    assert (one.key_of_texts, found.chosen(wishes(style=1)).key_of_texts) == (found.chosen(wishes(Words_2=1)).key, "")
    networks = {"unet": model.network.unet}
    write_lora(loras / "style.safetensors", networks, {"unet": [TO_V]}, seed=3)
    assert offered(loras, folder, model).chosen(wishes(style=0.5, Words_2=1)) != one


@pytest.mark.parametrize(
    ("asked", "error", "param", "said"),
    [
        ([LoraWish(name="style"), LoraWish(name="gone")], NotFound, "loras.1.name", "this model has Words-2, style"),
        ([LoraWish(name="style"), LoraWish(name="style", scale=0.5)], InvalidInput, "loras.1.name", "named before"),
    ],
)
def test_what_cannot_be_chosen_is_refused_by_its_place(folder, model, loras, asked, error, param, said):
    with pytest.raises(error, match=said) as caught:
        offered(loras, folder, model).chosen(asked)
    assert caught.value.param == param


def test_a_model_without_any_and_a_memory_too_small_are_said(folder, model, loras, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="this model has none") as caught:
        offered(tmp_path / "empty", folder, model).chosen(wishes(style=1))
    assert caught.value.param == "loras"
    with pytest.raises(InvalidInput, match=r"FLEXI_LORAS_MIB allows 0\.0") as caught:
        offered(loras, folder, model, most=100).chosen(wishes(style=1))
    assert caught.value.param == "loras"


def test_the_bytes_of_a_choice_are_those_of_the_tensors_that_are_not_the_models_own(folder, model, loras):
    found = offered(loras, folder, model)
    both = found.chosen(wishes(style=1, Words_2=1))  # which change one layer together
    made = found.adapted(model, both)
    own = {id(tensor) for network in model._networks for tensor in (*network.parameters(), *network.buffers())}
    tensors = [tensor for network in made._networks for tensor in (*network.parameters(), *network.buffers())]
    assert both.bytes == sum(tensor.nbytes for tensor in tensors if id(tensor) not in own) > 0


def test_a_folder_that_is_gone_when_it_is_looked_through_offers_nothing_and_ends_nothing(folder, model, tmp_path, caplog):
    assert offered(tmp_path / "gone", folder, model).loras == {}
    assert "no LoRA is offered" in caplog.text


@pytest.mark.parametrize("how", ["replaced", "changed in place", "removed", "its time restored"])
def test_a_file_that_is_not_what_it_was_fails_a_new_set_and_is_never_used(folder, model, loras, how):
    import os

    found = offered(loras, folder, model)
    style, file = found.chosen(wishes(style=1)), loras / "style.safetensors"
    assert found.adapted(model, style).network.unet is not model.network.unet
    before, other = file.stat(), write_lora(loras / "new", {"unet": model.network.unet}, {"unet": [TO_V]}, seed=9)
    if how == "replaced":
        other.replace(file)
    elif how == "removed":
        file.unlink()
    else:
        file.write_bytes(other.read_bytes())
        if how == "its time restored":
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Conflict, match="style ") as caught:
        found.adapted(model, style)
    assert caught.value.param == "loras"
    assert str(loras) not in caught.value.text, "clients need not know where files lie"


def test_a_sum_that_overflows_is_refused_by_name(folder, loras):
    half = load(folder, dtype="float16")
    file = loras / "style.safetensors"
    save_file({name: 1e4 * tensor for name, tensor in load_file(file).items()}, file)
    found = offered(loras, folder, half)
    with pytest.raises(Unsupported, match=r"^loras: style: .* overflows in float16") as caught:
        found.adapted(half, found.chosen(wishes(style=4)))
    assert caught.value.param == "loras"

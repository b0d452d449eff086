"""A model with LoRAs added is the imported folder with the same LoRAs fused, and leaves the model as it was."""

from pathlib import Path

import pytest
import torch
from places import ROOT
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from engine.__main__ import app
from engine.adapters import adapted, read_loras
from engine.importing.model_import import ImportOptions, import_model
from engine.loading import load
from engine.model import Model
from engine.sampler import generate
from registry.errors import Unsupported

MODEL, GREY = ROOT / "models" / "emoji64", ROOT / "models" / "emoji64-lora" / "grey.safetensors"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


def drawn(model: Model, steps: int = 2) -> Tensor:
    """The latent of one image."""
    program = model.compile(model.teacher(steps))
    return generate(model.network, program, model.noise(3)[None], model.encode(["red heart"]), model.negative([""]), 3.0)


@pytest.fixture(scope="module")
def base() -> Model:
    torch.set_num_threads(1)
    return load(MODEL)


@pytest.fixture(scope="module")
def words(base: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of one layer of the text encoder."""
    width = base.prompts.encoder.config.hidden_size  # type: ignore[attr-defined]  # it reads texts
    rng = torch.Generator().manual_seed(0)
    file = tmp_path_factory.mktemp("words") / "words.safetensors"
    halves = {"A": torch.randn(2, width, generator=rng), "B": torch.randn(width, 2, generator=rng)}
    save_file({f"text_encoder.{TEXT}.lora_{half}.weight": tensor for half, tensor in halves.items()}, file)
    return file


def test_it_draws_what_the_imported_folder_draws(base: Model, words: Path, tmp_path: Path) -> None:
    """Whose weights are rounded to the type of its files, float16, and here they are not."""
    import_model(ImportOptions(MODEL, tmp_path / "fused", (f"{GREY}:0.8", f"{words}:-0.5")))
    before, fused = drawn(base), load(tmp_path / "fused")
    both = adapted(base, read_loras(MODEL, [(GREY, 0.8), (words, -0.5)]))
    for own, imported in ((both.network.unet, fused.network.unet), (both.prompts.encoder, fused.prompts.encoder)):  # type: ignore[attr-defined]
        rounded = imported.state_dict()
        assert all(torch.equal(weight.half(), rounded[name].half()) for name, weight in own.state_dict().items())
    assert torch.allclose(drawn(both), drawn(fused), atol=0.01)
    assert torch.equal(drawn(base), before)
    assert not torch.allclose(drawn(both), before, atol=0.1)


def test_only_layers_that_change_take_memory(base: Model) -> None:
    (lora,) = read_loras(MODEL, [(GREY, 1.0)])
    changed = {layer.weight for layer in lora.changes if layer.component == "unet"}
    own, other = (dict(model.network.unet.named_parameters()) for model in (base, adapted(base, [lora])))
    assert own.keys() == other.keys()
    assert {name for name in own if own[name] is not other[name]} == changed
    assert 0 < len(changed) < len(own)


def test_networks_that_no_lora_changes_are_the_models_own(base: Model, words: Path) -> None:
    grey, texts = (adapted(base, read_loras(MODEL, [(file, 1.0)])) for file in (GREY, words))
    assert grey.prompts.encoder is base.prompts.encoder  # type: ignore[attr-defined]
    assert texts.network.unet is base.network.unet
    assert texts.decoder is grey.decoder is base.decoder


def test_a_file_that_fits_nothing_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    save_file(
        {"unet.nowhere.lora_A.weight": torch.ones(1, 1), "unet.nowhere.lora_B.weight": torch.ones(1, 1)}, tmp_path / "odd"
    )
    with pytest.raises(Unsupported, match="nothing in this model is called") as caught:
        read_loras(MODEL, [(tmp_path / "odd", 1.0)])
    assert caught.value.param == "lora"


def test_generate_says_what_a_lora_changes_and_refuses_to_compile_it(tmp_path: Path) -> None:
    line = ["generate", "--prompt", "red heart", "--steps", "2", "--lora", f"{GREY}:0.5", "--out", str(tmp_path / "grey.png")]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert "lora: grey.safetensors × 0.5 changes 115 layers of unet" in result.output
    assert (tmp_path / "grey.png").is_file()
    refused = CliRunner().invoke(app, [*line, "--compile"])
    assert refused.exit_code != 0
    assert "lora" in refused.output

"""What a file is, by its header alone: files of real sizes that take no room, and what is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from single_files import original, write_header
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from typer.testing import CliRunner

from engine.__main__ import app
from engine.components import fitting_unet
from engine.config import complete
from engine.folder import Folder
from engine.importing.kinds import FOREIGN, INPUTS, KINDS, PARTS, detect
from engine.importing.layouts import spelt
from engine.importing.networks import expected, networks, refuse_misfit
from engine.importing.sources import single_file
from engine.importing.tensor_file import open_tensors
from engine.importing.tokenizer import clip_tokenizer
from engine.schedulers import noise_levels
from registry.errors import InvalidInput, Unsupported

Shapes = Mapping[str, tuple[int, ...]]
UNET = "model.diffusion_model."
SMALLEST = {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3)}  # of which every checkpoint has one


def attending(width: int) -> dict[str, tuple[int, ...]]:
    """As much of a checkpoint as shows its kind."""
    return {**SMALLEST, f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, width)}


@pytest.mark.parametrize("width", KINDS)
def test_files_of_the_published_sizes_are_known_and_fit_the_configurations_that_the_project_brings(
    tmp_path: Path, width: int
) -> None:
    name, architecture = KINDS[width]
    unet = complete({**architecture.unet, "_class_name": "UNet2DConditionModel"})
    with torch.device("meta"):
        texts: list[Any] = [dict(text) for text in architecture.texts]
        if name == "Stable Diffusion 2":
            texts[0]["num_hidden_layers"] += 1  # the file has the layer that nobody reads
        modules = {"unet": UNet2DConditionModel(**architecture.unet), "vae": AutoencoderKL(**architecture.vae)}
        modules["text_encoder"] = CLIPTextModel(CLIPTextConfig(**texts[0]))
        if len(texts) > 1:
            modules["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**texts[1]))
        parts = {component: module.state_dict() for component, module in modules.items()}
        tensors = original(parts, unet, open_clip=name == "Stable Diffusion 2")
    if name == "Stable Diffusion 2":
        tensors["cond_stage_model.model.text_projection"] = torch.empty(1024, 1024, device="meta")
    file = open_tensors(write_header(tmp_path / "model.safetensors", {k: tuple(t.shape) for k, t in tensors.items()}), "source")
    found = detect(file)
    assert (found.name, found.architecture, found.ema) == (name, architecture, False)

    prediction = "v" if found.prediction is None else None
    source = single_file(file, found, None, prediction, None, ema=False)
    (tmp_path / "out").mkdir()
    source.write_configs(tmp_path / "out")
    made = Folder(tmp_path / "out")
    assert fitting_unet(made)["sample_size"] == {768: 64, 1024: 96, 2048: 128}[width]
    assert {"unet", "vae", "text_encoder"} <= {*networks(made)}
    for component in networks(made):
        wanted = expected(made, component)
        there = spelt(source.weights(component, made, values=False), wanted)
        assert refuse_misfit(there, wanted, component, file.path, "source") == []
    assert source.unused() == []
    scheduler = made.config("scheduler", "scheduler_config.json")
    assert scheduler["prediction_type"] == ("v_prediction" if width == 1024 else "epsilon")
    levels = noise_levels(scheduler, made.component("scheduler"), {}, pixels=False)
    assert float(levels.alphas_cumprod[-1]) == pytest.approx(0.00466, rel=1e-2)  # as Stable Diffusion's are


def test_what_is_predicted_is_read_from_the_marks_that_trainers_leave(tmp_path: Path) -> None:
    def said(shapes: Shapes, **metadata: str) -> tuple[str | None, bool]:
        found = detect(open_tensors(write_header(tmp_path / "model.safetensors", shapes, **metadata), "source"))
        return found.prediction, found.zero_snr

    assert said(attending(768)) == ("epsilon", False)
    assert said(attending(2048)) == ("epsilon", False)
    assert said({**attending(2048), "v_pred": (0,), "ztsnr": (0,)}) == ("v_prediction", True)
    assert said(attending(1024)) == (None, False)
    assert said(attending(1024), **{"modelspec.prediction_type": "v"}) == ("v_prediction", False)
    assert said(attending(1024), **{"modelspec.prediction_type": "epsilon"}) == ("epsilon", False)


def test_stable_diffusion_2_is_asked_about_where_it_does_not_say_what_it_predicts(tmp_path: Path) -> None:
    file = open_tensors(write_header(tmp_path / "model.safetensors", attending(1024)), "source")
    with pytest.raises(InvalidInput, match="say --prediction epsilon"):
        single_file(file, detect(file), None, None, None, ema=False)
    assert single_file(file, detect(file), None, "v", None, ema=False).size == 768
    assert single_file(file, detect(file), None, "epsilon", None, ema=False).size is None
    assert single_file(file, detect(file), None, "v", 512, ema=False).size == 512


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        *(({**attending(768), f"x.{part}x": (1,)}, what) for part, what in FOREIGN.items() if not part.startswith("model.")),
        ({**attending(768), f"{UNET}label_emb.weight": (1000, 4)}, "an upscaler"),
        *(({f"{start}x": (1,)}, what) for start, what in PARTS.items()),
        *(({f"{UNET}input_blocks.0.0.weight": (320, channels, 3, 3)}, what) for channels, what in INPUTS.items()),
        ({f"{UNET}input_blocks.0.0.weight": (320, 6, 3, 3)}, "takes 6 channels"),
        ({f"{UNET}input_blocks.0.0.weight": (320,)}, "is no convolution's"),
        (attending(1280), "the refiner of Stable Diffusion XL"),
        (attending(640), "attends to a context 640 wide"),
        (SMALLEST, "attends to a context None wide"),
        ({"some.weight": (2, 2)}, "is no Stable Diffusion checkpoint"),
    ],
)
def test_what_cannot_be_imported_is_refused_by_its_name(tmp_path: Path, shapes: Shapes, words: str) -> None:
    file = write_header(tmp_path / "model.safetensors", shapes)
    with pytest.raises(Unsupported) as refused:
        detect(open_tensors(file, "source"))
    assert words in refused.value.message
    assert str(file) in refused.value.message


def test_clips_tokenizer_is_the_one_of_openai() -> None:
    first, second = clip_tokenizer("<|endoftext|>"), clip_tokenizer("!")
    assert len(first) == len(second) == 49408
    known = {  # as openai/clip-vit-large-patch14 reads them
        "a photo of a cat": [320, 1125, 539, 320, 2368],
        "Red HEART!": [736, 1936, 256],
        "naïve café": [1097, 35689, 563, 15304],
    }
    for text, numbers in known.items():
        assert first(text).input_ids == [49406, *numbers, 49407]
    padded = [made("cat", padding="max_length").input_ids for made in (first, second)]
    assert padded == [[49406, 2368, 49407, *[49407] * 74], [49406, 2368, 49407, *[0] * 74]]


def test_the_command_names_a_file_that_is_something_else(tmp_path: Path) -> None:
    file = write_header(tmp_path / "inpaint.safetensors", {f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3)})
    done = CliRunner().invoke(app, ["import", str(file), "--out", str(tmp_path / "out")])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert f"{file} is an inpainting model" in done.stderr
    assert list(tmp_path.iterdir()) == [file]

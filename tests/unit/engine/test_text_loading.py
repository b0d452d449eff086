"""Texts that T5 and CLIP read for transformers, held to what diffusers' own pipelines encode of the same folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import model_folders
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Pipeline,
)
from hypothesis import example, given
from hypothesis import strategies as st
from model_folders import TOKENIZER, change, t5_encoder, t5_tokenizer
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from engine.components import refuse_texts
from engine.condition import Condition
from engine.folder import Folder
from engine.prompts import Prompts
from engine.t5_prompts import T5Prompts, T5Text
from engine.text_layouts import t5_tokens
from engine.text_loading import text_prompts
from registry.errors import FlexiError, InvalidInput, NotFound, Unsupported

TEXTS = ["Red cat ", "", " a blue DOG and a red cat, a blue dog and a red cat, and a red dog, and cats and dogs and rest"]
T5_WIDTH = 16
CONFIGS: dict[str, dict[str, Any]] = {
    "PixArtTransformer2DModel": {"caption_channels": T5_WIDTH, "cross_attention_dim": 8, "use_additional_conditions": True},
    "SD3Transformer2DModel": {"joint_attention_dim": T5_WIDTH, "pooled_projection_dim": 24},
    "FluxTransformer2DModel": {"joint_attention_dim": T5_WIDTH, "pooled_projection_dim": 8, "guidance_embeds": True},
}


def written(folder: Path, pipeline: Any, transformer: str, **config: Any) -> Path:
    """The texts of a folder. The transformer has its configuration only, for nothing more of it is read."""
    pipeline.save_pretrained(folder)
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text(json.dumps({**CONFIGS[transformer], **config}))
    change(folder / "model_index.json", transformer=["diffusers", transformer])
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    root, t5 = tmp_path_factory.mktemp("texts"), t5_tokenizer()
    absent = {"transformer": None, "vae": None}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = CLIPTokenizer.from_pretrained(TOKENIZER)
        text = model_folders.clip_text(clip)
        alone = {"tokenizer": t5, "text_encoder": t5_encoder(T5_WIDTH), "scheduler": None, **absent}
        two = {f"tokenizer{suffix}": clip for suffix in ("", "_2")}
        two |= {f"text_encoder{suffix}": CLIPTextModelWithProjection(text).eval() for suffix in ("", "_2")}
        flow = FlowMatchEulerDiscreteScheduler()
        three = {"tokenizer_3": t5, "text_encoder_3": t5_encoder(T5_WIDTH)}
        flux = {
            "tokenizer": clip,
            "text_encoder": CLIPTextModel(text).eval(),
            "tokenizer_2": t5,
            "text_encoder_2": t5_encoder(),
        }
    pixart = "PixArtTransformer2DModel"
    return {
        "alpha": written(root / "alpha", PixArtAlphaPipeline(**alone), pixart),
        "sigma": written(root / "sigma", PixArtSigmaPipeline(**alone), pixart, use_additional_conditions=False),
        "sd3": written(
            root / "sd3", StableDiffusion3Pipeline(scheduler=flow, **two, **three, **absent), "SD3Transformer2DModel"
        ),
        "sd3-clips": written(
            root / "sd3-clips",
            StableDiffusion3Pipeline(scheduler=flow, **two, text_encoder_3=None, tokenizer_3=None, **absent),
            "SD3Transformer2DModel",
        ),
        "flux": written(root / "flux", FluxPipeline(scheduler=flow, **flux, **absent), "FluxTransformer2DModel"),
    }


def prompts_of(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Prompts:
    files = Folder(folder)
    made = text_prompts(files, files.config("transformer"), (64, 32), torch.device(device), dtype)
    assert made is not None
    return made


def pixart(folder: Path, kind: Any, texts: list[str], tokens: int) -> Condition:
    pipeline = kind.from_pretrained(folder, vae=None, transformer=None, scheduler=None)
    states, mask, _, _ = pipeline.encode_prompt(texts, False, max_sequence_length=tokens)
    return Condition(states, mask=mask.bool())


def sd3(folder: Path, texts: list[str], tokens: int) -> Condition:
    absent = {} if (folder / "text_encoder_3").exists() else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, vae=None, transformer=None, **absent)
    pipeline.transformer = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=T5_WIDTH))
    states, _, pooled, _ = pipeline.encode_prompt(texts, None, None, "cpu", 1, False, max_sequence_length=tokens)
    return Condition(states, pooled)


def flux(folder: Path, texts: list[str], tokens: int) -> Condition:
    pipeline = FluxPipeline.from_pretrained(folder, vae=None, transformer=None)
    states, pooled, _ = pipeline.encode_prompt(texts, None, "cpu", max_sequence_length=tokens)
    return Condition(states, pooled)


OWN: dict[str, tuple[Callable[..., Condition], int, int]] = {  # diffusers' own, tokens of T5, tokens of the context
    "alpha": (lambda *given: pixart(given[0], PixArtAlphaPipeline, *given[1:]), 120, 120),
    "sigma": (lambda *given: pixart(given[0], PixArtSigmaPipeline, *given[1:]), 300, 300),
    "sd3": (sd3, 256, 16 + 256),
    "sd3-clips": (sd3, 256, 16 + 256),
    "flux": (flux, 512, 512),
}


@pytest.mark.parametrize("name", OWN)
@torch.inference_mode()
def test_texts_are_encoded_as_diffusers_pipeline_encodes_them(folders: dict[str, Path], name: str) -> None:
    own, tokens, length = OWN[name]
    prompts, want = prompts_of(folders[name]), own(folders[name], TEXTS, tokens)
    assert (prompts.tokens, prompts.reads_texts, prompts.takes_chunks, prompts.guides) == (length, True, False, True)
    got = prompts.encode(TEXTS)
    for made, wanted in ((got.context, want.context), (got.pooled, want.pooled), (got.mask, want.mask)):
        assert (made is None) == (wanted is None)
        if made is not None and wanted is not None:
            assert torch.equal(made, wanted)
    for alone, row in ((prompts.encode([text]), got[i : i + 1]) for i, text in enumerate(TEXTS)):
        torch.testing.assert_close(alone.context, row.context, rtol=0, atol=1e-5)
    assert torch.equal(prompts.negative([""]).tensors[0], prompts.encode([""]).tensors[0]), "an empty one is encoded"


def test_pixart_of_1024_pixels_is_told_the_size(folders: dict[str, Path]) -> None:
    condition = prompts_of(folders["alpha"]).encode(TEXTS)
    assert torch.equal(condition.sizes, torch.tensor([[64.0, 32.0, 2.0]]).expand(3, 3))
    assert torch.equal(condition.at(48, 96).sizes, torch.tensor([[48.0, 96.0, 0.5]]).expand(3, 3))
    assert prompts_of(folders["sigma"]).encode(TEXTS).sizes is None


@pytest.mark.parametrize("name", ["alpha", "flux", "sd3"])
def test_in_half_precision_t5_keeps_its_wide_weights(folders: dict[str, Path], name: str) -> None:
    """`wo` overflows in float16; and a model without weights knows what it would take."""
    prompts, empty = prompts_of(folders[name], torch.float16), prompts_of(folders[name], torch.float16, "meta")
    t5, told = (made.text if isinstance(made, T5Prompts) else made.t5 for made in (prompts, empty))
    types = {key: weight.dtype for key, weight in t5.encoder.named_parameters()}
    assert {key for key, dtype in types.items() if dtype == torch.float32} == {key for key in types if ".wo." in key} != set()
    assert {key: weight.dtype for key, weight in told.encoder.named_parameters()} == types
    condition = prompts.encode(TEXTS)
    assert condition.tensors[0].dtype == torch.float16


def test_the_number_of_tokens_follows_one_rule(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders["flux"], tmp_path / "flux"))
    change(copy / "transformer" / "config.json", guidance_embeds=False)
    assert (t5_tokens(Folder(folders["flux"])), t5_tokens(Folder(copy))) == (512, 256)
    change(copy / "model_index.json", max_sequence_length=40)
    assert prompts_of(copy).tokens == 40
    change(copy / "model_index.json", max_sequence_length=0)
    with pytest.raises(Unsupported, match=r"a whole number from 1 to 512 in model_index\.json, got 0") as caught:
        prompts_of(copy)
    assert caught.value.param == "max_sequence_length"
    clips = Path(shutil.copytree(folders["sd3-clips"], tmp_path / "clips"))
    change(clips / "model_index.json", max_sequence_length=0)
    want = sd3(clips, TEXTS, 0)
    assert torch.equal(prompts_of(clips).encode(TEXTS).context, want.context)


LONG = " ".join(["a red cat and a blue dog,"] * 80)


@pytest.mark.parametrize(
    ("name", "text", "reader", "tokens"),
    [
        ("alpha", LONG, "the model", 0),
        ("flux", LONG, "T5", 512),
        ("flux", LONG[:150], "CLIP, unlike T5,", 16),
        ("sd3", LONG, "T5", 256),
        ("sd3-clips", LONG[:150], "the model", 16),
    ],
)
def test_what_is_not_read_is_said_with_who_does_not(
    folders: dict[str, Path], name: str, text: str, reader: str, tokens: int
) -> None:
    reading = prompts_of(folders[name]).reading(text)
    assert (reading.reader, reading.tokens) == (reader, tokens)
    assert reading.cut
    assert text.endswith(reading.cut)
    assert not prompts_of(folders[name]).reading("red cat").cut


@pytest.mark.parametrize("name", ["alpha", "flux", "sd3", "sd3-clips"])
def test_weights_of_words_and_chunks_are_refused_by_name(folders: dict[str, Path], name: str) -> None:
    prompts = prompts_of(folders[name])
    for encode in (prompts.encode, prompts.negative):
        with pytest.raises(InvalidInput, match="T5 reads one chunk, without weights") as caught:
            encode(["(red:1.2) cat"], syntax="webui")
        assert caught.value.param == "prompt_syntax"
        with pytest.raises(InvalidInput) as caught:
            encode(["red cat"], chunks=2)
        assert caught.value.param == "prompt_chunks"
    with pytest.raises(InvalidInput):
        prompts.reading("red cat", syntax="webui")


@given(st.text(st.sampled_from("aredCaT ,\té́İΣ☃\n"), max_size=60))
@example(LONG)
@example(" İİİİİ a red cat and a blue dog")
def test_of_a_prompt_what_t5_cuts_is_never_read(text: str) -> None:
    short = T5Text(t5_tokenizer(), None, 9, masked=True)
    cut = T5Prompts(short).reading(text).cut
    ids = [short.tokenizer(part.lower().strip(), verbose=False).input_ids for part in (text, text[: len(text) - len(cut)])]
    assert text.endswith(cut)
    assert bool(cut) == (len(ids[0]) > 9)


def another_width(root: Path) -> None:
    change(root / "transformer" / "config.json", caption_channels=17, joint_attention_dim=17)


def another_pooled_width(root: Path) -> None:
    change(root / "transformer" / "config.json", pooled_projection_dim=7)


def no_tokenizer(root: Path) -> None:
    (root / "tokenizer" / "tokenizer.json").unlink()


def only_sentences(root: Path) -> None:
    (root / "tokenizer" / "tokenizer.json").rename(root / "tokenizer" / "spiece.model")


def more_words(root: Path) -> None:
    change(root / "text_encoder" / "config.json", vocab_size=4)


@pytest.mark.parametrize(
    ("name", "spoil", "kind", "text"),
    [
        (
            "alpha",
            another_width,
            Unsupported,
            "is 17 in the transformer config, but text_encoder makes a context as wide as 16",
        ),
        (
            "sd3",
            another_width,
            Unsupported,
            "is 17 in the transformer config, but text_encoder_3 makes a context as wide as 16",
        ),
        ("sd3", another_pooled_width, Unsupported, "together make a pooled text as wide as 24"),
        ("flux", another_pooled_width, Unsupported, "text_encoder makes a pooled text as wide as 8"),
        ("alpha", no_tokenizer, NotFound, "neither tokenizer.json nor spiece.model is in"),
        ("alpha", only_sentences, Unsupported, "which the package sentencepiece reads"),
        ("alpha", more_words, Unsupported, "number of words of tokenizer must be between 1 and 4|do not fit its configuration"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    spoil: Callable[[Path], None],
    kind: type[FlexiError],
    text: str,
) -> None:
    monkeypatch.setattr("engine.folder.find_spec", lambda name: None)
    spoilt = Path(shutil.copytree(folders[name], tmp_path / name))
    spoil(spoilt)
    with pytest.raises(kind, match=text):
        fitting(spoilt)


def fitting(folder: Path) -> Prompts:
    """As a family and then the loader ask for them."""
    refuse_texts(Folder(folder), Folder(folder).config("transformer"))
    return prompts_of(folder)

"""Prompts of several chunks and with weights: conditions are compel's, images are diffusers' with compel's embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import model_folders
import pytest
import torch
from compel import Compel, ReturnedEmbeddingsType
from compel.embeddings_provider import SplitLongTextMode
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.decoders import Autoencoder
from engine.loading import load
from engine.model import Model
from engine.prompt_chunks import ChunkTokenizer, spans
from engine.prompt_syntax import PromptSyntax, parts
from engine.sampler import generate
from engine.text_prompts import TextPrompts, TwoTextPrompts
from registry.schedule import teacher

LONG = "red heart on a white plate beside a small green tree under the big yellow sun in the sky today, a purple dog"
PROMPTS: list[tuple[PromptSyntax, str, str]] = [  # the same in compel's own words
    ("plain", LONG, LONG),
    ("plain", "extraordinarily magnificent hippopotamuses", "extraordinarily magnificent hippopotamuses"),
    ("webui", "(red:1.4) heart", "(red)1.4 heart"),
    ("webui", "a [white] plate", f"a (white){1 / 1.1:.17f} plate"),
    ("webui", f"((red) heart:0.5) {LONG} (green tree:1.5)", f"((red)1.1 heart)0.5 {LONG} (green tree)1.5"),
]
SEVERAL = 8
STEPS = 4


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory, tiny_config: Mapping[str, Any]) -> Model:
    return load(model_folders.sdxl(tmp_path_factory.mktemp("long") / "sdxl", tiny_config))


def compels(texts: TextPrompts, pooled: bool = False) -> Compel:
    kinds = ReturnedEmbeddingsType
    kind = kinds.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED if texts.penultimate else kinds.LAST_HIDDEN_STATES_NORMALIZED
    return Compel(
        texts.tokenizer,
        texts.encoder,
        truncate_long_prompts=False,
        returned_embeddings_type=kind,
        requires_pooled=pooled,
        split_long_text_mode=SplitLongTextMode.WORDS,
    )


def theirs(model: Model, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
    """compel's context and pooled projection, all padded to the longest of the prompts."""
    if isinstance(model.prompts, TwoTextPrompts):
        first = compels(model.prompts.first)(prompts)
        second, pooled = compels(model.prompts.second, pooled=True)(prompts)
        return torch.cat([first, second], dim=-1), pooled
    return compels(cast(TextPrompts, model.prompts))(prompts), None


@pytest.mark.parametrize(("syntax", "prompt", "compels_words"), PROMPTS)
def test_contexts_are_those_of_compel(model: Model, xl: Model, syntax: PromptSyntax, prompt: str, compels_words: str) -> None:
    for any_model in (model, xl):
        chunks = any_model.prompts.reading(prompt, SEVERAL, syntax).chunks
        got = any_model.prompts.encode([prompt, "red heart"], chunks, syntax)
        want, pooled = theirs(any_model, [compels_words, "red heart"])
        assert got.context is not None
        assert got.context.shape == want.shape
        assert (got.context - want).abs().max() <= 1e-5
        if pooled is not None and got.pooled is not None:  # of a long prompt compel's may end in the middle of a word
            assert (got.pooled - pooled)[1].abs().max() <= 1e-5


def test_the_pooled_projection_is_that_of_the_first_chunk_without_weights(xl: Model) -> None:
    (first,) = ChunkTokenizer(cast(TwoTextPrompts, xl.prompts).second.tokenizer).kept(parts(f"red {LONG}"), 1)
    got = xl.prompts.encode([f"(red:1.4) {LONG}"], 3, "webui").pooled
    want = xl.prompts.encode([first.text]).pooled
    assert got is not None
    assert want is not None
    assert (got - want).abs().max() <= 1e-6


def test_an_empty_negative_prompt_is_nothing_in_every_chunk(xl: Model) -> None:
    empty = xl.prompts.negative(["", "blue"], 3)
    assert empty.context is not None
    assert not empty.context[0].any()
    assert empty.context[1].any(dim=1).all()


@pytest.fixture(scope="module")
def pipelines(model: Model, xl: Model) -> list[tuple[Model, Any]]:
    """diffusers' own over the same modules."""
    texts, two = cast(TextPrompts, model.prompts), cast(TwoTextPrompts, xl.prompts)
    one = StableDiffusionPipeline(
        cast(Autoencoder, model.decoder).vae,
        texts.encoder,
        texts.tokenizer,
        model.network.unet,
        DDIMScheduler.from_pretrained("models/emoji64/scheduler"),
        None,
        None,
        requires_safety_checker=False,
    )
    encoders = (two.first.encoder, two.second.encoder, two.first.tokenizer, two.second.tokenizer)
    scheduler = DDIMScheduler(timestep_spacing="leading", steps_offset=1, beta_schedule="scaled_linear", clip_sample=False)
    both = StableDiffusionXLPipeline(
        cast(Autoencoder, xl.decoder).vae, *encoders, xl.network.unet, scheduler, add_watermarker=False
    )
    for pipe in (one, both):
        pipe.set_progress_bar_config(disable=True)
    return [(model, one), (xl, both)]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("which", [0, 1], ids=["SD", "SDXL"])
def test_the_teacher_is_diffusers_pipeline_with_compels_embeddings(pipelines: list[tuple[Model, Any]], which: int) -> None:
    model, pipe = pipelines[which]
    prompt, noise = PROMPTS[-1][1], model.noise(1)[None]
    embeddings, pooled = theirs(model, [PROMPTS[-1][2], "blue"])
    more: dict[str, Any] = {}
    if pooled is not None:  # of the prompt compel's reads the brackets
        own = model.prompts.encode([prompt], syntax="webui").pooled
        more = {"pooled_prompt_embeds": own, "negative_pooled_prompt_embeds": pooled[1:]}
    latents = pipe(
        prompt_embeds=embeddings[:1],
        negative_prompt_embeds=embeddings[1:],
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        latents=noise.clone(),
        output_type="latent",
        **more,
    ).images
    chunks = model.prompts.reading(prompt, SEVERAL, "webui").chunks
    condition = model.encode([prompt], chunks=chunks, syntax="webui")
    negative = model.negative(["blue"], chunks=chunks, syntax="webui")
    program = model.compile(teacher(model.ref, model.solver("ddim", STEPS)))
    got = generate(model.network, program, noise, condition, negative, 3.0)
    assert (got - latents).abs().max() <= 1e-4


WORDS = st.lists(
    st.sampled_from(
        ["red", "Heart,", "(small)", "[tree]", "(sun:1.4)", "ünïcode", "👩\u200d👧", "hippopotamuses", "\n", "!" * 9, "x" * 60]
    ),
    max_size=30,
).map(" ".join)


@settings(max_examples=40)
@given(WORDS, st.integers(1, 4), st.sampled_from(["plain", "webui"]))
def test_what_is_read_and_what_is_cut_are_the_prompt(model: Model, prompt: str, most: int, syntax: PromptSyntax) -> None:
    prompts = cast(TextPrompts, model.prompts)
    reading, whole = prompts.reading(prompt, most, syntax), prompts.reading(prompt, 100, syntax)
    assert prompt.endswith(reading.cut)
    assert 1 <= reading.chunks <= most
    assert bool(reading.cut) == (whole.chunks > most)
    states, _ = prompts.states([prompt], most, syntax)
    assert states.shape[1] == most * prompts.tokens
    if not reading.cut and syntax == "plain":
        kept, _ = prompts.states([prompt[: len(prompt) - len(reading.cut)]], most, syntax)
        assert torch.equal(states, kept)


@given(st.lists(st.sampled_from(["re", "d</w>"]), max_size=40), st.integers(1, 9))
def test_chunks_are_all_the_tokens_and_split_no_word_that_fits(tokens: list[str], room: int) -> None:
    chunks = spans(tokens, room)
    assert [place for chunk in chunks for place in range(*chunk)] == list(range(len(tokens)))
    assert all(chunk.end - chunk.begin <= room for chunk in chunks)
    for chunk in chunks[:-1]:
        alone = not any(tokens[place].endswith("</w>") for place in range(chunk.begin, chunk.begin + room))
        assert tokens[chunk.end - 1].endswith("</w>") or (alone and chunk.end - chunk.begin == room)

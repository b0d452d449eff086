"""The command line: python -m engine generate."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_command import call, refused
from PIL import Image
from places import ROOT

from engine import loading, sampler
from engine.image_size import ImageSize
from engine.images import levels
from engine.input_image import opened
from engine.model import Model
from engine.notice import Notice
from engine.program import Program
from engine.source import SourceImage, encoded
from registry.corrections import Correction, ScaledCorrections
from registry.schedule import Schedule, Segment, Validated, teacher


@pytest.fixture
def loaded(model: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """`generate` uses the session's model instead of loading its own."""
    monkeypatch.setattr(loading, "load", lambda *_, **__: model)
    return model


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
    notices = (Notice("code", "the folder has a safety checker"),)
    distilled = replace(model, few_steps=2, own_solver="euler", usual_guidance=1.0, notices=notices)
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
    assert (
        "prompt: the model reads 16 tokens (--prompt-chunks allows more) and ignored the end: and a Purple dog\n"
        in result.stderr
    )
    assert "negative: the model reads 16 tokens (--prompt-chunks allows more) and ignored the end: tree" in result.stderr


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


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A file of 64 × 64, white with a red square."""
    image = Image.new("RGB", (64, 64), "white")
    image.paste((230, 20, 20), (16, 16, 40, 40))
    image.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize("masked", [False, True])
def test_from_a_picture_a_schedule_begins_in_the_middle_and_what_is_masked_out_stays(
    loaded: Model, tmp_path: Path, picture: Path, masked: bool
) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    mask.save(tmp_path / "mask.png")
    schedule = Schedule(model=loaded.ref, solver=loaded.solver("ddim", 6), segments=(Segment(partial=(1,), branch=3),) * 3)
    file = tmp_path / "schedule.json"
    file.write_bytes(schedule.document())
    options = ("--mask", tmp_path / "mask.png") if masked else ()
    asked = (
        "generate",
        "--prompt",
        "red heart",
        "--schedule",
        file,
        "--guidance",
        "3",
        "--image",
        picture,
        "--strength",
        "0.7",
    )
    result = call(*asked, *options, "--num-images", "2", "--out", tmp_path / "x.png")
    assert result.exit_code == 0, result.stderr
    assert "steps      4 computed of the teacher's 4: 2 full, 2 partial\n" in result.stdout
    assert f"size       64x64, from {picture} at strength 0.7\n" in result.stdout

    program = loaded.compile(schedule).starting(0.7)
    shape = opened((tmp_path / "mask.png").read_bytes(), "mask") if masked else None
    image = SourceImage.of(opened(picture.read_bytes(), "image"), shape, loaded.image_size, loaded.decoder.scale)
    source, condition, negative = encoded(loaded, image, loaded.encode(["red heart"]), loaded.negative([""]))
    noise = loaded.noise(1)[None]
    latent = sampler.generate(loaded.network, program, noise, condition, negative, 3.0, source=source)
    want = image.shown_in(levels(loaded.decode(latent)[0])).int()
    made = torch.tensor(opened((tmp_path / "x-2.png").read_bytes(), "image").pixels).int()
    assert (made - want).abs().max() <= 1
    same = (made - image.pixels).abs().sum(dim=-1) == 0
    assert same[:, :32].all() == masked, "what is black in the mask is the picture's own"


def test_what_is_painted_anew_with_all_strength_begins_at_pure_noise(
    loaded: Model, tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the server's and diffusers' do: nothing of the picture is under the mask."""
    Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")
    begun = []
    own = Program.begin
    monkeypatch.setattr(Program, "begin", lambda self, *given: begun.append(self.signal) or own(self, *given))
    asked = ("generate", "--prompt", "cat", "--steps", "2", "--image", picture, "--out", tmp_path / "x.png")
    assert call(*asked, "--mask", tmp_path / "mask.png").exit_code == 0
    assert call(*asked, "--strength", "1").exit_code == 0
    assert begun[0] == 0 < begun[1]


def test_a_picture_of_other_proportions_is_stretched_and_that_is_said(loaded: Model, tmp_path: Path, picture: Path) -> None:
    asked = ("generate", "--prompt", "cat", "--steps", "2", "--image", picture, "--out", tmp_path / "x.png")
    assert "image" not in call(*asked).stderr
    assert "image: it came as 64x64 and was stretched to 32x64\n" in call(*asked, "--size", "32x64").stderr


def test_a_start_that_is_none_is_refused_by_its_option(loaded: Model, tmp_path: Path, picture: Path) -> None:
    def why(*args: str | Path) -> str:
        return refused("generate", "--prompt", "cat", "--steps", "2", "--out", tmp_path / "x.png", *args)

    assert why("--mask", picture) == "error: mask: is of an image to start from: say --image\n"
    assert why("--strength", "0.5") == "error: strength: is of an image to start from: say --image\n"
    assert "strength: must be above 0 and at most 1, got 0" in why("--image", picture, "--strength", "0")
    assert "image: there is no file" in why("--image", tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    assert "mask: must be a file in PNG, JPEG or WEBP" in why("--image", picture, "--mask", tmp_path / "text.png")
    assert not (tmp_path / "x.png").exists()


def test_a_long_prompt_and_its_weights_are_read_where_that_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = loading.load(ROOT / "models" / "emoji64")  # of its own: tokenizers warn once
    text = "cat " * 14 + "and a (Purple:1.3) dog"
    asked = ("generate", "--prompt", text, "--steps", "1", "--guidance", "3", "--out", tmp_path / "x.png")
    result = call(*asked, "--prompt-chunks", "2", "--prompt-syntax", "webui")
    assert result.exit_code == 0, result.stderr
    assert not result.stderr
    assert not caplog.records, "nor does the tokenizer warn of a text that is split"
    assert f"{2 * loaded.macs_at(None, 2).full.macs / 1e9:.4f} G" in result.stdout
    condition = loaded.encode([text], chunks=2, syntax="webui")
    program = loaded.compile(teacher(loaded.ref, loaded.solver("dpmsolver++", 1)))
    negative = loaded.negative([""], chunks=2, syntax="webui")
    latent = sampler.generate(loaded.network, program, loaded.noise(0)[None], condition, negative, 3.0)
    made = torch.tensor(opened((tmp_path / "x.png").read_bytes(), "image").pixels).int()
    assert (made - levels(loaded.decode(latent)[0]).int()).abs().max() <= 1
    assert "( at character 1 is not closed" in refused(*asked[:2], "(cat", *asked[3:], "--prompt-syntax", "webui")


def test_a_model_of_classes_has_no_long_or_weighted_prompts(tmp_path: Path) -> None:
    asked = (
        "generate",
        "--model",
        ROOT / "models" / "glyphs-ldm",
        "--prompt",
        "1",
        "--steps",
        "1",
        "--out",
        tmp_path / "x.png",
    )
    assert "prompt_chunks: is of models that read texts" in refused(*asked, "--prompt-chunks", "2")
    assert "prompt_syntax: is of models that read texts" in refused(*asked, "--prompt-syntax", "webui")

"""The guidance scale where nobody says one: the card's, else diffusers' own for the pipeline; a card changes no fingerprint."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import model_folders
import pytest
from places import ROOT

from engine.folder import Folder
from engine.guidance import OFF, USUAL_CLASSES
from engine.importing.model_import import ImportOptions, import_model
from engine.loading import load, usual
from engine.pipelines import SERVED
from engine.usual_guidance import CardGuidance, card_guidance, usual_guidance

CARD = "---\ninference:\n  parameters:\n    guidance_scale: {}\n---\n# A model\n"


@pytest.fixture
def plain(tmp_path: Path, tiny_config: dict[str, Any]) -> Path:
    return model_folders.sd(tmp_path / "plain", tiny_config)


@pytest.mark.parametrize("name", SERVED)
def test_a_pipelines_scale_is_that_of_its_call_in_diffusers(name: str) -> None:
    taken = inspect.signature(getattr(diffusers, name).__call__).parameters.get("guidance_scale")
    if taken is None:
        assert SERVED[name].guidance == USUAL_CLASSES
    elif name in ("FluxImg2ImgPipeline", "FluxInpaintPipeline"):
        assert (taken.default, SERVED[name].guidance) == (7.0, 3.5), "the network takes the scale as an input: its family's"
    else:
        assert SERVED[name].guidance == taken.default


def test_a_plain_folder_has_its_pipelines_scale_and_one_with_a_card_the_cards(plain: Path) -> None:
    assert usual(plain) == (None, 7.5)
    assert load(plain).usual_guidance == 7.5
    fingerprint = Folder(plain).fingerprint()
    (plain / "README.md").write_text(CARD.format(3))
    assert usual(plain) == (None, 3.0)
    assert load(plain).usual_guidance == 3.0
    assert Folder(plain).fingerprint() == fingerprint


@pytest.mark.parametrize("name", ["emoji64", "glyphs-ldm", "glyphs-dit"])
def test_the_bundled_models_say_theirs(name: str) -> None:
    assert usual(ROOT / "models" / name).guidance == 3.0


@pytest.mark.parametrize("make", ["sd", "sdxl", "lcm", "ddpm", "ldm", "classes", "labels", "dit", "pixart"])
def test_by_its_configurations_alone_it_has_the_scale_that_it_has_when_it_is_loaded(
    tmp_path: Path, tiny_config: dict[str, Any], make: str
) -> None:
    takes_a_unet = make in ("sd", "sdxl", "lcm", "classes")
    folder = getattr(model_folders, make)(tmp_path / make, *([tiny_config] * takes_a_unet))
    loaded = load(folder)
    assert usual(folder) == (loaded.few_steps, loaded.usual_guidance)
    assert (loaded.usual_guidance > OFF) == loaded.prompts.guides


@pytest.mark.parametrize(("written", "scale"), [("3", 3.0), ("7.5", 7.5), ("0", 0.0), ("30", 30.0), ("1e0", None)])
def test_a_card_says_a_number_from_0_to_30(tmp_path: Path, written: str, scale: float | None) -> None:
    (tmp_path / "README.md").write_text(CARD.format(written))
    assert card_guidance(tmp_path).scale == scale  # 1e0 is a text in YAML 1.1


@pytest.mark.parametrize("written", ["-1", "30.5", ".nan", ".inf", "true", "high", "[3]"])
def test_an_impossible_scale_is_said_and_not_taken(plain: Path, written: str) -> None:
    (plain / "README.md").write_text(CARD.format(written))
    model = load(plain, weights=False)
    (notice,) = (notice for notice in model.notices if notice.code == "card_guidance_ignored")
    assert "README.md says guidance_scale" in notice.message
    assert "from 0 to 30" in notice.message
    assert model.usual_guidance == 7.5


@pytest.mark.parametrize("card", [b"---\na: [\n---\n", b"---\n- a\n---\n", b"\xff\xfe---", b"---\nat: 2026-99-99\n---\n"])
def test_a_card_that_cannot_be_read_stops_nothing_and_is_for_the_log_alone(
    plain: Path, card: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (plain / "README.md").write_bytes(card)
    assert card_guidance(plain) == (None, None)
    (said,) = caplog.messages
    assert f"the metadata of {plain / 'README.md'} cannot be read" in said
    assert "\n" not in said
    assert load(plain, weights=False).notices == ()
    assert usual(plain).guidance == 7.5


@pytest.mark.parametrize("card", ["", "# A model\n", "---\nlicense: mit\n---\n", "---\ninference: false\n---\n", "---\n---\n"])
def test_a_card_that_says_nothing_of_it_says_nothing(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(card)
    assert card_guidance(tmp_path) == card_guidance(tmp_path / "nothing") == (None, None)


@pytest.mark.parametrize(
    ("said", "embedded", "distilled", "scale"),
    [(2.0, 8.5, True, 2.0), (None, 8.5, True, 8.5), (None, None, True, OFF), (None, None, False, 5.0), (0.0, None, False, OFF)],
)
def test_what_comes_first(said: float | None, embedded: float | None, distilled: bool, scale: float) -> None:
    assert usual_guidance(CardGuidance(said), embedded, distilled, 5.0) == (scale, None)


@pytest.mark.parametrize(("said", "told"), [(0.0, False), (1.0, False), (7.5, True)])
def test_a_distilled_model_is_not_guided_because_the_card_of_the_one_it_was_made_of_says_so(said: float, told: bool) -> None:
    scale, notice = usual_guidance(CardGuidance(said), None, distilled=True, pipeline=7.5)
    assert scale == OFF
    assert (notice is not None) == told
    if notice:
        assert (notice.code, "guidance_scale 7.5 of a distilled model" in notice.message) == ("card_guidance_ignored", True)


def test_a_card_of_a_model_that_nothing_guides_is_nobodys_business(tmp_path: Path) -> None:
    folder = model_folders.ddpm(tmp_path / "ddpm")
    (folder / "README.md").write_text(CARD.format(3))
    assert usual(folder) == (None, OFF)
    assert load(folder, weights=False).notices == ()


def test_an_import_of_a_folder_keeps_what_its_card_says(plain: Path, tmp_path: Path) -> None:
    import_model(ImportOptions(plain, tmp_path / "silent"))
    assert card_guidance(tmp_path / "silent") == (None, None)
    (plain / "README.md").write_text(CARD.format(4.5))
    import_model(ImportOptions(plain, tmp_path / "said"))
    assert card_guidance(tmp_path / "said").scale == 4.5
    assert (tmp_path / "said" / "README.md").read_text().split("---\n")[2].startswith("\n# said\n")

"""Every folder has a name that schedules can call its model by; a name that is given is checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.loading import load
from engine.model_name import folder_name
from registry.document import is_name
from registry.errors import InvalidInput

FINGERPRINT = "sha256:0123456789" + "a" * 54
COMMIT = "39593d5650112b4cc580433f6b0435385882d819"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/models/emoji64", "emoji64"),
        ("/model", "model"),
        ("/models/SD-XL_1.0", "sd-xl_1.0"),
        ("/models/trailing.", "trailing."),  # it always was a name
        ("/models/My model (copy)", "my-model-copy"),
        ("/models/Été à Zürich", "ete-a-zurich"),
        ("/models/ＳＤ１", "sd1"),
        ("/models/.hidden", "hidden"),
        ("/models/__pycache__ [old]", "pycache__-old"),
        ("/models/模型", "model-01234567"),
        ("/models/модель 2", "2-01234567"),
        ("/models/Søren", "s-ren-01234567"),
        ("/models/🙂", "model-01234567"),
        ("/models/( )", "model-01234567"),
        ("/models/" + "a" * 65, "a" * 55 + "-01234567"),
        ("/models/" + "a" * 64, "a" * 64),
        ("/", "model-01234567"),
        (f"/hub/models--stabilityai--SDXL-turbo/snapshots/{COMMIT}", "sdxl-turbo"),
        (f"/hub/models--gpt2/snapshots/{COMMIT}", "gpt2"),
        ("/hub/models--org--My Model/snapshots/main", "my-model"),
        (f"/models/sd15/snapshots/{COMMIT}", "sd15"),
        ("/models/models--org--name", "name"),
    ],
)
def test_a_folder_s_name_becomes_one(folder: str, name: str) -> None:
    assert folder_name(Path(folder), FINGERPRINT) == name


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=80))
def test_whatever_a_folder_is_called_it_has_a_name(text: str) -> None:
    assert is_name(folder_name(Path("/models") / text, FINGERPRINT))


def test_names_that_lost_letters_stay_apart() -> None:
    other = FINGERPRINT.replace("0123", "3210")
    for folder in (Path("/модель"), Path("/" + "a" * 70)):
        assert folder_name(folder, FINGERPRINT) != folder_name(folder, other)


@pytest.mark.parametrize("name", ["My model", "-a", "a" * 65, "ü", "a/b", "a\n", "."])
def test_a_given_name_is_refused_with_the_limit_before_anything_is_read(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    monkeypatch.setattr("engine.loading.meta_network", None)
    with pytest.raises(InvalidInput, match="cannot name a model; give 1 to 64 of a-z") as refused:
        load(tmp_path, name=name)
    assert refused.value.param == "name"

"""Any image and any parameters, in any format: Pillow opens the files, and reads back what was put in."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from places import ROOT

from server.api import MAX_PROMPT
from server.requests.image_file import ImageFormat

SIZES = st.integers(1, 24)
IMAGES = st.tuples(SIZES, SIZES).flatmap(lambda size: arrays(np.uint8, (*size, 3)))
PARAMETERS = st.dictionaries(st.sampled_from(["prompt", "negative_prompt", "seed", "warnings"]), st.text())
SAMPLES = ROOT / "models" / "emoji64" / "samples.png"  # what the bundled model made of its 252 prompts, four pixels apart


def opened(file: bytes) -> Image.Image:
    """The image, after Pillow has checked every checksum that the format has."""
    Image.open(io.BytesIO(file)).verify()
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


def parameters(image: Image.Image) -> dict[str, str]:
    """As docs/api.md says that they are read."""
    return image.text if image.format == "PNG" else json.loads(image.getexif().get_ifd(0x8769)[0x9286][8:])


def error(image: Image.Image, levels: np.ndarray) -> np.ndarray:
    return np.abs(np.asarray(image).astype(int) - levels)


@pytest.fixture(scope="module")
def samples():
    sheet = np.asarray(Image.open(SAMPLES).convert("RGB"))
    places = [range(0, side - 63, 68) for side in sheet.shape[:2]]
    return [sheet[y : y + 64, x : x + 64] for y in places[0] for x in places[1]]


@settings(max_examples=100, deadline=None)
@given(levels=IMAGES, said=PARAMETERS)
def test_a_png_is_read_back_exactly(levels, said):
    image = opened(ImageFormat().file(levels, said))
    assert (image.format, image.mode, image.text) == ("PNG", "RGB", said)
    assert (np.asarray(image) == levels).all()


def test_a_png_is_read_back_exactly_whatever_its_rows_are_filtered_by_and_however_its_memory_lies(samples):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[:, None, None]  # differences to the left, or to above, are none at all
    for levels in (
        ramp + np.zeros((64, 64, 3), np.uint8),
        samples[0].swapaxes(0, 1),
        samples[3][::-2, ::3],
        samples[5][..., ::-1],
    ):
        for each in (levels, levels.swapaxes(0, 1)):
            assert (np.asarray(opened(ImageFormat().file(each, {}))) == each).all()


def test_a_png_is_hardly_larger_than_pillows(samples):
    ratios = []
    for levels in samples:
        file = io.BytesIO()
        Image.fromarray(levels).save(file, "PNG")
        ratios.append(len(ImageFormat().file(levels, {})) / len(file.getvalue()))
    assert len(ratios) == 252
    assert max(ratios) < 1.25
    assert np.mean(ratios) < 1.15


@settings(max_examples=40, deadline=None)
@given(levels=IMAGES, said=PARAMETERS, quality=st.integers(0, 100), name=st.sampled_from(["jpeg", "webp"]))
def test_a_lossy_file_has_the_size_and_the_parameters(levels, said, quality, name):
    image = opened(ImageFormat(name, quality).file(levels, said))
    assert (image.format, image.mode, image.size) == (name.upper(), "RGB", levels.shape[1::-1])
    assert parameters(image) == said


@settings(max_examples=60, deadline=None)
@given(levels=IMAGES, said=PARAMETERS, quality=st.integers(0, 100))
def test_a_lossless_webp_is_read_back_exactly_whatever_its_quality(levels, said, quality):
    image = opened(ImageFormat("webp", quality, lossless=True).file(levels, said))
    assert (image.format, image.mode) == ("WEBP", "RGB")
    assert parameters(image) == said
    assert (np.asarray(image) == levels).all()


@settings(max_examples=40, deadline=None)
@given(levels=IMAGES)
def test_the_best_jpeg_of_any_image_is_near_it(levels):
    """A coefficient is off by a half at most, so a level by 4, and by 1.772 times as much for the colour, before rounding."""
    assert error(opened(ImageFormat("jpeg").file(levels, {})), levels).max() <= 14


@settings(max_examples=40, deadline=None)
@given(grey=st.tuples(SIZES, SIZES).flatmap(lambda size: arrays(np.uint8, size)))
def test_the_best_webp_of_any_grey_image_is_near_it(grey):
    levels = np.repeat(grey[..., None], 3, axis=-1)
    assert error(opened(ImageFormat("webp").file(levels, {})), levels).mean() <= 6


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_more_per_cent_are_larger_files_nearer_to_the_image(samples, name):
    levels = np.concatenate([np.concatenate(samples[row : row + 8], axis=1) for row in range(0, 64, 8)])
    files = [ImageFormat(name, quality).file(levels, {}) for quality in (0, 30, 60, 90, 100)]
    errors = [error(opened(file), levels).mean() for file in files]
    assert sorted(map(len, files)) == [len(file) for file in files]
    assert sorted(errors, reverse=True) == errors
    assert errors[-1] < 3 < errors[0]


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("letter", ["\0", "\x1f", '"', "\N{GRINNING FACE}", "\uffff"], ids=ascii)
def test_the_longest_prompts_fit(name, letter):
    said = {"prompt": letter * MAX_PROMPT, "negative_prompt": letter * MAX_PROMPT, "schedule": "f" * 64, "software": "x" * 1000}
    assert parameters(opened(ImageFormat(name).file(np.zeros((1, 1, 3), np.uint8), said))) == said

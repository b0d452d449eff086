"""Pictures that are handed in are decoded as they look, or refused by the field's name, before they can do harm."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.input_image import MAX_PIXELS, opened
from registry.errors import InvalidInput

RED = np.zeros((4, 6, 3), dtype=np.uint8)
RED[..., 0] = 255


def file(image: Image.Image, name: str = "PNG", **options) -> bytes:
    whole = io.BytesIO()
    image.save(whole, name, **options)
    return whole.getvalue()


def refused(data: bytes) -> str:
    with pytest.raises(InvalidInput) as error:
        opened(data, "mask")
    assert error.value.param == "mask"
    return error.value.text


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "CMYK", "LA"])
def test_every_mode_of_every_format_becomes_the_colours_that_it_shows(name, mode):
    image = Image.fromarray(RED).convert(mode)
    want = np.asarray(image.convert("RGB")).astype(int)
    if mode in {"JPEG": ("P", "RGBA", "LA")}.get(name, ("CMYK",)):  # which it has not
        image = image.convert("RGB")
    data = file(image, name, **({"lossless": True} if name == "WEBP" else {}))
    got = opened(data, "image")
    assert got.pixels.shape == (4, 6, 3)
    assert np.abs(got.pixels.astype(int) - want).max() <= (20 if name == "JPEG" else 0)
    assert got.clear is None


def test_grey_of_sixteen_bits_is_grey():
    levels = np.array([[0, 128 << 8, 65535]], dtype=np.uint16)
    assert opened(file(Image.fromarray(levels)), "image").pixels[0, :, 0].tolist() == [0, 128, 255]


def test_it_stands_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    got = opened(file(Image.fromarray(RED), "JPEG", exif=exif), "image")
    assert got.pixels.shape == (6, 4, 3)


def test_of_a_photo_with_further_pictures_behind_it_the_first_is_the_picture():
    """As many phones and cameras write JPEGs: a preview or a second view follows, and Pillow calls the file MPO."""
    exif = Image.Exif()
    exif[0x0112] = 6
    first, further = Image.fromarray(RED), Image.new("RGB", (6, 4), "blue")
    data = file(first, "MPO", save_all=True, append_images=[further], exif=exif)
    assert data[:3] == file(first, "JPEG")[:3]
    got = opened(data, "image").pixels
    assert got.shape == (6, 4, 3)
    assert np.abs(got.astype(int) - (255, 0, 0)).max() <= 20


def test_what_is_transparent_is_told_and_keeps_its_colours():
    levels = np.dstack([RED, np.full((4, 6), 255, dtype=np.uint8)])
    assert opened(file(Image.fromarray(levels)), "image").clear is None
    levels[:, 3:, 3] = 0
    for name in ("PNG", "WEBP"):
        got = opened(
            file(Image.fromarray(levels), name, **({"lossless": True, "exact": True} if name == "WEBP" else {})), "image"
        )
        assert got.clear is not None
        assert (got.clear == (levels[..., 3] == 0)).all()
        assert (got.pixels == RED).all()


def png_of(width: int, height: int) -> bytes:
    """A header that promises so much, and a few bytes that would unpack to it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (MAX_PIXELS // 1000, 1001), (20_000, 10), (2**31 - 1, 1)])
def test_a_bomb_is_refused_by_its_header(width, height):
    assert f"at most {MAX_PIXELS} pixels" in refused(png_of(width, height))


def test_what_is_cut_short_damaged_animated_or_another_format_is_refused():
    whole = file(Image.effect_noise((64, 64), 90))
    assert refused(whole[: len(whole) // 2]) == "is cut short or damaged"
    assert refused(png_of(64, 64)) == "is cut short or damaged"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("PNG", "WEBP"):
        assert "animation" in refused(file(frames[0], name, save_all=True, append_images=frames[1:]))
    for name in ("GIF", "BMP", "TIFF"):
        assert refused(file(frames[0], name)) == "must be a file in PNG, JPEG or WEBP"
    assert refused(b"") == "must be a file in PNG, JPEG or WEBP"


@given(st.data())
def test_no_bytes_are_more_than_refused(data):
    """Damage to a file of each format: it is decoded, or refused, and nothing else happens."""
    whole = bytearray(data.draw(st.sampled_from(DAMAGED)))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    with suppress(InvalidInput):
        opened(bytes(whole[: data.draw(st.integers(0, len(whole)))]), "image")


DAMAGED = [file(Image.fromarray(RED), name) for name in ("PNG", "JPEG", "WEBP")]
DAMAGED.append(file(Image.fromarray(RED), "MPO", save_all=True, append_images=[Image.fromarray(RED)]))

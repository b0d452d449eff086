"""Files that clients send in base64 are taken as such, and nothing else is."""

from __future__ import annotations

from base64 import b64encode

import pytest

from registry.errors import InvalidInput
from server.request_fields import MAX_BASE64, MAX_UPLOAD, TINY_PNG
from server.requests.upload import decoded


def test_base64_and_data_urls_are_taken_and_nothing_is_fetched():
    assert decoded(TINY_PNG, "image").pixels.tolist() == [[[255, 255, 255]]]
    assert decoded(f"data:image/png;base64,{TINY_PNG}", "image").digest == decoded(TINY_PNG, "image").digest
    for text in ("data:image/png,abc", "http://127.0.0.1/secret.png", "file:///etc/passwd", "####", "A" * (MAX_BASE64 + 1)):
        with pytest.raises(InvalidInput) as error:
            decoded(text, "image")
        assert error.value.param == "image"


def test_a_file_that_is_too_large_is_refused_whatever_it_is():
    text = b64encode(bytes(MAX_UPLOAD + 1)).decode()
    assert len(text) <= MAX_BASE64, "else the text is refused already"
    with pytest.raises(InvalidInput, match=f"at most {MAX_UPLOAD // 2**20} MiB"):
        decoded(text, "image")

"""Marked files, as the C2PA library's own reader finds them: a mark holds, says what it should, and breaks with the pixels."""

from __future__ import annotations

import io
import json
import logging

import c2pa
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from server.errors import MarkingFailed
from server.marking.__main__ import app
from server.marking.credential import Credential
from server.marking.marker import DAY, Marker
from server.marking.trial_certificate import CHAIN, KEY, write_trial_certificate
from server.requests.image_file import ImageFormat
from server.telemetry import metrics

FORMATS = [ImageFormat("png"), ImageFormat("jpeg", 80), ImageFormat("webp", 80), ImageFormat("webp", lossless=True)]
FACTS = {"model": "emoji64", "schedule": "ab" * 32, "seed": "7", "software": "flexiffusion-serve"}
SAID = {"prompt": "ein Herz ♥", "seed": "7"}  # of the file itself
LEVELS = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype/"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marking")
    write_trial_certificate(folder)
    return folder


@pytest.fixture(scope="module")
def credential(folder):
    return Credential.read(folder / "certificate.pem", folder / "key.pem")


@pytest.fixture(scope="module")
def marker(credential):
    return Marker(credential)


def read(file, name, **settings):
    reader = c2pa.Reader(f"image/{name}", io.BytesIO(file), context=c2pa.Context.from_dict(settings))
    return reader.get_validation_state(), json.loads(reader.json())


def active(report):
    manifest = report["manifests"][report["active_manifest"]]
    return manifest, {assertion["label"]: assertion["data"] for assertion in manifest["assertions"]}


@pytest.mark.parametrize("wanted", FORMATS, ids=str)
def test_a_marked_file_says_that_it_was_generated_and_keeps_its_pixels_and_parameters(marker, folder, wanted):
    file = wanted.file(LEVELS, SAID)
    marked = marker.mark(file, wanted.name, FACTS, edited=False)
    trusting = {"trust": {"trust_anchors": (folder / "root.pem").read_text()}}
    state, report = read(marked, wanted.name, **trusting)
    manifest, assertions = active(report)
    assert state == "Trusted"
    (action,) = assertions["c2pa.actions.v2"]["actions"]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", f"{SOURCES}trainedAlgorithmicMedia")
    assert assertions["flexiffusion.generation"] == FACTS
    assert manifest["claim_generator_info"][0]["name"] == "flexiffusion-serve"
    assert manifest["signature_info"]["alg"] == "Es256"
    assert "thumbnail" not in manifest
    ours, theirs = (Image.open(io.BytesIO(each)) for each in (file, marked))
    assert (np.asarray(ours) == np.asarray(theirs)).all()
    if wanted.name == "png":
        assert theirs.text == SAID
    else:
        assert ours.getexif().get_ifd(0x8769)[0x9286] == theirs.getexif().get_ifd(0x8769)[0x9286]


def test_a_mark_by_nobodys_certificate_holds_and_is_not_trusted(marker):
    state, report = read(marker.mark(ImageFormat().file(LEVELS, {}), "png", FACTS, edited=False), "png")
    assert state == "Valid"
    assert [fault["code"] for fault in report["validation_status"]] == ["signingCredential.untrusted"]


@pytest.mark.parametrize("wanted", FORMATS, ids=str)
def test_changed_pixels_are_noticed(marker, wanted):
    """One byte of the compressed pixels: of the second half of the file that was marked, where its manifest is not."""
    file = wanted.file(LEVELS, SAID)
    marked = bytearray(marker.mark(file, wanted.name, FACTS, edited=False))
    place = marked.index(file[len(file) * 3 // 4 : len(file) * 3 // 4 + 16])
    marked[place] ^= 1
    state, report = read(bytes(marked), wanted.name)
    assert state == "Invalid"
    assert "assertion.dataHash.mismatch" in [fault["code"] for fault in report["validation_status"]]


def test_an_edit_says_that_something_else_is_in_it_and_nothing_of_what_that_is(marker):
    marked = marker.mark(ImageFormat().file(LEVELS, {}), "png", FACTS, edited=True)
    state, report = read(marked, "png")
    manifest, assertions = active(report)
    opened, edited = assertions["c2pa.actions.v2"]["actions"]
    assert (state, opened["action"], edited["action"]) == ("Valid", "c2pa.opened", "c2pa.edited")
    assert edited["digitalSourceType"] == f"{SOURCES}compositeWithTrainedAlgorithmicMedia"
    (ingredient,) = manifest["ingredients"]
    assert ingredient["relationship"] == "parentOf"
    assert "thumbnail" not in ingredient


def test_an_expired_certificate_marks_nothing_and_is_refused_before_anything_is_made(credential):
    now = [credential.ends.timestamp() - 1]
    marker = Marker(credential, clock=lambda: now[0])
    marker.check()
    now[0] += 1
    with pytest.raises(MarkingFailed, match=r"not handed out without: the certificate of .* expired at"):
        marker.check()


def test_a_certificate_that_expires_soon_is_in_the_log_once_a_day_and_in_the_metrics(credential, caplog):
    now = [credential.ends.timestamp() - 14.5 * DAY]
    marker = Marker(credential, clock=lambda: now[0])

    def said():
        return [line.getMessage() for line in caplog.records if "expires in" in line.getMessage()]

    with caplog.at_level(logging.WARNING):
        marker.export()
        assert metrics.marking_certificate_expiry_timestamp_seconds._value.get() == credential.ends.timestamp()
        assert said() == []
        for _ in range(3):
            now[0] += 0.75 * DAY
            marker.check()
            marker.check()
    assert [text.split("expires in ")[1].split(" days")[0] for text in said()] == ["13", "12"]


def test_what_the_library_cannot_sign_is_an_error_and_is_counted(marker):
    before = metrics.marked_files_total.labels("failed")._value.get()
    with pytest.raises(MarkingFailed):
        marker.mark(b"no image", "png", FACTS, edited=False)
    assert metrics.marked_files_total.labels("failed")._value.get() == before + 1


def test_a_timestamp_authority_is_asked_for_each_file_and_none_is_handed_out_without_its_answer(credential):
    """Nobody listens there; the trial at the start does not ask."""
    marker = Marker(credential, "http://127.0.0.1:9/")
    with pytest.raises(MarkingFailed):
        marker.mark(ImageFormat().file(LEVELS, {}), "png", FACTS, edited=False)


def test_the_commands_make_a_certificate_to_try_it_with_and_show_what_a_file_says(tmp_path):
    run, folder = CliRunner().invoke, tmp_path / "trial"
    made = run(app, ["test-certificate", str(folder)])
    assert made.output == f"FLEXI_MARKING_CERTIFICATE={folder / CHAIN} FLEXI_MARKING_KEY={folder / KEY}\n"
    marker = Marker(Credential.read(folder / CHAIN, folder / KEY))
    file = tmp_path / "image.jpg"
    file.write_bytes(marker.mark(ImageFormat("jpeg").file(LEVELS, {}), "jpeg", FACTS, edited=False))
    shown = run(app, ["show", str(file)])
    assert active(json.loads(shown.output))[1]["flexiffusion.generation"] == FACTS
    file.write_bytes(ImageFormat("jpeg").file(LEVELS, {}))
    for path in (file, tmp_path / "none.png", folder / CHAIN):
        refused = run(app, ["show", str(path)])
        assert refused.exit_code == 1, refused.output

"""Where an operator has a certificate, every image that is done is marked, whichever way it leaves; or it does not leave."""

from __future__ import annotations

import base64
import io
import json
import re
import threading

import c2pa
import numpy as np
import pytest
import yaml
from painted import Painter, answered, file_of, generation_of, streamed
from PIL import Image
from places import ROOT
from prometheus_client import REGISTRY
from server_model import small_model

from server.access.keys import Key
from server.access.quota import Quotas
from server.errors import MarkingFailed
from server.marking.credential import Credential
from server.marking.marker import Marker
from server.marking.trial_certificate import write_trial_certificate
from server.requests.image_files import ImageFiles
from server.requests.made import ImageMade, PreviewMade

SECRET = "a prompt that nobody else sends"


@pytest.fixture(scope="module")
def model(tiny):
    return small_model(tiny)


@pytest.fixture(scope="module")
def credential(tmp_path_factory):
    write_trial_certificate(folder := tmp_path_factory.mktemp("marking"))
    return Credential.read(folder / "certificate.pem", folder / "key.pem")


@pytest.fixture(scope="module")
def marker(credential):
    return Marker(credential)


def marking(model, marker, renderer=None, shows_prompt=False, **options):
    return generation_of(
        model, renderer or Painter(model), files=ImageFiles("1a2b3c", marker, shows_prompt=shows_prompt), **options
    )


def read(file, name):
    """(how valid it is, the actions of its manifest, what our own assertion says, all of it as text); None of one without."""
    reader = c2pa.Reader.try_create(f"image/{name}", io.BytesIO(file))
    if reader is None:
        return None
    report = json.loads(reader.json())
    said = {one["label"]: one["data"] for one in report["manifests"][report["active_manifest"]]["assertions"]}
    actions = [action["action"] for action in said["c2pa.actions.v2"]["actions"]]
    return reader.get_validation_state(), actions, said["flexiffusion.generation"], reader.json()


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_every_image_of_an_answer_says_that_and_by_what_it_was_generated_and_no_prompt(model, marker, name):
    answer = answered(marking(model, marker), prompt=SECRET, negative_prompt=SECRET, num_images=2, output_format=name)
    assert answer.marked
    for place, image in enumerate(answer.images):
        state, actions, facts, text = read(file_of(image), name)
        assert (state, actions) == ("Valid", ["c2pa.created"])
        assert facts["schedule"] == answer.schedule
        assert (facts["model"], facts["model_fingerprint"]) == (model.ref.name, model.ref.fingerprint)
        assert facts["seed"] == str(7 + place)
        assert SECRET not in text
        assert facts["software"].endswith("(1a2b3c)")


def test_a_png_keeps_its_parameters_prompt_included(model, marker):
    (image,) = answered(marking(model, marker), prompt=SECRET).images
    opened = Image.open(io.BytesIO(file_of(image)))
    assert opened.text["prompt"] == SECRET
    assert (np.asarray(opened) == [7, 8, 9]).all()


def test_a_mark_says_the_prompts_where_the_operator_wants_them_there(model, marker):
    (image,) = answered(marking(model, marker, shows_prompt=True), prompt=SECRET, negative_prompt="grey").images
    _, _, facts, _ = read(file_of(image), "png")
    assert (facts["prompt"], facts["negative_prompt"]) == (SECRET, "grey")


def test_an_image_that_started_from_another_one_says_so(model, marker):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    (image,) = answered(marking(model, marker), image=base64.b64encode(file.getvalue()).decode(), strength=0.5).images
    state, actions, facts, _ = read(file_of(image), "png")
    assert (state, actions) == ("Valid", ["c2pa.opened", "c2pa.edited"])
    assert facts["strength"] == "0.5"
    assert len(facts["image"]) == 64


def test_a_streams_images_are_marked_and_its_previews_are_not(model, marker):
    made = streamed(marking(model, marker), previews=1, num_images=2, output_format="webp")
    previews = [one for one in made if isinstance(one, PreviewMade)]
    images = [one for one in made if isinstance(one, ImageMade)]
    assert (len(previews), len(images)) == (2, 2)
    assert [read(file_of(one.file), "webp") for one in previews] == [None, None]
    assert [read(file_of(one.file), "webp")[0] for one in images] == ["Valid", "Valid"]
    assert all(one.marked for one in images)


def test_without_a_certificate_nothing_is_marked_and_the_answer_says_so(model):
    answer = answered(marking(model, None))
    assert not answer.marked
    assert read(file_of(answer.images[0]), "png") is None


@pytest.mark.parametrize("ask", [answered, lambda *given, **fields: raised(streamed(*given, **fields))])
def test_an_expired_certificate_refuses_a_request_before_it_costs_anything(model, credential, ask):
    marker, painter, quotas = Marker(credential, clock=lambda: credential.ends.timestamp()), Painter(model), Quotas(lambda: 0.0)
    key = Key("shop", 2**50, None)
    with pytest.raises(MarkingFailed, match="expired"):
        ask(marking(model, marker, painter, quotas=quotas), key=key)
    assert painter.specs == []
    quotas.take(key, 2**50)  # all of it is there


def test_a_request_that_an_expired_certificate_refuses_counts_in_what_the_alert_asks_for(model, credential):
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules/alerts.yml").read_text())["groups"]
    (expr,) = (rule["expr"] for group in rules for rule in group["rules"] if rule.get("alert") == "FlexiMarkingFails")
    (asked,) = re.findall(r'(flexi_\w+)\{(\w+)="(\w+)"\}', expr)

    def counted():
        return REGISTRY.get_sample_value(asked[0], dict([asked[1:]])) or 0

    before = counted()
    with pytest.raises(MarkingFailed):
        answered(marking(model, Marker(credential, clock=lambda: credential.ends.timestamp())))
    assert counted() == before + 1


@pytest.mark.parametrize("ask", [answered, lambda *given, **fields: raised(streamed(*given, **fields))])
def test_an_image_that_cannot_be_signed_is_an_error_and_leaves_no_other_way(model, credential, ask):
    with pytest.raises(MarkingFailed) as failed:
        ask(marking(model, Marker(credential, "http://127.0.0.1:9/")))  # a timestamp authority where nobody listens
    assert (failed.value.status, failed.value.code) == (500, "marking_failed")


def raised(made):
    *images, error = made
    assert images == []
    raise error


def test_files_are_signed_beside_the_event_loop(model, marker, monkeypatch):
    threads = []
    mark = marker.mark
    monkeypatch.setattr(
        marker, "mark", lambda *given, **options: threads.append(threading.current_thread()) or mark(*given, **options)
    )
    answered(marking(model, marker))
    assert threads
    assert threading.main_thread() not in threads

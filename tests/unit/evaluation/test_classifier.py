"""The classifier as extractor: how its folder is recognised, what it makes of images, accuracy in a measurement."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation import Classifier, Extractor, bundled, extractor, gaussian
from evaluation.classifier import KIND, WEIGHTS, Network
from evaluation.real import real_gaussian
from evaluation.statistics import Statistics
from registry.errors import InvalidInput, NotFound, Unsupported

LABELS = ["0", "1", "A"]
SIDE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three classes with random weights."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("classifier")
    network = Network(len(LABELS), (8, 16), groups=4)
    save_file({name: weight.half() for name, weight in network.state_dict().items()}, place / WEIGHTS)
    config = {"model_type": KIND, "labels": LABELS, "widths": [8, 16], "groups": 4, "image_size": SIDE}
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Extractor:
    return extractor(str(folder))


def changed(folder: Path, place: Path, **values: Any) -> Path:
    shutil.copytree(folder, place)
    config = {**json.loads((place / "config.json").read_text()), **values}
    (place / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return place


def test_a_folder_whose_config_says_so_is_a_classifier_named_by_its_weights(folder: Path, tmp_path: Path) -> None:
    same = shutil.copytree(folder, tmp_path / "same")
    other = shutil.copytree(folder, tmp_path / "other")
    weights = {name: weight + 1 for name, weight in load_file(other / WEIGHTS).items()}
    save_file(weights, other / WEIGHTS)
    first, second, third = (extractor(place) for place in (folder, same, other))
    assert isinstance(first, Classifier)
    assert first.name == second.name != third.name
    assert first.name.startswith("classifier:")


def test_features_are_the_networks_own_for_each_image_alone(folder: Path, classifier: Extractor) -> None:
    network = Network(len(LABELS), (8, 16), groups=4)
    network.load_state_dict({name: weight.float() for name, weight in load_file(folder / WEIGHTS).items()})
    grey = torch.rand(70, 1, SIDE, SIDE)  # more than one batch
    with torch.no_grad():
        wanted = network(grey * 2 - 1)[0].numpy()
    features = classifier.images(grey.expand(-1, 3, -1, -1))
    assert features.shape == (70, 16)
    np.testing.assert_allclose(features, wanted, atol=1e-5)
    np.testing.assert_allclose(classifier.images(grey[3:4].expand(-1, 3, -1, -1)), wanted[3:4], atol=1e-5)


def test_larger_images_are_resized_and_broken_ones_have_no_features(classifier: Extractor) -> None:
    small = torch.nn.functional.avg_pool2d(torch.rand(2, 3, 8 * SIDE, 8 * SIDE), 8)
    large = torch.nn.functional.interpolate(small, scale_factor=4, mode="nearest")
    np.testing.assert_allclose(classifier.images(large), classifier.images(small), atol=0.5)
    large[1, 0, 0, 0] = torch.nan
    assert np.isfinite(classifier.images(large)).all(1).tolist() == [True, False]


def test_an_image_is_recognised_if_the_likeliest_class_is_what_its_prompt_names(classifier: Extractor) -> None:
    images = torch.rand(9, 3, SIDE, SIDE)
    hits = np.stack([np.asarray(classifier.recognised(images, [label] * 9)) for label in LABELS])
    assert (hits.sum(0) == 1).all()  # each image is taken for one class
    assert classifier.recognised(images, ["A"] * 8 + ["a cat"]) is None  # none of its classes
    assert classifier.texts(LABELS) is None


@pytest.mark.parametrize(
    "values",
    [{"labels": None}, {"widths": [8]}, {"widths": []}, {"groups": 3}, {"groups": 0}, {"labels": ["0"]}, {"image_size": "x"}],
)
def test_a_configuration_that_does_not_fit_is_refused(folder: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match=r"^features: "):
        extractor(changed(folder, tmp_path / "changed", **values))


def test_missing_or_broken_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "copy")
    (place / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(Unsupported, match=r"^features: "):
        extractor(place)
    (place / WEIGHTS).unlink()
    with pytest.raises(NotFound, match=r"^features: .*model\.safetensors"):
        extractor(place)


def test_a_models_own_extractor_is_its_features_folder_or_else_its_clip(tmp_path: Path) -> None:
    assert bundled(tmp_path) == tmp_path / "clip"
    (tmp_path / "features").mkdir()
    assert bundled(tmp_path) == tmp_path / "features"


# statistics


def test_statistics_of_a_file_are_those_of_the_sample(classifier: Extractor, tmp_path: Path) -> None:
    sample = gaussian(np.random.default_rng(0).normal(size=(50, 16)))
    Statistics(sample, 50, classifier.name, (SIDE, SIDE)).write(tmp_path / "real.npz")
    mean, root = real_gaussian(tmp_path / "real.npz", classifier, (SIDE, SIDE))
    np.testing.assert_allclose(mean, sample.mean, rtol=1e-6)
    np.testing.assert_allclose(root.T @ root, sample.root.T @ sample.root, atol=1e-6)
    assert Statistics.read(tmp_path / "real.npz").count == 50


def test_statistics_of_other_features_or_sizes_are_refused(classifier: Extractor, tmp_path: Path) -> None:
    sample = gaussian(np.zeros((20, 16)))
    Statistics(sample, 20, classifier.name, (32, 32)).write(tmp_path / "size.npz")
    Statistics(sample, 20, "inception", (SIDE, SIDE)).write(tmp_path / "features.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    np.savez(tmp_path / "arrays.npz", mean=np.zeros(3))
    for name in ("size", "features", "broken", "arrays"):
        with pytest.raises(InvalidInput, match=r"^real: "):
            real_gaussian(tmp_path / f"{name}.npz", classifier, (SIDE, SIDE))

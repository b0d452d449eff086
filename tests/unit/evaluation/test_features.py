"""Feature extractors: what a path means, what they make of images, and the distance to real pictures."""

import json
import re
import shutil
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from places import ROOT
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from evaluation import Clip, Extractor, Features, Inception, extractor, frechet_distance, gaussian
from evaluation import inception as inception_module
from evaluation import real as real_module
from evaluation.real import real_features
from registry.errors import FlexiError, InvalidInput, NotFound, Unsupported

CLIP = ROOT / "models" / "emoji64" / "clip"


@pytest.fixture(scope="module")
def clip() -> Extractor:
    torch.set_num_threads(1)
    return extractor(str(CLIP))


def changed(place: Path, file: str, **changes: Any) -> Path:
    """The bundled CLIP with other fields in one of its JSON files; None takes a field away."""
    shutil.copytree(CLIP, place)
    config = {**json.loads((place / file).read_text()), **changes}
    (place / file).write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return place


# what a path means


def test_clip_is_called_by_what_is_in_its_folder_not_by_where_that_is(tmp_path: Path, clip: Extractor) -> None:
    """So that distances of one CLIP are not held against statistics of another that lies in a folder of the same name."""
    assert isinstance(clip, Clip)
    assert re.fullmatch(r"clip:[0-9a-f]{8}", clip.name)
    moved = shutil.copytree(CLIP, tmp_path / "elsewhere")
    assert extractor(str(moved)).name == clip.name
    scaled = changed(tmp_path / "emoji64" / "clip", "preprocessor_config.json", image_mean=[0.4, 0.5, 0.5])
    nudge(moved / "model.safetensors")
    assert len({clip.name, extractor(str(scaled)).name, extractor(str(moved)).name}) == 3


def nudge(weights: Path) -> None:
    """Change one number of one tensor."""
    tensors = load_file(weights)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, weights, {"format": "pt"})


def refused(path: Path) -> FlexiError:
    with pytest.raises(FlexiError, match=r"^features: ") as caught:
        extractor(str(path))
    assert caught.value.param == "features"
    return caught.value


def test_what_is_not_there_or_no_clip_folder_is_not_found(tmp_path: Path) -> None:
    assert isinstance(refused(tmp_path / "nothing"), NotFound)
    assert isinstance(refused(tmp_path), NotFound)


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("config.json", {"model_type": "siglip"}, "siglip"),
        ("preprocessor_config.json", {"image_mean": None}, "image_mean"),
        ("preprocessor_config.json", {"image_std": [0.5, 0.5]}, "image_std"),
        ("config.json", {"projection_dim": 64}, "cannot be read"),
    ],
)
def test_a_folder_of_something_else_is_unsupported(tmp_path: Path, file: str, changes: dict[str, Any], says: str) -> None:
    error = refused(changed(tmp_path / "clip", file, **changes))
    assert isinstance(error, Unsupported)
    assert says in error.message


def test_weights_that_are_not_all_there_are_refused_not_drawn_at_random(tmp_path: Path) -> None:
    config = json.loads((CLIP / "config.json").read_text())
    deeper = {**config["vision_config"], "num_hidden_layers": 5}
    error = refused(changed(tmp_path / "clip", "config.json", vision_config=deeper))
    assert "lack" in error.message
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"no weights")
    assert isinstance(refused(tmp_path / "clip"), Unsupported)


def test_a_folder_that_holds_only_a_variant_is_read(tmp_path: Path, clip: Extractor) -> None:
    folder = shutil.copytree(CLIP, tmp_path / "clip")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    variant = extractor(str(folder))
    assert variant.name == clip.name
    assert np.array_equal(variant.images(images), clip.images(images))


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json", "preprocessor_config.json"])
def test_a_pointer_instead_of_a_file_is_said(tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(CLIP, tmp_path / "clip")
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\n")
    assert refused(folder).text == f"{folder / file} is a pointer of git-lfs, not the file itself: run git lfs pull"


# CLIP


def test_clip_features_do_not_depend_on_the_batch(clip: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole = clip.images(images)
    assert whole.dtype == np.float64
    monkeypatch.setattr("evaluation.clip.BATCH", 2)
    np.testing.assert_allclose(clip.images(images), whole, atol=1e-5)


def test_clip_sees_images_as_its_own_processor_normalises_them(clip: Extractor) -> None:
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert isinstance(clip, Clip)
    assert images.shape[-1] == clip.size, "nothing to resize"
    processor = CLIPImageProcessor.from_pretrained(CLIP)
    values = processor(list(images), return_tensors="pt", do_rescale=False, do_resize=False, do_center_crop=False).pixel_values
    with torch.inference_mode():
        want = clip.model.visual_projection(clip.model.vision_model(pixel_values=values).pooler_output)
    np.testing.assert_allclose(clip.images(images), want.numpy(), atol=1e-5)


@pytest.mark.parametrize("shape", [(128, 128), (96, 64), (32, 160)])
def test_clip_takes_images_of_any_shape_as_a_whole(clip: Extractor, shape: tuple[int, int]) -> None:
    """A quarter of each is white, whatever its shape: what was cropped or padded would be another picture."""

    def quarter_white(height: int, width: int) -> Tensor:
        top, left = torch.zeros(2, 3, height, width)
        top[:, : height // 4], left[..., : width // 4] = 1, 1
        return torch.stack([top, left])

    want, got = clip.images(quarter_white(64, 64)), clip.images(quarter_white(*shape))
    cosine = (want * got).sum(1) / np.linalg.norm(want, axis=1) / np.linalg.norm(got, axis=1)
    assert cosine.min() > 0.999


def test_clip_reads_long_prompts_and_says_nothing_about_no_prompts(clip: Extractor) -> None:
    texts = clip.texts(["red heart " * 50, ""])
    assert texts is not None
    assert texts.shape == (2, 128)
    assert clip.texts(["", ""]) is None


# Inception: a stand-in for the package here, the package itself where it can be imported


class StandIn(nn.Module):
    """What is used of torch-fidelity's class: its constructor, and a tuple of one tensor for a batch of 8-bit images."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert features_list == ["2048"]
        self.fc = nn.Linear(3, 2048)
        self.load_state_dict(torch.load(feature_extractor_weights_path))

    def forward(self, images: Tensor) -> tuple[Tensor]:
        assert images.dtype == torch.uint8
        return (self.fc(images.float().mean((2, 3))),)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of weights for it."""
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.save({"fc.weight": torch.eye(2048, 3), "fc.bias": torch.zeros(2048)}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_a_file_is_inception_which_sees_8_bit_images_and_reads_no_texts(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inception = extractor(str(stand_in))
    assert isinstance(inception, Inception)
    assert inception.name == "inception"
    assert inception.texts(["a cat"]) is None
    monkeypatch.setattr(inception_module, "BATCH", 2)
    images = torch.tensor([0.0, 1.0, 0.1]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    features = inception.images(images)
    assert features.dtype == np.float64
    np.testing.assert_allclose(features[:, :3], np.array([[0], [255], [26]]).repeat(3, 1), rtol=1e-6)


def test_an_image_that_is_not_finite_has_no_finite_features(stand_in: Path) -> None:
    images = torch.rand(3, 3, 4, 4)
    images[1, 0, 0, 0] = torch.nan
    assert np.isfinite(extractor(str(stand_in)).images(images)).all(1).tolist() == [True, False, True]


def test_a_file_of_other_weights_is_unsupported(stand_in: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save(Path("a pickle that runs code"), tmp_path / "pickle.pth")
    for name in ("text.pth", "other.pth", "pickle.pth"):
        error = refused(tmp_path / name)
        assert isinstance(error, Unsupported)
        assert name in error.message


def test_without_torch_fidelity_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    (tmp_path / "weights.pth").write_bytes(b"")
    error = refused(tmp_path / "weights.pth")
    assert isinstance(error, Unsupported)
    assert "pip install" in error.message


def test_the_package_itself_takes_what_we_give_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Network
    except (ImportError, RuntimeError) as error:
        pytest.skip(
            f"torch-fidelity cannot be imported: {error} (pip install '.[fid]' and a torchvision of the same build as torch)"
        )
    torch.manual_seed(0)
    torch.save({}, tmp_path / "weights.pth")
    with monkeypatch.context() as patch:  # its constructor always loads weights; these are the random ones of the layers
        patch.setattr(Network, "load_state_dict", lambda *_: None)
        network = Network("random", ["2048"], feature_extractor_weights_path=str(tmp_path / "weights.pth"))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    features = extractor(str(tmp_path / "weights.pth")).images(torch.rand(2, 3, 64, 64))
    assert features.shape == (2, 2048)
    assert np.isfinite(features).all()
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)


# distances


@pytest.mark.parametrize(("n", "m"), [(7, 9), (40, 9), (9, 40), (40, 50)])
def test_samples_of_any_numbers_are_as_far_apart_as_the_singular_values_of_their_product_say(n: int, m: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(n, 12)), rng.normal(size=(m, 12)) * 1.7 + 0.3
    covariances = [np.cov(sample, rowvar=False) for sample in (a, b)]
    centred_a, centred_b = a - a.mean(0), b - b.mean(0)
    singular = np.linalg.svd(centred_a @ centred_b.T, compute_uv=False).sum() / np.sqrt((n - 1) * (m - 1))
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * singular
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(want, rel=1e-9)
    assert frechet_distance(a, gaussian(b)) == pytest.approx(want, rel=1e-9)
    assert len(gaussian(b).root) <= 12


def test_the_bias_is_upwards_and_falls_with_either_number_of_images() -> None:
    """Of the same distribution, so that the true distance is 0."""
    rng = np.random.default_rng(1)
    many, more, few = (rng.normal(size=(count, 8)) for count in (2000, 1500, 20))
    assert 0 < frechet_distance(many, more) < frechet_distance(many, few) < frechet_distance(few, rng.normal(size=(20, 8)))


# real pictures


class Means:
    """Means of the channels of both halves of an image: what a picture looks like, in numbers that can be checked."""

    name = "means"

    def images(self, images: Tensor) -> Features:
        self.shape = tuple(images.shape[1:])
        halves = torch.stack(images.chunk(2, dim=3), 1).mean((3, 4))
        features: Features = halves.flatten(1).double().numpy()
        return features

    def texts(self, prompts: Sequence[str]) -> None:
        return None


def save(path: Path, colour: tuple[int, ...], size: tuple[int, int] = (20, 20), mode: str = "RGB") -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new(mode, size, colour).save(path, lossless=True)


def test_all_pictures_of_a_folder_and_below_it_are_read_in_the_order_of_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.png", (255, 0, 0))
    save(tmp_path / "b.webp", (0, 255, 0))
    save(tmp_path / "c" / "d.PNG", (0, 0, 255))
    save(tmp_path / "e.png", (0, 0, 0, 128), mode="RGBA")
    save(tmp_path / "f.jpg", (255, 255, 255))
    Image.new("L", (8, 8), 51).save(tmp_path / "g.jpeg")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    want = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [127 / 255] * 3, [1, 1, 1], [0.2, 0.2, 0.2]]
    for batch in (64, 4):
        monkeypatch.setattr(real_module, "BATCH", batch)
        features = real_features(tmp_path, Means(), (8, 10))
        np.testing.assert_allclose(features[:, :3], want, atol=0.005)
        np.testing.assert_allclose(features[:, 3:], want, atol=0.005)


def test_a_picture_is_cut_to_shape_before_it_is_resized(tmp_path: Path) -> None:
    """White at the left and right edges, which a square picture of the middle does not show; the halves of that differ."""
    for name in ("a.png", "b.png"):
        picture = Image.new("RGB", (80, 20), "white")
        picture.paste((0, 0, 0), (30, 0, 40, 20))
        picture.paste((255, 0, 0), (40, 0, 50, 20))
        picture.save(tmp_path / name)
    means = Means()
    np.testing.assert_allclose(real_features(tmp_path, means, (20, 20)), [[0, 0, 0, 1, 0, 0]] * 2, atol=0.01)
    assert means.shape == (3, 20, 20)
    wide = real_features(tmp_path, means, (10, 40))
    assert means.shape == (3, 10, 40)
    np.testing.assert_allclose(wide[0], [0.75, 0.75, 0.75, 1, 0.75, 0.75], atol=0.02)


def test_shrinking_averages_what_it_drops(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    for name in ("a.png", "b.png"):
        Image.fromarray(stripes).save(tmp_path / name)
    np.testing.assert_allclose(real_features(tmp_path, Means(), (8, 8)), 0.5, atol=0.02)


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        picture = Image.new("RGB", (16, 16), "black")
        picture.paste((255, 255, 255), (0, 0, 16, 8))
        picture.save(
            tmp_path / name, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0", quality=95
        )
    np.testing.assert_allclose(real_features(tmp_path, Means(), (16, 16)), [[0, 0, 0, 1, 1, 1]] * 2, atol=0.05)


def test_a_folder_that_is_missing_or_has_too_few_pictures_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"^real: .*nothing") as missing:
        real_features(tmp_path / "nothing", Means(), (8, 8))
    save(tmp_path / "one.png", (0, 0, 0))
    with pytest.raises(InvalidInput, match=r"at least 2 pictures.*got 1") as few:
        real_features(tmp_path, Means(), (8, 8))
    assert missing.value.param == few.value.param == "real"


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (0, 0, 0))
    whole, deep = (tmp_path / "a.png").read_bytes(), BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(deep, "png")
    for name, content in (("b.png", b"no picture"), ("c.jpg", b""), ("d.png", whole[:-20]), ("e.png", deep.getvalue())):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInput, match=f"^real: .*{name} cannot be read") as caught:
            real_features(tmp_path, Means(), (8, 8))
        assert caught.value.param == "real"
        (tmp_path / name).unlink()


def test_real_pictures_of_another_kind_are_farther_than_those_of_the_same(clip: Extractor, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(12):
        save(tmp_path / "plain" / f"{i}.png", tuple(rng.integers(0, 255, 3).tolist()), (70, 64))
        (tmp_path / "noise").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "noise" / f"{i}.png")
    plain, noise = (real_features(tmp_path / kind, clip, (64, 64)) for kind in ("plain", "noise"))
    generated = clip.images(torch.rand(8, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(8, 3, 64, 64))
    assert frechet_distance(generated, plain) < frechet_distance(generated, noise)

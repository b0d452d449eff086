"""Weights are found under every name that libraries save them by; the libraries that saved them are the oracle."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from model_folders import PLAIN, sd
from torch import nn
from transformers import CLIPTextModel

from engine.folder import Folder
from engine.loading import load
from engine.stored_file import read_object
from engine.weights import read_weights, read_weights_to
from registry.errors import NotFound, Unsupported

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
SHARD = "20KB"


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory, tiny_config: Mapping[str, Any]) -> dict[str, nn.Module]:
    """A network of either library, as it is saved."""
    folder = sd(tmp_path_factory.mktemp("networks") / "sd", tiny_config)
    torch.manual_seed(0)
    return {"unet": UNet2DModel(**PLAIN), "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with an index; components come by test."""
    index = {
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{}")
    return tmp_path


def check_loads(root: Path, component: str, network: nn.Module) -> Folder:
    """The component has this network's very weights."""
    files = Folder(root)
    loaded = read_weights(type(network), files, component, dtype=torch.float32)
    want = network.state_dict()
    assert loaded.state_dict().keys() == want.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, want[name]), name
    return files


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("variant", [None, "fp16", "bf16", "non_ema", "my-own_2"])
@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_what_a_library_saves_is_loaded(
    root: Path, networks: dict[str, nn.Module], component: str, variant: str | None, shards: bool
) -> None:
    network = networks[component]
    network.save_pretrained(root / component, variant=variant, max_shard_size=SHARD if shards else "1GB")
    written = {file.name for file in (root / component).iterdir()}
    assert len(written) > 3 if shards else len(written) == 2
    files = check_loads(root, component, network)
    assert {file.name for file in files.files(component).values()} == written
    assert files.weights(component).variant == (variant or "")


@pytest.mark.parametrize("variant", ["", ".fp16"])
@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_pickles_are_loaded_where_there_is_nothing_else(
    root: Path, networks: dict[str, nn.Module], component: str, variant: str
) -> None:
    network = networks[component]
    network.save_pretrained(root / component)
    (weights,) = (root / component).glob("*.safetensors")
    name = DIFFUSERS if component == "unet" else "pytorch_model"
    torch.save(network.state_dict(), root / component / f"{name}{variant}.bin")
    assert Folder(root).weights(component).format.suffix == "safetensors"
    weights.unlink()
    check_loads(root, component, network)


@pytest.mark.parametrize("pickled", [False, True])
def test_weights_are_never_anywhere_but_on_their_device(root: Path, networks: dict[str, nn.Module], pickled: bool) -> None:
    """The meta device keeps no values, and whatever is copied to it stays there."""
    networks["unet"].save_pretrained(root / "unet")
    if pickled:
        (root / "unet" / f"{DIFFUSERS}.safetensors").unlink()
        torch.save(networks["unet"].state_dict(), root / "unet" / f"{DIFFUSERS}.bin")
    with warnings.catch_warnings(action="ignore"):  # torch wonders what that is good for
        loaded = read_weights_to(torch.device("meta"), UNet2DModel, Folder(root), "unet", dtype=torch.bfloat16)
    tensors = [*loaded.parameters(), *loaded.buffers()]
    assert {(tensor.device.type, tensor.dtype) for tensor in tensors} == {("meta", torch.bfloat16)}
    assert loaded.state_dict().keys() == networks["unet"].state_dict().keys()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_on_a_gpu_are_those_of_the_file(root: Path, networks: dict[str, nn.Module]) -> None:
    networks["unet"].save_pretrained(root / "unet")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        loaded = read_weights_to(torch.device("cuda"), UNet2DModel, Folder(root), "unet", dtype=dtype).state_dict()
        for name, tensor in networks["unet"].state_dict().items():
            assert torch.equal(loaded[name].cpu(), tensor.to(dtype)), name


def test_a_pickle_that_runs_something_is_refused(root: Path, networks: dict[str, nn.Module], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))

    networks["unet"].save_pretrained(root / "unet")
    (root / "unet" / f"{DIFFUSERS}.safetensors").unlink()
    torch.save({"conv_in.weight": Evil()}, root / "unet" / f"{DIFFUSERS}.bin")
    with pytest.raises(Unsupported, match="weights of unet cannot be read"):
        read_weights(UNet2DModel, Folder(root), "unet")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shard", ["{}-{:05}-of-{:05}.fp16.safetensors", "{}.fp16-{:05}-of-{:05}.safetensors"])
@pytest.mark.parametrize(
    "index", ["{}.fp16.safetensors.index.json", "{}.safetensors.fp16.index.json", "{}.safetensors.index.fp16.json"]
)
@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_shards_of_a_variant_are_found_by_every_name_that_was_ever_in_use(
    root: Path, networks: dict[str, nn.Module], component: str, index: str, shard: str
) -> None:
    network, path = networks[component], root / component
    network.save_pretrained(path, max_shard_size=SHARD)
    stem = DIFFUSERS if component == "unet" else TRANSFORMERS
    written = read_object(path / f"{stem}.safetensors.index.json", "model")
    shards = sorted(set(written["weight_map"].values()))
    names = {old: shard.format(stem, number, len(shards)) for number, old in enumerate(shards, 1)}
    for old, new in names.items():
        (path / old).rename(path / new)
    weight_map = {tensor: names[old] for tensor, old in written["weight_map"].items()}
    (path / f"{stem}.safetensors.index.json").unlink()
    (path / index.format(stem)).write_text(json.dumps(written | {"weight_map": weight_map}))
    assert check_loads(root, component, network).weights(component).variant == "fp16"


@pytest.mark.parametrize(
    ("variants", "chosen"),
    [
        (["fp16", "", "bf16"], ""),
        (["bf16", "fp16"], "fp16"),
        (["fp16", "fp32"], "fp32"),
        (["non_ema", "ema"], "ema"),
        (["non_ema", "zero"], "zero"),
        (["b", "a"], "a"),
    ],
)
def test_plain_weights_come_first_then_variants_in_a_fixed_order(
    root: Path, variants: list[str], chosen: str, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "unet").mkdir()
    (root / "unet" / "config.json").write_text("{}")
    for variant in variants:
        (root / "unet" / f"{DIFFUSERS}{'.' * bool(variant)}{variant}.safetensors").write_bytes(b"x")
    with caplog.at_level(logging.INFO, "engine"):
        assert Folder(root).weights("unet").variant == chosen
    others = sorted({*variants} - {chosen, ""})
    said = f"the weights of unet are the variant {chosen}, for there are no plain ones; there are {', '.join(others)} too"
    assert [record.getMessage() for record in caplog.records] == ([said] if chosen else [])


def test_a_plain_pickle_comes_before_a_variant(root: Path) -> None:
    """As diffusers has it when nobody asks for a variant."""
    (root / "unet").mkdir()
    (root / "unet" / "config.json").write_text("{}")
    for name in (f"{DIFFUSERS}.bin", f"{DIFFUSERS}.fp16.safetensors"):
        (root / "unet" / name).write_bytes(b"x")
    assert Folder(root).weights("unet").files == {f"{DIFFUSERS}.bin": root / "unet" / f"{DIFFUSERS}.bin"}


def test_a_plain_index_without_any_of_its_shards_is_what_comes_with_a_variant(
    root: Path, networks: dict[str, nn.Module]
) -> None:
    """`--include "*.json" "*.fp16.safetensors"` downloads the one and the other."""
    networks["unet"].save_pretrained(root / "unet", max_shard_size=SHARD)
    for shard in (root / "unet").glob("*-of-*"):
        shard.unlink()
    with pytest.raises(NotFound, match=r"names .*-00001-of-.* are missing\): download the model again"):
        Folder(root).weights("unet")
    networks["unet"].save_pretrained(root / "whole", variant="fp16")
    shutil.copy(root / "whole" / f"{DIFFUSERS}.fp16.safetensors", root / "unet")
    check_loads(root, "unet", networks["unet"])


def test_a_shard_that_is_missing_is_named(root: Path, networks: dict[str, nn.Module]) -> None:
    networks["unet"].save_pretrained(root / "unet", max_shard_size=SHARD)
    shards = sorted((root / "unet").glob("*-of-*"))
    shards[1].unlink()
    said = f"index.json names {shards[1].name}, which is not there \\(1 of {len(shards)} are missing\\): download"
    with pytest.raises(NotFound, match=said):
        Folder(root).check()


def test_a_shard_that_is_a_pointer_is_named(root: Path, networks: dict[str, nn.Module]) -> None:
    networks["unet"].save_pretrained(root / "unet", max_shard_size=SHARD)
    shard = sorted((root / "unet").glob("*-of-*"))[1]
    shard.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(Unsupported, match=f"{shard.name} is a pointer of git-lfs"):
        Folder(root).check()


@pytest.mark.parametrize(
    "index", ['{"weight_map": {"a": "../x"}}', '{"weight_map": {}}', "{}", '{"weight_map": {"a": ".."}}', "["]
)
def test_an_index_that_is_none_is_refused(root: Path, index: str) -> None:
    """Nor does it lead out of its folder, to what nobody hashes."""
    (root / "unet").mkdir()
    (root / "unet" / "config.json").write_text("{}")
    (root / "unet" / f"{DIFFUSERS}.safetensors.index.json").write_text(index)
    with pytest.raises(Unsupported, match=r"index\.json is no"):
        Folder(root).weights("unet")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "there is no diffusion_pytorch_model.safetensors or diffusion_pytorch_model.bin, nor a variant of it, in"),
        (["diffusion_flax_model.msgpack", "model.onnx"], "only diffusion_flax_model.msgpack, model.onnx"),
        (["diffusion_pytorch_model.safetensors.incomplete"], "safetensors.incomplete was not downloaded to its end"),
        (["diffusion_pytorch_model.safetensors.part"], "safetensors.part was not downloaded to its end"),
        (["diffusion_pytorch_model-00001-of-00002.safetensors"], "in shards without an index"),
        (["diffusion_pytorch_model.safetensors.bak", ".DS_Store"], "only diffusion_pytorch_model.safetensors.bak"),
    ],
)
def test_what_is_there_instead_of_weights_is_said(root: Path, names: list[str], said: str) -> None:
    (root / "unet").mkdir()
    (root / "unet" / "config.json").write_text("{}")
    for name in names:
        (root / "unet" / name).write_bytes(b"x")
    with pytest.raises(NotFound) as refused:
        Folder(root).weights("unet")
    assert refused.value.text.startswith("the weights of unet are ")
    assert said in refused.value.text


def test_every_component_may_be_another_variant(tmp_path: Path, tiny_config: Mapping[str, Any]) -> None:
    plain = sd(tmp_path / "plain", tiny_config)
    mixed = shutil.copytree(plain, tmp_path / "mixed")
    for part, variant in (("unet", "fp16"), ("text_encoder", "bf16")):
        for file in (mixed / part).glob("*.safetensors"):
            file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))
    want, got = load(plain), load(mixed)
    assert torch.equal(got.encode(["red heart"]).context, want.encode(["red heart"]).context)
    for name, tensor in got.network.unet.state_dict().items():
        assert torch.equal(tensor, want.network.unet.state_dict()[name])
    assert want.ref.fingerprint != got.ref.fingerprint  # names count: a schedule says which files it was made for

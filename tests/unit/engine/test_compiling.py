"""Compiled, a model makes what it makes uncompiled, and after `warm` no number of rows and no branch compiles anything.

Mostly Dynamo alone is at work here, counting graphs and running them uncompiled: Inductor takes seconds for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from threading import Thread
from typing import Any

import model_folders
import pytest
import torch
from places import ROOT
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.testing import CompileCounter
from typer.testing import CliRunner

from engine import compiling, loading
from engine.__main__ import app
from engine.compiling import Compilation
from engine.decoders import Autoencoder
from engine.image_size import ImageSize
from engine.model import Model
from registry.errors import Unsupported
from server.config import Settings

FOLDERS: dict[str, Callable[[Path, Mapping[str, Any]], Path]] = {
    "as Stable Diffusion": model_folders.sd,
    "as Stable Diffusion XL": lambda folder, tiny: model_folders.sdxl(folder, {**tiny, "attention_head_dim": (2, 4)}),
    "classes and pixels": lambda folder, _: model_folders.labels(folder),
}
ROWS = 5


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[CompileCounter]:
    """Counts the graphs of what is loaded, and runs them as they are. Nothing is left in the process."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache" / "triton"))
    torch.compiler.reset()
    counter = CompileCounter()
    monkeypatch.setattr(loading, "Compilation", partial(Compilation, counter))
    yield counter
    compiling.allow()
    torch.compiler.reset()


def every_call(model: Model, rows: int, size: ImageSize | None = None, chunks: int = 1) -> list[Tensor]:
    """The predictions of a full step and of partial ones of all branches, their features from slots as in a wave; images."""
    draw = torch.Generator().manual_seed(rows)
    sample, network = torch.randn(rows, *model.latent_shape_at(size), generator=draw), model.network
    given = sample, torch.linspace(900, 10, rows), model.encode([model.prompts.sample] * rows, size=size, chunks=chunks)
    full, features = network.full(*given, keep=range(1, network.branches + 1))
    slots, places = model.slots(2 * ROWS, [size] if size else []).at(size), torch.arange(1, rows + 1)
    made = [full]
    for branch, feature in features.items():
        slots.keep(places, feature)
        made.append(network.partial(*given, branch, slots.feature(places, branch)))
    return [*made, model.decode(sample)]


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_after_warming_nothing_compiles_and_all_is_as_without(
    folder: Callable[[Path, Mapping[str, Any]], Path], tmp_path: Path, tiny_config: Mapping[str, Any], counter: CompileCounter
) -> None:
    path = folder(tmp_path / "model", tiny_config)
    plain, model = loading.load(path), loading.load(path, compiled=True)
    assert (plain.network.channels_last, model.network.channels_last) == (False, True)
    height, width = model.image_size
    others = [] if model.fixed_size else model.other_sizes([ImageSize(height + model.size_multiple, width)])
    compiled = compiling.warm(model, ROWS, others=others)
    assert compiled.graphs == counter.frame_count > 0
    compiling.forbid()
    for rows, size in product((1, 2, 3, 5), (None, *others)):
        with torch.no_grad():  # and not in the mode that it was compiled in
            got, want = every_call(model, rows, size), every_call(plain, rows, size)
        for mine, theirs in zip(got, want, strict=True):
            assert (mine - theirs).abs().max() < 1e-5
    if model.prompts.takes_chunks:  # longer contexts are other numbers of tokens to the same graphs
        for rows in (1, 3):
            for mine, theirs in zip(every_call(model, rows, None, 2), every_call(plain, rows, None, 2), strict=True):
                assert (mine - theirs).abs().max() < 1e-5
    elsewhere = list[int]()
    thread = Thread(target=lambda: elsewhere.append(len(every_call(model, 3))))  # an engine's, which starts afterwards
    thread.start()
    thread.join()
    assert elsewhere == [plain.network.branches + 2]
    assert counter.frame_count == compiled.graphs


def test_a_model_that_sees_pictures_is_warmed_at_other_sizes_too(
    tmp_path: Path, tiny_config: Mapping[str, Any], counter: CompileCounter
) -> None:
    model = loading.load(model_folders.inpainting(tmp_path / "model", tiny_config), compiled=True)
    height, width = model.image_size
    compiled = compiling.warm(model, 2, images=(), others=model.other_sizes([ImageSize(height + model.size_multiple, width)]))
    assert compiled.graphs == counter.frame_count > 0


def layer(channels: int = 64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, 8, 3)).requires_grad_(False)


def hidden(rows: int, channels: int = 64) -> Tensor:
    return torch.randn(rows, channels, 4, 4, generator=torch.Generator().manual_seed(rows))


def test_equal_regions_are_one_graph_and_all_rows_but_one_are_another(counter: CompileCounter) -> None:
    """Below 16 rows: from there on, torch chooses other convolutions where it has one CPU thread, which is a graph more."""
    compilation = Compilation(counter)
    for region in (compilation.region(layer()), compilation.region(layer())):
        for rows in (1, 2, 3, 15, 5):
            assert region(hidden(rows)).is_contiguous(memory_format=torch.channels_last)
    assert counter.frame_count == 2


def test_many_shapes_are_compiled_and_too_many_are_an_error(counter: CompileCounter) -> None:
    """Dynamo compiles eight of a function, and then runs it uncompiled without a word."""
    compilation = Compilation(counter)
    for channels in range(32, 352, 32):
        compilation.region(layer(channels))(hidden(2, channels))
    assert counter.frame_count == 10
    with torch._dynamo.config.patch(recompile_limit=10), pytest.raises(FailOnRecompileLimitHit):
        compilation.region(layer(352))(hidden(2, 352))


def test_what_was_not_compiled_beforehand_is_refused_once_forbidden(counter: CompileCounter) -> None:
    region = Compilation(counter).region(layer())
    region(hidden(2))
    compiling.forbid()
    region(hidden(4))
    with pytest.raises(RuntimeError, match="fail_on_recompile"):
        region(hidden(1))
    compiling.allow()
    region(hidden(1))
    assert counter.frame_count == 2


def test_a_decoder_that_overflows_goes_on_uncompiled(counter: CompileCounter) -> None:
    model = loading.load(ROOT / "models" / "emoji64", dtype="bfloat16", compiled=True)
    assert isinstance(model.decoder, Autoencoder)
    latents = torch.zeros(2, *model.latent_shape)
    narrow = model.decoder(latents)
    compiling.forbid()
    model.decoder.vae.float()
    wide = model.decoder(latents)
    assert (narrow.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
    assert (wide - narrow).abs().max() < 0.05
    assert counter.frame_count == 1


def test_what_torch_cannot_compile_is_refused_by_name(counter: CompileCounter, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("no compiler here")

    monkeypatch.setattr(loading, "Compilation", partial(Compilation, broken))
    with pytest.raises(Unsupported, match="no compiler here") as refused:
        compiling.warm(loading.load(ROOT / "models" / "emoji64", compiled=True), 2)
    assert refused.value.param == "compile"


def test_kernels_of_inductor_compute_the_same_and_come_from_the_cache_the_next_time(
    counter: CompileCounter, tmp_path: Path
) -> None:
    want = [layer()(hidden(rows)) for rows in (2, 1, 3)]
    cached = []
    for _ in range(2):
        torch.compiler.reset()
        before = compiling._counted()
        region = Compilation().region(layer())
        for mine, rows in zip(want, (2, 1, 3), strict=True):
            torch.testing.assert_close(region(hidden(rows)), mine, rtol=0, atol=1e-5)
        cached.append([after - earlier for after, earlier in zip(compiling._counted(), before, strict=True)])
    assert cached == [[2, 0], [2, 2]]
    assert compiling.cache_bytes(tmp_path / "cache") > 0


def test_the_command_says_what_it_compiled(counter: CompileCounter, tmp_path: Path) -> None:
    command = ["warm", "--device", "cpu", "--max-wave-rows", "4", "--cache", str(tmp_path / "cache")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert f"graphs     {counter.frame_count}, 0 of them from the cache" in result.output
    assert "MiB in" in result.output


@pytest.mark.parametrize(
    ("options", "most"), [([], Settings.model_fields["prompt_chunks"].default), (["--prompt-chunks", "2"], 2)]
)
def test_the_command_compiles_for_every_length_of_prompt_that_the_server_has(
    options: list[str], most: int, counter: CompileCounter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = set[int]()
    monkeypatch.setattr(compiling, "_run_steps", lambda model, rows, size, length: lengths.add(length))
    result = CliRunner().invoke(app, ["warm", "--device", "cpu", "--cache", str(tmp_path / "cache"), *options])
    assert result.exit_code == 0, result.output
    assert lengths == {*range(1, most + 1)}


def test_the_command_refuses_a_wave_that_no_server_has() -> None:
    result = CliRunner().invoke(app, ["warm", "--max-wave-rows", "1"])
    assert result.exit_code == 1
    assert "max_wave_rows" in result.output

"""A checkpoint and its LoRAs become a folder that the engine, a search and a server read as any other."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from engine.components import fitting_unet
from engine.config import complete
from engine.folder import TOKENIZERS, Folder
from engine.importing.card import CHECKER, SourceFile, write_card
from engine.importing.kinds import detect
from engine.importing.layouts import spelt
from engine.importing.lora import Lora, fused, parse_lora, read_lora
from engine.importing.lora_names import Layer, layers_by_name
from engine.importing.networks import expected, networks, refuse_misfit
from engine.importing.sources import (
    ImportSource,
    PipelineFolder,
    SingleFile,
    autoencoder_weights,
    pipeline_folder,
    single_file,
    total_bytes,
)
from engine.importing.tensor_file import TensorFile, named, open_tensors
from engine.importing.whole_folder import refuse_full, save_weights, whole_folder
from engine.pipelines import refuse_foreign
from engine.stored_file import readable
from engine.usual_guidance import card_guidance
from registry.errors import FlexiError, InvalidInput, NotFound

WEIGHTS = {True: "model.safetensors", False: "diffusion_pytorch_model.safetensors"}  # transformers' and diffusers' own names


@dataclass(frozen=True)
class ImportOptions:
    """What is imported, as it was asked for. loras: FILE or FILE:SCALE. prediction: `epsilon` or `v`. size: in pixels."""

    source: Path
    out: Path
    loras: tuple[str, ...] = ()
    vae: Path | None = None
    config: Path | None = None
    prediction: str | None = None
    size: int | None = None
    ema: bool = False
    allow_pickle: bool = False
    allow_nonfinite: bool = False

    def command(self) -> str:
        """What was typed, for the card: files by their names, wherever they lay."""
        words = ["python -m engine import", shlex.quote(self.source.absolute().name)]
        words += [f"--lora {shlex.quote(Path(lora).name)}" for lora in self.loras]
        for name in ("vae", "config"):
            if path := getattr(self, name):
                words.append(f"--{name} {shlex.quote(path.absolute().name)}")
        words += [f"--{name} {getattr(self, name)}" for name in ("prediction", "size") if getattr(self, name) is not None]
        switches = {"ema": self.ema, "allow-pickle": self.allow_pickle, "allow-nonfinite": self.allow_nonfinite}
        words += [f"--{name}" for name, on in switches.items() if on]
        return " ".join([*words, f"--out {shlex.quote(self.out.absolute().name)}"])


@dataclass(frozen=True)
class Imported:
    """what: the kind of model, in words. notes: one sentence each. fingerprint: of the new folder."""

    what: str
    notes: tuple[str, ...]
    fingerprint: str


def import_model(options: ImportOptions) -> Imported:
    """Make `options.out`, whole or not at all.

    Everything is checked on names and shapes before any weights are read. Raises `NotFound`, `Unsupported` and `InvalidInput`
    naming the file and what was expected of it, and `Conflict` where `out` is taken.
    """
    with whole_folder(options.out) as folder, _folder_named_by("config" if options.config else "source"):
        with readable(options.source, "source"):
            source = _source(options)
        source.write_configs(folder)
        made = Folder(folder)
        refuse_foreign(made)
        unet = fitting_unet(made)
        wanted = {name: expected(made, name) for name in networks(made)}
        vae = open_tensors(options.vae, "vae", options.allow_pickle, options.allow_nonfinite) if options.vae else None
        layers = layers_by_name(wanted, complete(unet))
        loras = [read_lora(*parse_lora(text), layers, wanted, options.allow_pickle) for text in options.loras]
        leftovers, planned = [], []
        for name, shapes in wanted.items():
            planned.append(spelt(_weights(source, vae, name, made, values=False), shapes))
            leftovers += refuse_misfit(planned[-1], shapes, name, *_origin(source, vae, name))
        refuse_full(options.out, total_bytes(planned))
        for name, shapes in wanted.items():
            weights = spelt(_weights(source, vae, name, made, values=True), shapes)
            changed = {key: fused(weights.pop(key), Layer(name, key), loras) for key in shapes}
            save_weights(changed, folder / name / WEIGHTS[name in TOKENIZERS])
        what = _what(source)
        notes = tuple(_notes(source, loras, leftovers))
        guidance = _card(source)
        write_card(folder, options.out.absolute().name, what, _sources(source, vae, loras), options.command(), notes, guidance)
    return Imported(what, notes, Folder(options.out).fingerprint())


@contextmanager
def _folder_named_by(param: str) -> Iterator[None]:
    """Errors of a folder's reader name its own field, `model`; here it is another option that names the folder."""
    try:
        yield
    except FlexiError as error:
        if error.param != "model":
            raise
        raise type(error)(error.text, param=param) from error


def _source(options: ImportOptions) -> ImportSource:
    if not options.source.exists():
        raise NotFound(f"there is no {options.source}", param="source")
    if options.source.is_dir():
        for name in ("config", "prediction", "size"):
            if getattr(options, name) is not None:
                raise InvalidInput("is for a single file: a folder says it itself", param=name)
        if options.ema:
            raise InvalidInput("is for a single file: a folder has one set of weights", param="ema")
        return pipeline_folder(options.source, options.allow_pickle, options.allow_nonfinite)
    file = open_tensors(options.source, "source", options.allow_pickle, options.allow_nonfinite)
    config = Folder(options.config) if options.config else None
    detected = None if config else detect(file)
    return single_file(file, detected, config, options.prediction, options.size, options.ema)


def _weights(source: ImportSource, vae: TensorFile | None, name: str, made: Folder, values: bool) -> dict[str, Tensor]:
    if vae is not None and name == "vae":
        return autoencoder_weights(vae, made, values)
    return source.weights(name, made, values)


def _origin(source: ImportSource, vae: TensorFile | None, name: str) -> tuple[Path, str]:
    """Where a network comes from, and the option that names it."""
    if vae is not None and name == "vae":
        return vae.path, "vae"
    return source.folder.root if isinstance(source, PipelineFolder) else source.files[0].path, "source"


def _card(source: ImportSource) -> float | None:
    """The usual guidance of the folder that is imported, or that a single file is like, where its card says one."""
    if isinstance(source, SingleFile):
        return card_guidance(source.config.root).scale if source.config else None
    assert isinstance(source, PipelineFolder)
    return card_guidance(source.folder.root).scale


def _what(source: ImportSource) -> str:
    if isinstance(source, SingleFile):
        if source.detected is not None:
            return f"{source.detected.name} ({'velocity' if source.prediction == 'v_prediction' else 'noise'} prediction)"
        return f"A checkpoint of the kind of {source.config.root.resolve().name}" if source.config else "A checkpoint"
    assert isinstance(source, PipelineFolder)
    return str(source.folder.index.get("_class_name", "A pipeline"))


def _sources(source: ImportSource, vae: TensorFile | None, loras: list[Lora]) -> Iterator[SourceFile]:
    if isinstance(source, PipelineFolder):
        for name, files in source.opened.items():
            for file in files if name != "vae" or vae is None else ():
                yield SourceFile(name, file.path, file.sha256())
    else:
        yield SourceFile("checkpoint", source.files[0].path, source.files[0].sha256())
    if vae is not None:
        yield SourceFile("vae", vae.path, vae.sha256())
    for lora in loras:
        yield SourceFile(f"LoRA × {lora.scale:g}", lora.file.path, lora.file.sha256())


def _notes(source: ImportSource, loras: list[Lora], leftovers: list[str]) -> Iterator[str]:
    for lora in loras:
        changed = ", ".join(f"{count} layers of {name}" for name, count in lora.layers().items())
        yield f"{lora.file.path.name} × {lora.scale:g}: {changed} are changed"
        yield from lora.notes
    if isinstance(source, SingleFile):
        averages = bool(source.detected and source.detected.ema) and not source.ema
        if averages:
            yield "the file has averaged weights (model_ema) as well: --ema takes those instead of the ones trained last"
        leftovers = [*leftovers, *source.unused()]
    if leftovers:
        yield f"not used, because nothing in the model is called so: {named(leftovers)}"
    yield CHECKER

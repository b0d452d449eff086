"""A diffusers pipeline folder on disk: which components it has, which of their files are read, and its fingerprint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.fingerprint import KEPT, fingerprint, states
from engine.stored_file import read_object, readable, refuse_unusable
from engine.weight_files import DIFFUSERS, TRANSFORMERS, WeightFiles, choose_weights
from registry.errors import Conflict, FlexiError, NotFound, Unsupported

INDEX = "model_index.json"
CONFIGS = {"scheduler": "scheduler_config.json"}  # others' is config.json
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"}
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    *TOKENIZER_SETTINGS,
)  # all that transformers' CLIPTokenizer may read
SENTENCES = "spiece.model"  # of a T5 tokenizer that was saved without a tokenizer.json


class Folder:
    """A folder with a model_index.json.

    A component's files lie in a folder of its name; some old pipelines of one network (DDPM) keep them at the root. What is
    read of them is decided here, by name, once: what is loaded is what the fingerprint stands for, whatever else lies there.
    """

    def __init__(self, root: str | Path) -> None:
        """Raises `NotFound` without a model_index.json, `Unsupported` when it is not a JSON object."""
        self.root = Path(root)
        with readable(self.root, "model"):
            is_pipeline = (self.root / INDEX).exists() or (self.root / INDEX).is_symlink()
            is_cache = (self.root / "snapshots").is_dir()
        if not is_pipeline:
            advice = f": name one of the folders in {self.root / 'snapshots'}" if is_cache else ""
            raise NotFound(f"{self.root} is not a diffusers pipeline folder (no {INDEX}){advice}", param="model")
        refuse_unusable(self.root / INDEX, "model")
        self.index = read_object(self.root / INDEX, "model")
        self._files: dict[str, Mapping[str, Path]] = {}
        self._weights: dict[str, WeightFiles] = {}

    def component(self, name: str) -> str | None:
        """The class of a component, None where the pipeline has none of that name."""
        entry = self.index.get(name)
        return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[0] is not None else None

    @property
    def decoder(self) -> str | None:
        """Which component makes images of latents; None where the UNet's outputs are images."""
        return next((name for name in ("vae", "vqvae") if self.component(name)), None)

    @property
    def network(self) -> str:
        """Which component denoises: a transformer, where there is one and no UNet."""
        return "transformer" if self.component("transformer") and not self.component("unet") else "unet"

    @cached_property
    def components(self) -> tuple[str, ...]:
        """Those that are read. Others that model_index.json may name (a safety checker) are nobody's business here."""
        names = ["scheduler", self.network, *filter(None, [self.decoder])]
        if encoders := [name for name in TOKENIZERS if self.component(name)]:
            return (*names, *encoders, *(TOKENIZERS[name] for name in encoders))
        return (*names, "class_embedder") if self.component("class_embedder") else tuple(names)

    def path(self, name: str) -> Path:
        """Where a component's files are. Raises `NotFound`."""
        inner = self.root / name
        with readable(self.root, "model"):
            if inner.is_dir():
                return inner
            if (self.root / _config(name)).is_file():
                return self.root
        raise NotFound(f"{name} is missing: there is no folder {inner}", param="model")

    def config(self, name: str, file: str = "config.json") -> dict[str, Any]:
        """A component's configuration. Raises `NotFound` and `Unsupported`."""
        return read_object(self.path(name) / file, "model")

    def weights(self, name: str) -> WeightFiles:
        """The files of a network's weights. Raises `NotFound` and `Unsupported`."""
        if name not in self._weights:
            formats = TRANSFORMERS if name in TOKENIZERS else DIFFUSERS
            self._weights[name] = choose_weights(self.path(name), name, formats)
        return self._weights[name]

    def files(self, name: str) -> Mapping[str, Path]:
        """All that is read of a component: by the names under which it is looked for, the files. Raises as `weights` does."""
        if name not in self._files:
            self._files[name] = self._find(name)
        return self._files[name]

    def read_files(self) -> list[Path]:
        """All files that loading reads. Raises as `weights` does."""
        return [self.root / INDEX, *(file for name in self.components for file in self.files(name).values())]

    def check(self) -> None:
        """Raises `NotFound` or `Unsupported` for the first file that is missing or is not what its name says.

        Reads their beginnings only, and needs no torch: for those who want to know before they load.
        """
        for name in self.components:
            for file in self.files(name).values():
                refuse_unusable(file, "model")

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Raises `Conflict` when the block ends and a file that loading reads is not the one that it was before."""
        before: dict[Path, list[int]] = {}
        with suppress(OSError, FlexiError):  # what is missing is said where it is needed
            before = states(self.read_files())
        yield
        after = states(self.read_files())
        changed = [file for file, state in after.items() if before.get(file) != state]
        if changed:
            raise Conflict(f"{changed[0]} was changed while the model was loaded: load it again", param="model")

    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of the files that are read, model_index.json among them. Raises as `weights`."""
        with readable(self.root, "model"):
            return fingerprint(self.root, self.read_files())

    def earlier_fingerprint(self) -> str:
        """What schedules say that were made while every file of a component counted, read or not.

        The same as `fingerprint` where nothing else lies in the components' folders, or it cannot be read.
        """
        files = {self.root / INDEX}
        with suppress(OSError):  # what cannot be read was never hashed: no schedule says so
            for name in filter(self.component, self.index):
                inner = self.root / name
                found = inner.rglob("*") if inner.is_dir() else self.root.iterdir()
                files |= {file for file in found if file.is_file() and not file.name.startswith(KEPT)}
            if files != set(self.read_files()):
                return fingerprint(self.root, files, f"{KEPT}.all")
        return self.fingerprint()

    def _find(self, name: str) -> dict[str, Path]:
        path = self.path(name)
        if name in TOKENIZERS.values():
            encoder = next(encoder for encoder, tokenizer in TOKENIZERS.items() if tokenizer == name)
            return t5_files(name, path) if self.component(encoder) == "T5EncoderModel" else tokenizer_files(name, path)
        files = {_config(name): path / _config(name)}
        if name == "scheduler":
            return files
        if name == "class_embedder":
            return files | _table(path)
        return {**files, **self.weights(name).files}


def tokenizer_files(name: str, path: Path) -> dict[str, Path]:
    """What transformers' CLIPTokenizer reads of the files in a folder. Raises `NotFound` where they make no tokenizer."""
    with readable(path, "model"):
        names = {entry.name for entry in path.iterdir()}
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        message = f"{name} is missing: neither tokenizer.json nor vocab.json with merges.txt is in {path}"
        raise NotFound(message, param="model")
    return {file: path / file for file in TOKENIZER_FILES if file in names}


def t5_files(name: str, path: Path) -> dict[str, Path]:
    """What transformers' T5Tokenizer reads of the files in a folder.

    Raises `NotFound` where they make no tokenizer, and `Unsupported` where only a package that is not installed could read it.
    """
    with readable(path, "model"):
        names = {entry.name for entry in path.iterdir()}
    if not names & {"tokenizer.json", SENTENCES}:
        raise NotFound(f"{name} is missing: neither tokenizer.json nor {SENTENCES} is in {path}", param="model")
    if "tokenizer.json" not in names and find_spec("sentencepiece") is None:
        message = (
            f"{name} is a {SENTENCES} without a tokenizer.json, which the package sentencepiece reads, and it is not installed"
        )
        advice = "pip install sentencepiece, or take tokenizer.json from a newer folder of the same T5"
        raise Unsupported(f"{message}: {advice}", param="model")
    vocabulary = "tokenizer.json" if "tokenizer.json" in names else SENTENCES
    return {file: path / file for file in (vocabulary, *TOKENIZER_SETTINGS) if file in names}


def _config(name: str) -> str:
    return CONFIGS.get(name, "config.json")


def _table(path: Path) -> dict[str, Path]:
    """A class embedder's one file, whatever its name: a plain one as diffusers would write it comes first."""
    usual = "diffusion_pytorch_model.safetensors"
    with readable(path, "model"):
        tables = sorted(file for file in path.glob("*.safetensors") if not file.name.startswith("."))
    return {usual: path / usual if path / usual in tables or not tables else tables[0]}

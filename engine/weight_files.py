"""Which of a component's files hold its weights, chosen by their names: what is chosen is loaded and hashed, nothing else is.

The names are those that diffusers and transformers write: `diffusion_pytorch_model.safetensors`, a variant of it such as
`diffusion_pytorch_model.fp16.safetensors`, shards with an index, and the same in pickles (`.bin`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.stored_file import read_object, readable
from registry.errors import NotFound, Unsupported

log = logging.getLogger(__name__)

VARIANTS = ("", "fp32", "fp16", "bf16")  # in this order; then others by name. "" is plain: what is loaded unless one asks
UNFINISHED = (".incomplete", ".part", ".aria2", ".crdownload")
_SHARD = re.compile(r"-\d+-of-\d+")


@dataclass(frozen=True)
class WeightFormat:
    """A way to keep weights: the name of a whole file, or of an index of shards, up to its first dot."""

    stem: str
    suffix: str
    sharded: bool

    @property
    def plain(self) -> str:
        """The name without a variant, which libraries look for."""
        return f"{self.stem}.{self.suffix}" + ".index.json" * self.sharded

    def variant(self, name: str) -> str | None:
        """The variant that a file of this format is, "" if plain; None for the name of something else."""
        stem, *parts = name.split(".")
        if stem != self.stem or self.suffix not in parts or any(map(_SHARD.search, parts)):
            return None
        if self.sharded:
            if parts[-1] != "json" or "index" not in parts:
                return None
            return ".".join(part for part in parts[:-1] if part not in (self.suffix, "index"))
        return ".".join(parts[:-1]) if parts[-1] == self.suffix else None


# Each library's own order of preference, where several lie side by side.
DIFFUSERS = (
    WeightFormat("diffusion_pytorch_model", "safetensors", sharded=True),
    WeightFormat("diffusion_pytorch_model", "safetensors", sharded=False),
    WeightFormat("diffusion_pytorch_model", "bin", sharded=False),
    WeightFormat("diffusion_pytorch_model", "bin", sharded=True),
)
TRANSFORMERS = (
    WeightFormat("model", "safetensors", sharded=False),
    WeightFormat("model", "safetensors", sharded=True),
    WeightFormat("pytorch_model", "bin", sharded=False),
    WeightFormat("pytorch_model", "bin", sharded=True),
)


@dataclass(frozen=True)
class WeightFiles:
    """The chosen files, by the names under which a library finds them: the first is the whole file, or the index."""

    files: Mapping[str, Path]
    format: WeightFormat
    variant: str


def choose_weights(folder: Path, component: str, formats: Sequence[WeightFormat]) -> WeightFiles:
    """Plain weights before a variant, then the library's order of formats; of several variants the first of `VARIANTS`.

    An index none of whose shards is there counts only where nothing else does: who downloads one variant gets it beside.
    Raises `NotFound` where there are no weights, or a shard is missing, `Unsupported` for an index that is none.
    """
    with readable(folder, "model"):
        names = sorted(entry.name for entry in folder.iterdir())  # a link to nothing among them
    found = [
        (variant, rank, name)
        for name in names
        for rank, kind in enumerate(formats)
        if (variant := kind.variant(name)) is not None
    ]
    ranked = [WeightFiles({formats[r].plain: folder / n}, formats[r], v) for v, r, n in sorted(found, key=_preference)]
    if not ranked:
        raise NotFound(_nothing(folder, component, names, formats), param="model")
    chosen = next((weights for weights in ranked if not weights.format.sharded or _any_shard(weights, names)), ranked[0])
    if chosen.variant:
        others = sorted({weights.variant for weights in ranked} - {chosen.variant, ""})
        beside = f"; there are {', '.join(others)} too" if others else ""
        log.info("the weights of %s are the variant %s, for there are no plain ones%s", component, chosen.variant, beside)
    return _with_shards(chosen, names) if chosen.format.sharded else chosen


def _preference(found: tuple[str, int, str]) -> tuple[int, bool, str, int, str]:
    variant, rank, name = found
    known = VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS)
    return known, variant.startswith("non"), variant, rank, name  # non_ema is for training on


def _shards(index: Path) -> list[str]:
    """The names of the files that an index names. Raises `Unsupported` for one that is no index, or leads elsewhere."""
    places = read_object(index, "model").get("weight_map")
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    if not names or any("/" in name or name.startswith(".") for name in names):
        raise Unsupported(f"{index} is no index of weights: its weight_map must name files beside it", param="model")
    return names


def _any_shard(weights: WeightFiles, names: Sequence[str]) -> bool:
    return any(shard in names for shard in _shards(next(iter(weights.files.values()))))


def _with_shards(weights: WeightFiles, names: Sequence[str]) -> WeightFiles:
    (index,) = weights.files.values()
    shards = _shards(index)
    missing = [shard for shard in shards if shard not in names]
    if missing:
        message = f"{index} names {missing[0]}, which is not there ({len(missing)} of {len(shards)} are missing)"
        raise NotFound(f"{message}: download the model again", param="model")
    return WeightFiles({**weights.files, **{shard: index.parent / shard for shard in shards}}, weights.format, weights.variant)


def _nothing(folder: Path, component: str, names: Sequence[str], formats: Sequence[WeightFormat]) -> str:
    """Why there are no weights, from what is there instead."""
    unfinished = [name for name in names if name.endswith(UNFINISHED)]
    shards = [name for name in names if _SHARD.search(name)]
    others = [name for name in names if Path(name).suffix not in (".json", ".txt", ".md") and not name.startswith(".")]
    if unfinished:
        return f"the weights of {component} are missing: {folder / unfinished[0]} was not downloaded to its end"
    if shards:
        return f"the weights of {component} are in shards without an index: {folder / formats[0].plain} is missing"
    wanted = " or ".join(dict.fromkeys(kind.plain for kind in formats if not kind.sharded))
    beside = f", only {', '.join(others[:3])}" if others else ""
    return f"the weights of {component} are missing: there is no {wanted}, nor a variant of it, in {folder}{beside}"

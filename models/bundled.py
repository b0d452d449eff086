"""The models of this repository, and how each is used where nobody says more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MODELS = Path("models")
DEFAULT = "emoji64"
SEED = 7


@dataclass(frozen=True)
class BundledModel:
    """A model, scales to see it at beside its card's, and prompts that show it well."""

    name: str
    scales: Sequence[float]
    prompts: Sequence[str]

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return MODELS / self.name

    def search_options(self) -> list[object]:
        """Options of `search_jobs run` that belong to the model."""
        prompts = self.folder / "prompts.txt"
        return ["--model", self.folder, *(["--prompts", prompts] if prompts.is_file() else [])]

    def requests(self) -> list[dict[str, object]]:
        """A few prompts to show, all with one seed; a model that ignores its only prompt gets several seeds."""
        if len(self.prompts) == 1:
            return [{"prompt": self.prompts[0], "seed": SEED + i} for i in range(4)]
        return [{"prompt": prompt, "seed": SEED} for prompt in self.prompts]


BUNDLED = {
    model.name: model
    for model in (
        BundledModel("emoji64", (1, 7.5), ("tiger face", "hamburger", "strawberry", "penguin")),
        BundledModel("glyphs-ldm", (1, 5), ("R", "g", "5", "Q")),
        BundledModel("glyphs-ddpm", (), ("anything",)),
        BundledModel("glyphs-dit", (1, 5), ("R", "g", "5", "Q")),
    )
}

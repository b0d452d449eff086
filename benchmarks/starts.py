"""python -m benchmarks.starts: how well a registry's schedules hold from an image, with their corrections and without.

A source is the teacher's image of one prompt; from it the teacher and each tier make an image of another prompt with the same
noise, at several strengths. The schedules were searched and fitted on images from pure noise.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from engine import sampler
from engine.loading import load
from engine.model import Model
from engine.program import Program
from engine.source import EncodedSource
from registry.catalog import Catalog
from registry.schedule import Schedule
from registry.stores.address import DEFAULT_ADDRESS, open_store
from registry.tiers import REFERENCE

PAIRS = (
    "red heart:blue heart, cat face:dog face, green apple:red apple, blue car:bus, yellow star:red circle, pizza:hamburger, "
    "house:castle, tree:palm tree, dog face:fox face, rocket:airplane, ball:moon, flower:rose"
)


def psnr(ours: Tensor, theirs: Tensor) -> float:
    """Of two samples of images in [0, 1], in dB."""
    return -10 * math.log10(float(((ours - theirs) ** 2).mean()))


class Starts:
    """The sample: sources, what is to be made of them, and with which noise."""

    def __init__(self, model: Model, pairs: list[tuple[str, str]], teacher: Program, guidance: float) -> None:
        self._model, self._guidance = model, guidance
        self._noise = torch.stack([model.noise(i) for i in range(len(pairs))])
        self._negative = model.negative([""] * len(pairs))
        first = torch.stack([model.noise(100 + i) for i in range(len(pairs))])
        self._condition = model.encode([source for source, _ in pairs])
        images = model.decode(sampler.generate(model.network, teacher, first, self._condition, self._negative, guidance))
        self._condition = model.encode([prompt for _, prompt in pairs])
        self._source = EncodedSource(torch.stack([model.encode_image(image[None] * 2 - 1) for image in images]))

    def images(self, schedule: Schedule, strength: float) -> Tensor:
        """(n, 3, H, W) in [0, 1]."""
        network, program = self._model.network, self._model.compile(schedule).starting(strength)
        latents = sampler.generate(
            network, program, self._noise, self._condition, self._negative, self._guidance, source=self._source
        )
        return self._model.decode(latents)


def main(
    model: Annotated[Path, typer.Option(help="A diffusers pipeline folder.")] = Path("models/emoji64"),
    registry: Annotated[str, typer.Option(help="Where its tiers are.")] = DEFAULT_ADDRESS,
    pairs: Annotated[str, typer.Option(help="What is on the source, and what is to be made of it.")] = PAIRS,
    strengths: Annotated[str, typer.Option(help="With commas between.")] = "0.3,0.5,0.7,0.9",
    guidance: Annotated[float, typer.Option(help="Of all images.")] = 3.0,
) -> None:
    """Print PSNR to the teacher from the same start, and MACs relative to it."""
    loaded = load(model)
    catalog, teacher = Catalog(open_store(registry), loaded.ref.name), loaded.teacher(50)
    prompts = [(source.strip(), prompt.strip()) for source, prompt in (pair.split(":") for pair in pairs.split(","))]
    starts = Starts(loaded, prompts, loaded.compile(teacher), guidance)
    found = {tier: catalog.resolve(tier)[0] for tier in catalog.tiers() if tier != REFERENCE}
    print("| strength | tier | steps | of the teacher | with corrections | without |\n|---|---|---|---|---|---|")
    for strength in map(float, strengths.split(",")):
        want, whole = starts.images(teacher, strength), loaded.compile(teacher).starting(strength)
        for tier, schedule in found.items():
            program = loaded.compile(schedule).starting(strength)
            bare = schedule.model_copy(update={"corrections": None, "scaled_corrections": None})
            both = [psnr(starts.images(one, strength), want) for one in (schedule, bare)]
            cost = loaded.macs.relative(program, whole)
            print(
                f"| {strength:g} | {tier} | {len(program.steps)} | {cost:.3f} | {both[0]:.1f} dB | {both[1]:.1f} dB |",
                flush=True,
            )


if __name__ == "__main__":
    typer.run(main)

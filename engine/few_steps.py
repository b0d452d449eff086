"""Distilled models: folders whose UNet was taught to take a few large steps without guidance, and how one knows them.

Latent consistency models show it: by a UNet that takes the guidance scale as an input, or by their own scheduler. Turbo,
Lightning and Hyper models have the components of the models that they were made of. Published folders differ from these in two
things: their name, and a scheduler whose timesteps are spaced "trailing"; FLUX.1-schnell in its name, and in that it takes no
guidance scale as dev does. Both together are taken for proof; one alone is said to whoever starts the model.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from engine.config import is_whole
from engine.folder import Folder
from engine.noise import NoiseLevels
from engine.notice import Notice
from registry.errors import Unsupported
from registry.schedule import SolverName

NAMES = re.compile(r"turbo|lightning(?!_logs)|hyper[-_]?sd|schnell", re.IGNORECASE)
# Distilled to a few steps too, but most of these are walked by a scheduler of their own.
OTHER_NAMES = re.compile(r"(?<![a-z])(lcm|tcd|dmd2?|instaflow|perflow|flash[-_]?sd|few[-_]?steps?)(?![a-z])", re.IGNORECASE)
STEPS = re.compile(r"(?<![0-9.])([1-9]|1[0-6])[-_ ]?steps?(?![a-z])", re.IGNORECASE)
FLUX = "FluxTransformer2DModel"
USUAL = 4  # where the name says no number: Turbo models are made for 1 to 4, latent consistency models for 1 to 8


class FewSteps(NamedTuple):
    """How many steps a distilled model takes (None: not one, as far as one can see), and what is to be said about it."""

    steps: int | None
    notice: Notice | None = None


def few_steps(files: Folder, name: str, levels: NoiseLevels, solver: SolverName) -> FewSteps:
    """Whether this folder is a distilled model, which only text-to-image models are, and those that the scheduler lcm walks.

    name: what the model is called. levels, solver: what the folder's scheduler comes to, and the solver most like it.
    `few_steps` in model_index.json settles it: a number of steps, or 0 for a model that is not distilled; `Unsupported` for
    another value.
    """
    consistency = solver == "lcm" or files.config(files.network).get("time_cond_proj_dim") is not None
    if not (files.component("text_encoder") or consistency):
        return FewSteps(None)
    said = files.index.get("few_steps")
    if said is not None:
        if not (is_whole(said) or (type(said) is int and said == 0)):
            raise Unsupported(f"must be a whole number of at least 0 in model_index.json, got {said!r}", param="few_steps")
        return FewSteps(said or None)
    scheduler, spacing = files.component("scheduler") or "", levels.walks[solver].spacing
    zero_snr = levels.alphas_cumprod[-1] == 0  # such models are spaced "trailing" too
    names = [name, *(str(place.get("_name_or_path") or "") for place in (files.index, files.config(files.network)))]
    known = next((text for text in names if NAMES.search(text)), None)
    unguided = files.component(files.network) == FLUX and not files.config(files.network).get("guidance_embeds")
    if consistency or (known is not None and (spacing == "trailing" or unguided)):
        numbers = (STEPS.search(text) for text in ([known] if known else names))
        return FewSteps(next((int(number[1]) for number in numbers if number), USUAL))
    doubtful = known or next((text for text in names if OTHER_NAMES.search(text) or STEPS.search(text)), None)
    if doubtful is not None:
        evidence = f"the name {doubtful!r} is a distilled model's"
    elif unguided:
        evidence = "a FLUX that takes no guidance scale is what schnell is"
    elif spacing == "trailing" and scheduler.startswith("Euler") and not zero_snr:
        evidence = f"{scheduler} with timestep_spacing trailing is what distilled models have"
    else:
        return FewSteps(None)
    message = (
        f"{evidence}, and nothing else shows that it is one: it is served with many steps and guidance, which spoil such a "
    )
    return FewSteps(
        None, Notice("perhaps_distilled", f'{message}model\'s images. Say "few_steps": 4 (or 0) in model_index.json')
    )

"""Who competes: each does a step, or a whole generation, as its users would have it done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.engine import deepcache
from benchmarks.engine.workload import GUIDANCE, STEPS, Source, UniformSchedule, Workload
from engine.branches import all_branches
from engine.buckets import EXACT, Buckets
from engine.condition import Condition
from engine.denoising_task import DenoisingTask
from engine.graphs import Graphs, graphs_for
from engine.items import UNet
from engine.policy import FCFS
from engine.waves import Waves

Run = Callable[[], Tensor]
COMPILED_ROWS = (2, 16)  # one guided image, and eight: diffusers' UNet is compiled anew for each number of rows


@dataclass(frozen=True)
class Competitor:
    """Makes calls that can be timed; None is for what it cannot do. compiled: its first calls take minutes.

    Steps are on `Workload.noise` and `Workload.condition` of so many rows; a full one at the first of two early timesteps, and
    a partial one at the second, with the feature that the full one kept. Generations are guided.
    """

    name: str
    workload: Workload
    compiled: bool = False

    def full(self, rows: int) -> Run | None:
        """A full step: (rows, c, h, w)."""
        return None

    def partial(self, rows: int, branch: int) -> Run | None:
        """A partial step: (rows, c, h, w)."""
        return None

    def generation(self, uniform: UniformSchedule, images: int) -> Run | None:
        """All steps of so many images: latents (images, c, h, w)."""
        return None


@dataclass(frozen=True)
class Ours(Competitor):
    """Our network; generations in waves, launched one behind the other. With graphs, as captured ones."""

    graphs: Graphs | None = None

    @override
    def full(self, rows: int) -> Run:
        first, early, _, condition = _inputs(self.workload, rows)
        return self._captured(lambda: self.workload.model.network.full(first, early, condition, keep={1})[0])

    @override
    def partial(self, rows: int, branch: int) -> Run | None:
        network = self.workload.model.network
        if branch not in all_branches(network.branches):
            return None
        first, early, late, condition = _inputs(self.workload, rows)
        kept = network.full(first, early, condition, keep={branch})[1][branch].clone()
        then = _then(self.workload, rows)
        return self._captured(lambda: network.partial(then, late, condition, branch, kept))

    @override
    def generation(self, uniform: UniformSchedule, images: int) -> Run | None:
        if not self.workload.runs(uniform):
            return None
        model, guides, program = self.workload.model, self.workload.model.prompts.guides, self.workload.program(uniform)
        rows = 2 * images if guides else images
        noise, condition, negative = (
            self.workload.noise(images),
            self.workload.condition(images),
            _nothing(self.workload, images),
        )
        buckets = Buckets((rows,)) if self.graphs else EXACT
        waves = Waves[DenoisingTask](model.network, model.slots(rows), FCFS(rows), buckets, self.graphs)
        for _ in waves.prepare({uniform.branch} - {0}):
            pass

        def run() -> Tensor:
            tasks = [DenoisingTask(program, GUIDANCE if guides else None) for _ in range(images)]
            for i, task in enumerate(tasks):
                waves.add(task, noise[i], condition[i : i + 1], negative[i : i + 1] if guides else None)
            behind = waves.launch()
            while behind is not None:
                wave = waves.launch()
                waves.land(behind)
                behind = wave
            for task in tasks:
                if task.error:
                    raise task.error
            return torch.stack([task.latent for task in tasks if task.latent is not None])

        return run

    def _captured(self, call: Run) -> Run:
        if self.graphs is None:
            return call
        made: list[Tensor] = []
        graph = self.graphs.capture(lambda: made.append(call()))

        def run() -> Tensor:
            graph.replay()
            return made[-1]

        return run


@dataclass(frozen=True)
class Diffusers(Competitor):
    """diffusers' UNet, called as its pipelines call it, and those pipelines."""

    unet: Any = field(kw_only=True)

    @override
    def full(self, rows: int) -> Run | None:
        if self.compiled and rows not in COMPILED_ROWS:
            return None
        first, early, _, condition = _inputs(self.workload, rows)
        sample, timestep = first.to(self.workload.model.dtype), early[0].long()
        named = unet_arguments(condition)
        return lambda: self.unet(sample, timestep, return_dict=False, **named)[0]

    @override
    def generation(self, uniform: UniformSchedule, images: int) -> Run | None:
        if uniform.offsets or uniform.full != STEPS or (self.compiled and 2 * images not in COMPILED_ROWS):
            return None
        pipeline = text_pipeline(self.workload, self.unet)
        return pipeline and denoising(self.workload, pipeline, STEPS, images)


@dataclass(frozen=True)
class DeepCache(Competitor):
    """The package of that name around diffusers' UNet: its cached step is our partial one."""

    @override
    def partial(self, rows: int, branch: int) -> Run | None:
        first, _, _, condition = _inputs(self.workload, rows)
        model, dtype = self.workload.model, self.workload.model.dtype
        if condition.context is None or branch not in self._branches:
            return None
        then, named = _then(self.workload, rows).to(dtype), unet_arguments(condition)
        return deepcache.cached_step(model.network.module, self.workload.scheduler, branch, first.to(dtype), then, named)

    @override
    def generation(self, uniform: UniformSchedule, images: int) -> Run | None:
        """As many full and cached steps; it spaces them evenly, and we nearly so."""
        pipeline = text_pipeline(self.workload, deepcache.twin(self.workload.model.network.module))
        if pipeline is None or uniform.branch not in self._branches:
            return None
        every = 1 + len(uniform.offsets)
        run = denoising(self.workload, pipeline, every * uniform.full, images)
        return deepcache.accelerated(pipeline, every, uniform.branch, run)

    @property
    def _branches(self) -> range:
        """Those that are ours too: past its first block, DeepCache counts three a block, as blocks of two resnets have."""
        layers = self.workload.model.network.config["layers_per_block"]
        return range(1, 1 + (len(all_branches(self.workload.model.network.branches)) if layers == 2 else 1 + layers))


@dataclass
class Field:
    """All who compete, on one workload. `compiled`: with those who take minutes to compile."""

    source: Source
    workload: Workload
    compiled: bool
    all: list[Competitor] = field(default_factory=list)

    def __post_init__(self) -> None:
        graphs, unet = graphs_for(self.workload.model.device), self.workload.model.network.module
        self.all += [Ours("ours", self.workload), Diffusers("diffusers", self.workload, unet=unet)]
        if graphs:
            self.all.append(Ours("ours, captured", self.workload, graphs=graphs))
        if deepcache.installed():
            self.all.append(DeepCache("DeepCache", self.workload))
        if self.compiled:
            ours = self.source.workload(compiled=True)
            self.all.append(Ours("ours, compiled", ours, compiled=True))
            if graphs:
                self.all.append(Ours("ours, compiled and captured", ours, True, graphs_for(ours.model.device)))
            self.all.append(Diffusers("diffusers, compiled", self.workload, True, unet=_compiled(self.workload, ours)))


def _compiled(workload: Workload, ours: Workload) -> Any:
    """diffusers' UNet as its documentation has it compiled, in channels-last, which the weights of ours are too."""
    mode = "reduce-overhead" if workload.model.device.type == "cuda" else "default"
    unet = deepcache.twin(ours.model.network.module).to(memory_format=torch.channels_last)
    return torch.compile(unet, mode=mode, fullgraph=True, dynamic=False)


def _inputs(workload: Workload, rows: int) -> tuple[Tensor, Tensor, Tensor, Condition]:
    """A sample, the timesteps of the full and of the partial step, and conditions."""
    early, late = (
        torch.full((rows,), float(timestep), device=workload.model.device)
        for timestep in deepcache.timesteps(workload.scheduler)
    )
    return workload.noise(rows), early, late, workload.condition(rows)


def _then(workload: Workload, rows: int) -> Tensor:
    """The partial step's sample."""
    return workload.noise(rows + 1)[:rows]


def _nothing(workload: Workload, rows: int) -> Condition:
    """What guidance guides away from."""
    return workload.condition(rows + 1)[:rows]


def unet_arguments(condition: Condition) -> dict[str, Any]:
    """A condition as diffusers' pipelines give it to its UNets, word for word: else torch would compile them twice."""
    if condition.context is None:
        return {} if condition.labels is None else {"class_labels": condition.labels}
    added = None if condition.pooled is None else {"text_embeds": condition.pooled, "time_ids": condition.sizes}
    return {
        "encoder_hidden_states": condition.context,
        "timestep_cond": None,
        "cross_attention_kwargs": None,
        "added_cond_kwargs": added,
    }


def text_pipeline(workload: Workload, unet: UNet) -> Any:
    """diffusers' pipeline of a text-to-image model, the denoising part only: neither text encoder nor VAE. None for others."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    condition = workload.condition(1)
    if condition.context is None or not workload.model.prompts.guides:
        return None
    scheduler = deepcache.ddim(workload.scheduler)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    if condition.pooled is not None:
        others = dict.fromkeys(("text_encoder_2", "tokenizer_2"))
        pipeline = StableDiffusionXLPipeline(**parts, **others, unet=unet, scheduler=scheduler, add_watermarker=False)
    else:
        absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, **absent, unet=unet, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def denoising(workload: Workload, pipeline: Any, steps: int, images: int) -> Run:
    """A call of the pipeline that makes so many images in so many steps."""
    condition, negative = workload.condition(images), _nothing(workload, images)
    noise = workload.noise(images).to(workload.model.dtype)
    height, width = (pipeline.vae_scale_factor * side for side in noise.shape[-2:])
    given = {"prompt_embeds": condition.context, "negative_prompt_embeds": negative.context}
    if condition.pooled is not None:
        given |= {"pooled_prompt_embeds": condition.pooled, "negative_pooled_prompt_embeds": negative.pooled}

    def run() -> Tensor:
        made: Tensor = pipeline(
            **given,
            latents=noise,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            output_type="latent",
        ).images
        return made

    return run

"""Exact MACs of each kind of step, counted on the meta device: no weights, no arithmetic.

Two counts, never mixed. `macs`: every multiply-accumulate, attention products included (torch's FlopCounterMode / 2); what
we bill and export. `paper_macs`: the literature's convention, only for comparison with published tables: convolutions and
linears with one extra per output for the bias, group and layer norms 2 per element, nothing functional.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine.branches import Branches
from engine.condition import Condition
from engine.config import BUILD_ERRORS, context_width, reason
from engine.families.table import family_of
from engine.program import Program
from engine.unrolled import UnrolledUNet
from registry.errors import Unsupported
from registry.schedule import Branch


@dataclass(frozen=True)
class Macs:
    """MACs of one UNet row under both conventions, and how many more of each a context one token longer takes."""

    macs: int
    paper_macs: int
    token_macs: int = 0
    token_paper_macs: int = 0

    def __add__(self, other: Macs) -> Macs:
        return Macs(*(one + more for one, more in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Macs) -> Macs:
        return Macs(*(one - less for one, less in zip(astuple(self), astuple(other), strict=True)))

    def longer(self, tokens: int) -> Macs:
        """The same with a context of so many tokens more: all that is computed of them is linear in their number."""
        macs, paper_macs = self.macs + tokens * self.token_macs, self.paper_macs + tokens * self.token_paper_macs
        return replace(self, macs=macs, paper_macs=paper_macs)


@dataclass(frozen=True)
class StepMacs:
    """What one UNet row (no guidance) costs in each kind of step.

    `partial` is keyed by branch, and so are `features`: the shape of the feature that a partial step reuses, (c, h, w) of a
    UNet's, (tokens, width) of a transformer's.
    """

    parameters: int
    full: Macs
    partial: Mapping[Branch, Macs]
    features: Mapping[Branch, tuple[int, ...]]
    branches: Branches

    def longer(self, tokens: int) -> StepMacs:
        """The same with a context of so many tokens more."""
        partial = {branch: macs.longer(tokens) for branch, macs in self.partial.items()}
        return replace(self, full=self.full.longer(tokens), partial=partial)

    def of(self, kind: str, branch: Branch) -> int:
        """`macs` of one UNet row of a step of this kind; the branch matters for partial steps only."""
        return self.full.macs if kind == "full" else self.partial[branch].macs

    def of_program(self, program: Program, rows: int) -> int:
        """`macs` of one image; rows is 2 with classifier-free guidance, else 1. UNet only: text and VAE run once."""
        return rows * sum(self.of(step.kind, step.branch) for step in program.steps)

    def relative(self, program: Program, teacher: Program) -> float:
        """MACs of the program over those of the teacher's, which are all full steps."""
        return self.of_program(program, 1) / self.of_program(teacher, 1)


def meta_network(config: Mapping[str, Any]) -> nn.Module:
    """A network without weights from its diffusers configuration. Raises `Unsupported` for another class or a wrong one."""
    family = family_of(config)
    config = family.known(config)
    try:
        with torch.device("meta"):
            module = family.build(config)
    except BUILD_ERRORS as error:
        message = f"diffusers cannot build this {config['_class_name']}: {reason(error)}"
        raise Unsupported(message, param=family.component) from error
    return module.eval()


def example(config: Mapping[str, Any], tokens: int, latent_shape: tuple[int, int, int]) -> Condition:
    """A condition of one row, on the meta device, of the kind that this network takes; the context has `tokens` tokens."""
    with torch.device("meta"):
        return family_of(config).condition(config, tokens, latent_shape)


def unet_condition(config: Mapping[str, Any], tokens: int, latent_shape: tuple[int, int, int]) -> Condition:
    """As `Family.condition`. What goes into the UNet beside latents of `latent_shape` (c, h, w) is a picture."""
    width = context_width(config)
    context = torch.empty(1, tokens, width) if tokens and width is not None else None
    labels = torch.zeros(1, dtype=torch.long) if config.get("num_class_embeds") is not None else None
    embedded = config.get("time_cond_proj_dim")
    guidance = torch.empty(1, int(embedded)) if embedded is not None else None
    beside = int(config["in_channels"]) - latent_shape[0]
    picture = torch.empty(1, beside, *latent_shape[1:]) if beside > 0 else None
    if config.get("addition_embed_type") != "text_time":
        return Condition(context, labels=labels, guidance=guidance, picture=picture)
    pooled = int(config["projection_class_embeddings_input_dim"]) - 6 * int(config["addition_time_embed_dim"])
    return Condition(context, torch.empty(1, pooled), torch.empty(1, 6), labels, guidance, picture)


def count_steps(config: Mapping[str, Any], latent_shape: tuple[int, int, int], tokens: int) -> StepMacs:
    """The MACs of one row. latent_shape (c, h, w); `tokens` is the length of the context, 0 for a network without one.

    Raises `Unsupported` for a network that this version cannot run, or that cannot run at this size.
    """
    module, family = meta_network(config), family_of(config)
    network, condition = family.unrolled(module), example(family.known(config), tokens, latent_shape)
    try:
        full, partial, features = family.count(network, latent_shape, condition)
    except BUILD_ERRORS as error:
        what, size = family.component.replace("unet", "UNet"), "×".join(map(str, latent_shape[1:]))
        raise Unsupported(f"this {what} cannot run at {size}: {reason(error)}", param="size") from error
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return StepMacs(parameters, full, partial, features, network.branches)


class CountedMacs:
    """The MACs of one network's steps by the shape of its latents and the chunks of its contexts.

    Each is counted once, which takes a moment.
    """

    def __init__(self, config: Mapping[str, Any], tokens: int) -> None:
        """tokens: of one chunk of context."""
        self._config, self._tokens = config, tokens
        self._counted: dict[tuple[tuple[int, int, int], int], StepMacs] = {}

    def at(self, latent_shape: tuple[int, int, int], chunks: int = 1) -> StepMacs:
        """Of one row of these latents, with so many chunks of context."""
        if (latent_shape, chunks) not in self._counted:
            if chunks == 1:
                counted = count_steps(self._config, latent_shape, self._tokens)
            else:
                counted = self.at(latent_shape).longer((chunks - 1) * self._tokens)
            self._counted[latent_shape, chunks] = counted
        return self._counted[latent_shape, chunks]


def count_unet(
    network: UnrolledUNet, latent_shape: tuple[int, int, int], condition: Condition
) -> tuple[Macs, Mapping[Branch, Macs], Mapping[Branch, tuple[int, ...]]]:
    """As `Family.count`: a full step and the smallest partial one, and in the full one what each branch adds to the one before.

    That is one item of the encoder and one of the decoder, which run on the same shapes in every step that they are part of.
    The network's items are replaced by such as are counted.
    """
    sample = torch.empty(1, *latent_shape, device="meta")
    timesteps = torch.zeros(1, device="meta")
    branches = range(1, network.branches + 1)
    with counting(network.unet) as so_far:
        added = dict.fromkeys(branches, Macs(0, 0))

        def counted(item: Callable[..., Tensor], branch: int) -> Callable[..., Tensor]:
            def run(*given: Any) -> Tensor:
                before = so_far()
                made = item(*given)
                added[branch] += so_far() - before
                return made

            return run

        network.encoder = [counted(item, branch) for branch, item in zip(branches, network.encoder, strict=True)]
        network.decoder = [counted(item, branch) for branch, item in zip(reversed(branches), network.decoder, strict=True)]
        _, kept = network.full(sample, timesteps, condition, keep=branches)
        full, each = so_far(), dict(added)
        network.partial(sample, timesteps, condition, 1, kept[1])
        smallest = so_far() - full
    partial = accumulate((each[branch] for branch in branches[1:]), initial=smallest)
    return full, dict(zip(branches, partial, strict=True)), {branch: tuple(f.shape[1:]) for branch, f in kept.items()}


@contextmanager
def counting(module: nn.Module) -> Iterator[Callable[[], Macs]]:
    """Yields what to ask for the count so far: what torch and the modules counted since this one is called in the block."""
    with torch.no_grad(), _module_macs(module) as paper, _token_macs(module) as token, FlopCounterMode(display=False) as flops:
        yield lambda: Macs(flops.get_total_flops() // 2, sum(paper), *map(sum, token))


@contextmanager
def _token_macs(unet: nn.Module) -> Iterator[tuple[list[int], list[int]]]:
    """Collect what one more token of the context would take, in both conventions, one number per cross-attention that ran.

    Of inner width d and n queries it takes its key and its value, and d for each query twice: its part of the product of
    queries and keys, and of that of the weights and the values. Where text has a stream of its own,
    nothing is linear in it, and no text is longer than another.
    """
    macs, paper_macs = list[int](), list[int]()

    def hook(attention: Attention, given: tuple[Any, ...], named: Mapping[str, Any], _: Any) -> None:
        if named.get("encoder_hidden_states") is not None and attention.added_kv_proj_dim is None:
            projections = [attention.to_k, attention.to_v]
            own = sum(linear.in_features * linear.out_features for linear in projections)
            queries = given[0].shape[0] * given[0].shape[1]  # of one row
            macs.append(own + queries * sum(linear.out_features for linear in projections))
            paper_macs.append(own)

    attentions = (module for module in unet.modules() if isinstance(module, Attention))
    handles = [attention.register_forward_hook(hook, with_kwargs=True) for attention in attentions]
    try:
        yield macs, paper_macs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _module_macs(unet: nn.Module) -> Iterator[list[int]]:
    """Collect the literature's count, one number per module call."""
    counts: list[int] = []

    def hook(module: nn.Module, _: Any, output: Tensor) -> None:
        size = output.numel()
        if isinstance(module, nn.Conv2d):
            taps = module.kernel_size[0] * module.kernel_size[1] * module.in_channels // module.groups
            counts.append(size * taps + (size if module.bias is not None else 0))
        elif isinstance(module, nn.Linear):
            counts.append(size * module.in_features + (module.out_features if module.bias is not None else 0))
        else:
            counts.append(2 * size)

    counted = (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm)
    handles = [m.register_forward_hook(hook) for m in unet.modules() if isinstance(m, counted)]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()

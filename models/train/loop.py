"""What the three training scripts share: a budget, a learning rate that follows it, averaged weights, safe resuming."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from registry.files import replacing

Loss = Callable[[int, torch.Generator], torch.Tensor]


@dataclass
class TrainingBudget:
    """How long to train: a number of steps, or of minutes. `spent` is the seconds of the runs before this one."""

    steps: int | None
    minutes: float | None
    spent: float = 0.0
    _since: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Raise `ValueError` unless exactly one of the two is given."""
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either --steps or --minutes")

    def seconds(self) -> float:
        """Seconds of training so far, those of earlier runs included."""
        return self.spent + time.monotonic() - self._since

    def progress(self, step: int) -> float:
        """The share of the budget in [0, 1] that is used up before step number `step` (from 0)."""
        done = step / self.steps if self.steps else self.seconds() / (60 * (self.minutes or 1))
        return min(done, 1.0)


def cosine(progress: float, warmup: float = 0.01) -> float:
    """Factor on the learning rate: linear from 0 to 1 over `warmup`, then (1 + cos πp) / 2 down to 0."""
    if progress < warmup:
        return progress / warmup
    return (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2


class MovingAverage:
    """Exponential moving average of parameters: a ← d·a + (1 − d)·p with d = min(decay, (1 + n) / (10 + n)).

    The bound on d lets the average forget its start: after n updates it looks back over about n / 9 of them.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.live: list[torch.Tensor] = list(parameters)
        self.values = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, self.live, 1 - decay)

    @torch.no_grad()
    def install(self) -> None:
        """Overwrite the live parameters. There is no way back: this is for the export at the end."""
        for parameter, value in zip(self.live, self.values, strict=True):
            parameter.copy_(value)


def generator(seed: int, step: int) -> torch.Generator:
    """The randomness of one step, a function of (seed, step) alone: a resumed run draws what it would have drawn."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that a kill at any moment leaves either the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        torch.save(state, stream)


def train(
    loss_of: Loss,
    groups: list[tuple[torch.nn.Module, float]],
    budget: TrainingBudget,
    checkpoint: Path,
    *,
    seed: int,
    decay: float = 0.999,
    save_minutes: float = 4.0,
) -> tuple[int, float]:
    """Minimise `loss_of(step, randomness)` over modules with their peak learning rates; resumes from `checkpoint`.

    Leaves the averaged weights in the modules; returns the number of steps and the smoothed loss.
    """
    modules = torch.nn.ModuleList([module for module, _ in groups])
    settings: list[dict[str, Any]] = [
        {"params": [p for p in m.parameters() if p.requires_grad], "peak": lr} for m, lr in groups
    ]
    parameters = [p for group in settings for p in group["params"]]
    optimiser = torch.optim.AdamW(settings, lr=0.0, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    average = MovingAverage(parameters, decay)
    step, smooth = 0, math.nan
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        modules.load_state_dict(state["modules"])
        optimiser.load_state_dict(state["optimiser"])
        average.values, average.updates = state["average"], state["updates"]
        step, smooth, budget.spent = state["step"], state["loss"], state["seconds"]
        print(f"resumed at step {step}, {budget.spent / 60:.1f} min", flush=True)

    def keep() -> None:
        state: dict[str, Any] = {"modules": modules.state_dict(), "optimiser": optimiser.state_dict()}
        state["average"] = average.values
        state |= {"updates": average.updates, "step": step, "loss": smooth, "seconds": budget.seconds()}
        save(state, checkpoint)

    saved = time.monotonic()
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("", total=1.0)
        while (done := budget.progress(step)) < 1:
            loss = loss_of(step, generator(seed, step))
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * cosine(done)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            average.update()
            step += 1

            smooth = loss.item() if math.isnan(smooth) else 0.99 * smooth + 0.01 * loss.item()
            bar.update(task, completed=done, description=f"step {step}  loss {smooth:.4f}")
            if step % 100 == 0 and not bar.console.is_terminal:
                print(f"step {step} {budget.seconds() / 60:.1f} min loss {smooth:.4f}", flush=True)
            if time.monotonic() - saved > 60 * save_minutes:
                keep()
                saved = time.monotonic()
    keep()
    average.install()
    print(f"{step} steps in {budget.seconds() / 60:.1f} min, loss {smooth:.4f}", flush=True)
    return step, smooth

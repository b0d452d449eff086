"""python -m benchmarks.rescue: what letting an image go on with fewer steps is worth, where it would miss its deadline.

First the images: how near the teacher's they are when a tier's program is left at a segment's end for what a cheaper tier
computes from there on, on a registry's tiers and the real model. Then the deadlines: how many a server on one GPU misses with
and without, on a virtual clock with measured curves, and how many dB the images lost that it rescued.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Annotated

import torch
import typer

from benchmarks.rescue.fidelity import FidelityOfRescues, Images, Switch, switches
from benchmarks.rescue.suffix import rescued
from benchmarks.rescue.virtual import AUTO, HurriedImage, RescuingGpu, When, arrivals, run
from engine.loading import load
from engine.program import Program
from loadtests.capacity.curves import Curves, read_curves
from loadtests.capacity.images import TierPlan
from registry.catalog import Catalog
from registry.commands.command_line import run_command
from registry.stores.address import DEFAULT_ADDRESS, open_store
from registry.tiers import REFERENCE
from search_jobs.config import read_prompts
from search_jobs.objective import Sample
from search_jobs.stages import halves

MIX = {"draft": 4, "fast": 2, "balanced": 3, "best": 1}
TIMES = (4.0, 8.0)  # what a tier's image takes alone: its deadline
PATIENCE = (0.25, 0.5, 1.0)  # seconds; deadlines of `auto`
FLUID = (0.5, 0.7, 0.85, 0.95)  # shares of the requests a second that waves full to the brim could answer


def main(
    model: Annotated[Path, typer.Option(help="A diffusers pipeline folder with prompts.txt.")] = Path("models/emoji64"),
    registry: Annotated[str, typer.Option(help="Where its tiers are.")] = DEFAULT_ADDRESS,
    images: Annotated[int, typer.Option(min=1, help="That are measured, and as many that suffixes are fitted on.")] = 8,
    curves: Annotated[str, typer.Option(help="As the model of loadtests.capacity.")] = "captured",
    requests: Annotated[int, typer.Option(min=1, help="In each line of the second table.")] = 2000,
    guidance: float = 3.0,
    seed: int = 1,
) -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    loaded = load(model)
    catalog = Catalog(open_store(registry), loaded.ref.name)
    found = {tier: loaded.compile(catalog.resolve(tier)[0]).at(guidance) for tier in catalog.tiers()}
    teacher = found.pop(REFERENCE)
    programs = dict(sorted(found.items(), key=lambda one: loaded.macs.of_program(one[1], 2)))
    seen, held_out = halves(read_prompts(model / "prompts.txt"))
    fidelity = FidelityOfRescues(
        Images(loaded, Sample.draw(held_out, images, seed), guidance),
        Images(loaded, Sample.draw(seen, images, seed + 1), guidance),
        programs,
        teacher,
    )
    every = switches(programs, {tier: loaded.macs.of_program(program, 2) for tier, program in programs.items()})
    lost = show_fidelity(fidelity, every, loaded.macs.of_program(teacher, 2))
    show_deadlines(programs, every, lost, read_curves(curves), requests, seed)


def show_fidelity(fidelity: FidelityOfRescues, every: list[Switch], whole: int) -> dict[Switch, float]:
    """Print the first table: for each two tiers the first, the middle and the last place. whole: MACs of the teacher's image.

    Returns how many dB each kind of rescue loses.
    """
    lost, shown = dict[Switch, float](), set[Switch]()
    for pair in {switch[::2] for switch in every}:
        behind = [switch for switch in every if switch[::2] == pair and switch.position]
        shown |= {behind[0], behind[len(behind) // 2], behind[-1]} if behind else set()
    print("| tier, PSNR | goes on as, PSNR | at step | MACs left | PSNR | without corrections | fitted for it |")
    print("|---|---|---|---|---|---|---|")
    for switch in every:
        own, other = fidelity.own[switch.tier], fidelity.own[switch.to]
        if switch not in shown:
            lost[switch] = fidelity.lost(switch) if switch.position else own - other
            continue
        found = fidelity.measured(switch)
        lost[switch] = own - found.kept
        before, after = (macs / whole for macs in found.left)
        print(
            f"| {switch.tier}, {own:.1f} dB | {switch.to}, {other:.1f} dB | {switch.position} | {before:.3f} → {after:.3f} "
            f"| {found.kept:.1f} dB | {found.bare:.1f} dB | {found.refitted:.1f} dB |",
            flush=True,
        )
    return lost


def show_deadlines(
    programs: Mapping[str, Program],
    every: list[Switch],
    lost: Mapping[Switch, float],
    curves: Curves,
    requests: int,
    seed: int,
) -> None:
    """Print the second table."""
    plans = {tier: plan_of(tier, program, curves) for tier, program in programs.items()}
    suffixes = {
        switch: plan_of(switch.tier, rescued(programs[switch.tier], switch.position, programs[switch.to]), curves)
        for switch in every
    }
    suffixes = {one: plan for one, plan in suffixes.items() if plan.macs_before[-1] < plans[one.tier].macs_before[-1]}
    alone = {tier: plan.alone_seconds(curves.card) for tier, plan in plans.items()}
    print(f"\nSIMULATION by measured curves: {curves.card.about}\n")
    print("| deadline | load | rescues | missed | in time | of these rescued | which lose: mean (most) | all lose |")
    print("|---|---|---|---|---|---|---|---|")
    loads: list[tuple[str, Mapping[str, float], Mapping[str, Sequence[float]]]] = [
        (f"{times:g} times alone", MIX, {tier: (times * alone[tier],) for tier in plans}) for times in TIMES
    ]
    loads.append((f"`auto`, {' or '.join(map(str, PATIENCE))} s", {AUTO: 1}, {AUTO: PATIENCE}))
    for name, mix, patience in loads:
        for share in FLUID:
            rate = share * fluid_rate(plans, curves)
            wanted = arrivals(rate, mix, patience, requests, seed)
            for when in When:
                made = run(RescuingGpu(curves.card, plans, suffixes, when), wanted)
                print(f"| {name} | {share:g} | {when.value} | {said(made, lost)} |", flush=True)


def plan_of(tier: str, program: Program, curves: Curves) -> TierPlan:
    """What an image runs of a program, with guidance."""
    return TierPlan.running(tier, [step.need for step in program.steps], curves.macs)


def fluid_rate(plans: Mapping[str, TierPlan], curves: Curves) -> float:
    """Images of `MIX` a second that full waves and decodings could make."""
    idle = RescuingGpu(curves.card, plans, {}, When.NEVER)
    seconds = sum(share * plans[tier].macs_before[-1] for tier, share in MIX.items()) / sum(MIX.values())
    return 1 / (seconds * idle.admission.seconds_per_mac + curves.card.decoding.device_seconds(8) / 8)


def said(made: list[HurriedImage], lost: Mapping[Switch, float]) -> str:
    """The figures of a line."""
    in_time = [image for image in made if image.in_time]
    losses = [lost[image.rescue] for image in in_time if image.rescue]
    of_these = f"{mean(losses):.1f} ({max(losses):.1f}) | {sum(losses) / len(in_time):.2f}" if losses else "– | –"
    return f"{1 - len(in_time) / len(made):.1%} | {len(in_time)} | {len(losses)} | {of_these}"


if __name__ == "__main__":
    run_command(main)

"""A registry of small hand-made schedules for the bundled model, and what their work must come to."""

from __future__ import annotations

from places import ROOT

from engine.folder import Folder
from registry.catalog import Catalog
from registry.schedule import ModelRef, Schedule, Segment, Solver, SolverName, teacher
from registry.stores.base import ObjectStore

MODEL = ROOT / "models" / "emoji64"
LORAS = ROOT / "models" / "emoji64-lora"  # with one file, grey
TEACHER_STEPS = 10
SETTINGS = {"FLEXI_MODEL": str(MODEL), "FLEXI_TEACHER_STEPS": str(TEACHER_STEPS), "FLEXI_WATCH_SECONDS": "0.2"}
ALIASES, ORIGIN = ("dall-e-2", "dall-e-3", "gpt-image-1"), "http://localhost:5173"
OTHER_SIZE = "64x96"  # beside the model's own
PATIENCE = 400  # seconds; importing torch and diffusers takes most of a start, on a busy machine minutes


def made(solver: SolverName, *segments: Segment) -> Schedule:
    """A schedule over a small teacher."""
    ref = ModelRef(name="emoji64", family="unet2d-condition", fingerprint=Folder(MODEL).fingerprint())
    trajectory = Solver(name=solver, teacher_steps=TEACHER_STEPS, spacing="trailing")
    return Schedule(model=ref, solver=trajectory, segments=segments)


def tiers() -> dict[str, Schedule]:
    """One of each sort: with partial steps and without, of one branch and of several, of either solver."""
    half = Segment(partial=(2,), branch=3)
    return {
        "draft": made("dpmsolver++", Segment(), Segment()),
        "fast": made("dpmsolver++", half, half),
        "balanced": made("ddim", Segment(partial=(1, 3), branch=2), half),
        "best": made("ddim", *[Segment(partial=(1,), branch=3)] * 5),
    }


def reference() -> Schedule:
    """What the server makes of FLEXI_TEACHER_STEPS where the registry has no `reference`."""
    return teacher((own := made("ddim", Segment())).model, own.solver)


def publish(store: ObjectStore) -> dict[str, Schedule]:
    """Publish and promote `tiers()`."""
    catalog, schedules = Catalog(store, "emoji64", author="test"), tiers()
    for tier, schedule in schedules.items():
        catalog.publish(schedule)
        catalog.promote(tier, schedule.digest)
    return schedules

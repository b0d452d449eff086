"""The paper's table, end to end on a tiny pixel model with random weights, and killed on the way."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import model_folders
import numpy as np
import pytest
import torch
import two_streams
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from places import ROOT

from benchmarks.forecast.forecasts import Recipe
from benchmarks.paper import page
from benchmarks.paper.__main__ import _without
from benchmarks.paper.contenders import (
    BOTH,
    CORRECTED,
    OF_TRANSFORMERS,
    OF_UNETS,
    OPTIMAL,
    ORDERS,
    OURS,
    PAPER,
    UNIFORM,
    Place,
    at_optimal_timesteps,
    kinds_of,
    strongest,
    with_corrections,
)
from benchmarks.paper.differences import differences
from benchmarks.paper.first_search import FirstSearch
from benchmarks.paper.front import Front, drawn, keep, kept
from benchmarks.paper.images import ImageStore
from benchmarks.paper.subject import Effort, Subject
from benchmarks.paper.table import ModelTable
from engine.images import levels
from engine.loading import load
from evaluation import extractor
from registry.corrections import Correction
from registry.errors import NotFound
from registry.schedule import Blocks, ModelRef, Schedule, Segment, Solver, SolverName
from search_jobs.baselines import Baseline
from search_jobs.best_timesteps import BestTimesteps
from search_jobs.config import JobConfig
from search_jobs.objective import Objective, Sample
from search_jobs.report.figures import count
from search_jobs.screening import PATTERNS
from search_jobs.stages import halves

BUDGETS = (0.5,)
TINY = Effort(
    "quick", images=6, seeds=1, teacher_steps=4, screen=2, choose=2, every=(2,), part=4,
    search={"generations": 1, "population": 2, "screen": 2, "images": 2, "select": 2, "finals": 2},
)  # fmt: skip
UNET = {"sample_size": 8, "block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4}


class Killed(BaseException):
    """Nothing catches it: as near as a process comes to a kill without ending."""


class Counting:
    """Counts images, and is killed after so many."""

    def __init__(self, lives: float = np.inf) -> None:
        self.images, self.lives = 0, lives

    def begin(self, name: str, images: int) -> None: ...

    def advance(self, images: int) -> None:
        self.images += images
        if self.images > self.lives:
            raise Killed


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("paper")
    (place / "real").mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / "real" / f"{i}.png")
    torch.manual_seed(0)
    unet = UNet2DModel(**UNET, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(place / "pixels")
    return Subject.of(place / "pixels", real=place / "real", features=ROOT / "models" / "emoji64" / "clip")


def table(subject: Subject, folder: Path, progress: Counting) -> ModelTable:
    return ModelTable(subject, TINY, folder, progress, "a command", budgets=BUDGETS)


@pytest.fixture(scope="module")
def undisturbed(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], int]:
    """An output folder, the summary in it, and the images that it took."""
    out, progress = tmp_path_factory.mktemp("undisturbed"), Counting()
    return out, table(subject, out / "pixels", progress).run(), progress.images


@pytest.fixture
def part(undisturbed: tuple[Path, dict[str, Any], int], tmp_path: Path) -> Path:
    """Another output folder, of a run that has two costs more to measure."""
    (tmp_path / "pixels").mkdir()
    shutil.copy(undisturbed[0] / "pixels" / "shown.npz", tmp_path / "pixels")
    (tmp_path / "pixels" / "summary.json").write_text(json.dumps({**undisturbed[1], "speedups": [2, 5.1, 8]}))
    return tmp_path


def test_every_kind_is_in_the_table_that_is_as_cheap(undisturbed: tuple[Path, dict[str, Any], int]) -> None:
    entries = undisturbed[1]["entries"]
    assert {entry["kind"] for entry in entries} == {*OF_UNETS, OPTIMAL, CORRECTED, OURS, PAPER} - {"non-uniform DeepCache"}, (
        "of 4 steps"
    )
    for entry in entries:
        assert entry["cost"] <= 0.5
        assert {"rfid", "psnr", "to_real"} == entry["figures"].keys(), "an unconditional model has no score"
        assert entry["figures"]["rfid"]["low"] < entry["figures"]["rfid"]["high"]
        assert 0 < entry["less_teacher"]["to_real"]["p"] <= 1
    ours = [entry for entry in entries if entry["kind"] == OURS]
    assert all(entry["ours_over_this"]["rfid"] == {"value": 1, "low": 1, "high": 1} for entry in ours), "against itself"
    assert undisturbed[1]["teacher"]["figures"]["rfid"]["value"] == pytest.approx(0, abs=1e-6)


def test_a_run_that_was_killed_again_and_again_ends_as_an_undisturbed_one(
    subject: Subject, undisturbed: tuple[Path, dict[str, Any], int], tmp_path: Path
) -> None:
    kills, images = 0, 0
    while True:
        progress = Counting(lives=0.6 * undisturbed[2])
        try:
            summary = table(subject, tmp_path, progress).run()
            break
        except Killed:
            kills += 1
        finally:
            images += progress.images
        gc.collect()  # a search that was killed locks its folder until nobody holds it
    assert kills >= 1
    assert summary == undisturbed[1]
    assert images < 2 * undisturbed[2], "what was measured is not measured again"
    after = Counting()
    assert table(subject, tmp_path, after).run() == summary
    assert after.images == 0


def test_the_page_shows_what_is_measured_and_says_what_is_not(
    part: Path, undisturbed: tuple[Path, dict[str, Any], int]
) -> None:
    text = page.write(part, part / "docs").read_text()
    assert text.count("\nNot measured.") == len(page.BUNDLED)
    rows = [line for line in text.splitlines() if line.startswith(f"| **{OURS}** |")]
    assert rows
    assert all(line.endswith("| not measured | not measured |") for line in rows)
    ours = next(e for e in undisturbed[1]["entries"] if e["kind"] == OURS)
    assert f"| **{OURS}** | {page._number(ours['figures']['rfid']['value'], None)} |" in text
    assert "A quick run" in text
    about = undisturbed[1]["about"] | {"effort": "full"}
    (part / "pixels" / "summary.json").write_text(json.dumps({**undisturbed[1], "about": about}))
    assert "6 images instead of 5\u202f000, 1 search of each space instead of 3;" in page.write(part, part / "docs").read_text()
    (part / "pixels" / "summary.json").write_text(json.dumps({**undisturbed[1], "about": about | {"images": 5000, "seeds": 3}}))
    assert "are rough" not in page.write(part, part / "docs").read_text()
    for name in ("results-front.png", "results-pixels.png"):
        assert (part / "docs" / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in text


def test_a_model_that_was_measured_elsewhere_keeps_its_section_and_its_panel(part: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    first = page.write(part, docs).read_text()
    assert page.write(part, docs).read_text() == first
    (panel,) = kept(docs / "results-front.json").values()
    keep(docs / "results-front.json", {"pixels": replace(panel, images=99)})
    summary = json.loads((part / "pixels" / page.SUMMARY).read_text())
    summary["about"]["model"] = "others"
    other = shutil.copytree(part / "pixels", tmp_path / "elsewhere" / "others")
    (other / page.SUMMARY).write_text(json.dumps(summary))
    joined = page.write(tmp_path / "elsewhere", docs).read_text()
    assert page._sections(docs / page.PAGE).keys() == {"pixels", "others"}
    assert first.partition("## pixels")[2].strip() in joined
    assert kept(docs / "results-front.json") == {"others": panel, "pixels": replace(panel, images=99)}
    for name in ("results-front.png", "results-others.png"):
        assert (docs / name).is_file()
        assert f"]({name})" in joined
    assert page.write(tmp_path / "elsewhere", docs).read_text() == joined
    assert "Older figures" not in joined
    (docs / page.PAGE).write_text(joined.replace(page.NEWER, "where an interval"))
    assert "those of pixels were measured before rivals" in page.write(tmp_path / "elsewhere", docs).read_text()


def test_a_panel_has_each_kinds_middle_search_and_a_band_from_the_lowest_to_the_highest() -> None:
    entries = [
        {"kind": OURS, "speedup": speedup, "figures": {"rfid": {"value": value}} if value else {}}
        for speedup, values in ((8.0, (4.0, 2.0, 3.0)), (2.0, (0.2, 0.1, None)))
        for value in values
    ]
    front = Front.of({"about": {"images": 6, "effort": "full"}, "speedups": [8.0, 2.0], "entries": entries})
    (axes,) = drawn({"pixels": front}).axes
    (line,), (band,) = axes.lines, axes.collections
    assert line.get_xydata().tolist() == [[2, 0.2], [8, 3]]
    assert {tuple(point) for point in band.get_paths()[0].vertices.tolist()} == {(2, 0.1), (2, 0.2), (8, 2), (8, 4)}
    assert axes.get_title(loc="left") == "pixels (6 images)"


def test_the_documents_figure_shows_what_their_tables_say_and_nothing_else() -> None:
    sections, fronts = page._sections(ROOT / "docs" / page.PAGE), kept(ROOT / "docs" / "results-front.json")
    assert sections.keys() == fronts.keys()
    for model, front in fronts.items():
        assert f"* {count(front.images)} images of each schedule" in sections[model]
        heads, _, *rows = sections[model].split("| rFID to the teacher ")[1].split("\n\n")[0].splitlines()
        speedups = [head.strip().removesuffix("×") for head in heads.strip("|").split("|")]
        said = {
            (kind.strip(" *"), speedup): cell.split()[0]
            for kind, *cells in (row.strip("|").split("|") for row in rows)
            for speedup, cell in zip(speedups, cells, strict=True)
            if cell.strip() != "none as cheap"
        }
        shown = {
            (kind, speedup): page._number(sorted(of_seeds)[len(of_seeds) // 2], None)
            for kind, values in front.rfid.items()
            for speedup, of_seeds in values.items()
        }
        assert shown == said, model


def test_a_page_of_nothing_says_that_nothing_is_measured(tmp_path: Path) -> None:
    text = page.write(tmp_path / "none", tmp_path).read_text()
    assert text.count("\nNot measured.") == len(page.BUNDLED)
    assert not list(tmp_path.glob("*.png"))


def test_a_model_is_measured_with_what_lies_beside_its_weights(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Subject.of(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(NotFound, match="features"):
        Subject.of(tmp_path)
    (tmp_path / "features").mkdir()
    (tmp_path / "clip").mkdir()
    bare = Subject.of(tmp_path, guidance=1)
    assert (bare.features.name, bare.prompts, bare.real, bare.guidance) == ("features", None, None, 1)
    (tmp_path / "prompts.txt").touch()
    (tmp_path / "features" / "real.npz").touch()
    assert Subject.of(ROOT / "models" / "emoji64").guidance == 3, "its card's"
    whole = Subject.of(tmp_path, guidance=3)
    assert (whole.prompts, whole.real, whole.guidance) == (tmp_path / "prompts.txt", tmp_path / "features" / "real.npz", 3)


def test_images_are_of_prompts_that_no_search_sees_and_of_all_classes_where_real_ones_are(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join("abcdefgh"))
    alone = Subject("toy", tmp_path, prompts, tmp_path, None, 3)
    beside_real = Subject("toy", tmp_path, prompts, tmp_path, tmp_path, 3)
    few, whole = (table(one, tmp_path, Counting()).sample(3, 16) for one in (alone, beside_real))
    assert set(few.prompts) == set(halves(list("abcdefgh"))[1])
    assert sorted(whole.prompts) == sorted("abcdefgh" * 2)
    assert not set(whole.seeds) & set(table(alone, tmp_path, Counting()).sample(2, 16).seeds)


TRAILING = Solver(name="ddim", teacher_steps=2, spacing="trailing")


def steps(count: int) -> Baseline:
    solver = Solver(name="ddim", teacher_steps=count, spacing="leading")
    model = ModelRef(name="toy", family="unet2d", fingerprint="sha256:" + "0" * 64)
    return Baseline("family", f"{count} steps", Schedule(model=model, solver=solver, segments=(Segment(),) * count))


def test_the_best_of_a_place_is_chosen_by_the_second_look_among_the_best_few_of_the_first() -> None:
    place, ruined = Place(0.5, "kind"), Place(0.2, "kind")
    candidates = [steps(count) for count in (1, 2, 3, 4, 5)]
    first = {1: 9.0, 2: 1.0, 3: 2.0, 4: 3.0, 5: 4.0}
    second = {1: 0.0, 2: 3.0, 3: 1.0, 4: 2.0, 5: 0.0}
    chosen = strongest(
        {place: candidates, ruined: candidates[:2]},
        lambda _, one: first[one.solver.teacher_steps],
        lambda _, one: np.inf if one.solver.teacher_steps <= 2 else second[one.solver.teacher_steps],
    )
    assert {place: one.name for place, one in chosen.items()} == {place: "3 steps"}, "nothing of what is not finite"


def test_what_is_best_at_a_lower_cost_is_chosen_where_nothing_dearer_of_its_kind_is_better() -> None:
    cheap, dear, other = Place(0.2, "kind"), Place(0.5, "kind"), Place(0.5, "another")
    losses = {1: 9.0, 2: 1.0, 3: 2.0, 4: 3.0}

    def loss(_: Place, one: Schedule) -> float:
        return losses[one.solver.teacher_steps]

    places = {dear: [steps(3), steps(4)], cheap: [steps(1), steps(2)], other: [steps(4)]}
    chosen = strongest(places, loss, loss)
    assert {place: one.name for place, one in chosen.items()} == {cheap: "2 steps", dear: "2 steps", other: "4 steps"}
    losses[3] = 0.5
    assert strongest(places, loss, loss)[dear].name == "3 steps"


def test_the_best_patterns_of_steps_are_tried_in_every_setting_and_others_as_the_makers_set_them() -> None:
    candidates = [one.on(solver) for one in map(steps, range(1, 7)) for solver in (one.schedule.solver, TRAILING)]
    looked: list[tuple[int, str]] = []

    def few(_: Place, one: Schedule) -> float:
        looked.append((one.solver.teacher_steps, one.solver.spacing))
        return one.solver.teacher_steps - 0.5 * (one.solver.spacing == "trailing")

    best = strongest({Place(0.5, "kind"): candidates}, few, few)[Place(0.5, "kind")]
    assert best.schedule.solver.spacing == "trailing"
    assert {count for count, spacing in looked if spacing == "trailing"} == set(range(1, PATTERNS + 1))
    assert {count for count, spacing in looked if spacing == "leading"} == set(range(1, 7))


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """One of flow matching that draws five classes, and has six blocks."""
    torch.set_num_threads(1)
    folder = model_folders.flow_dit(tmp_path_factory.mktemp("flow") / "dit")
    (folder / "prompts.txt").write_text("\n".join("ABCDE"))
    looks = ROOT / "models" / "glyphs-ldm" / "features"
    return replace(Subject.of(folder, features=looks, guidance=1), real=None)  # which are of another size


def test_a_transformer_has_rivals_of_its_own(transformer: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that its users can set is in its table and on its page; searches, which take the most time, are left out."""
    monkeypatch.setattr(ModelTable, "_searched", lambda *_: {})
    measured = ModelTable(transformer, TINY, tmp_path / "dit", Counting(), "a command", budgets=(0.6,))
    entries = measured.run()["entries"]
    kinds = [OPTIMAL, CORRECTED, *(kind for kind in OF_TRANSFORMERS if kind != "fewer DDIM steps")]
    assert {entry["kind"] for entry in entries} == {*kinds} - {"blocks at uneven intervals"}, "of 4 steps"
    assert all(entry["cost"] <= 0.6 for entry in entries)
    text = page.write(tmp_path, tmp_path / "docs").read_text()
    assert all(f"\n| {kind} | " in text for kind in kinds)
    assert "fewer DDIM steps" not in text
    assert "DeepCache" not in text.split("## dit")[1]


def test_what_a_transformer_computes_of_a_partial_step_says_what_it_competes_as() -> None:
    solver = Solver(name="euler", teacher_steps=4, spacing="linspace")
    model = ModelRef(name="toy", family="dit-transformer2d", fingerprint="sha256:" + "0" * 64)

    def kinds(front: int, back: int, family: str = "uniform DeepCache") -> list[str]:
        segments = (Segment.reusing(Blocks(front, back), (1,)),) * 2
        return kinds_of(Baseline(family, "name", Schedule(model=model, solver=solver, segments=segments)))

    taylor = ["Taylor forecast, order 1", "Taylor forecast, order 2"]
    assert kinds(0, 0) == ["no blocks (0+0)", *taylor]
    assert kinds(1, 0) == ["first-block cache (1+0)", *taylor]
    assert kinds(8, 0) == ["front blocks (n+0)", *taylor]
    assert kinds(0, 8) == ["back blocks (0+m)"]
    assert kinds(2, 2) == ["front and back blocks (n+n)"]
    assert kinds(1, 0, "non-uniform DeepCache") == ["blocks at uneven intervals"]
    assert kinds(1, 0, "cached fewer-step dpmsolver++") == ["uniform caching on fewer steps", *taylor]


def entry(speedup: float, less: float | None, p: float = 0.01, psnr: float = 40.0) -> dict[str, Any]:
    to_real = {} if less is None else {"to_real": {"value": less, "p": p}}
    return {"speedup": speedup, "figures": {"psnr": {"value": psnr}}, "less_teacher": to_real}


def test_images_differ_where_a_difference_in_the_wrong_direction_is_none_of_chance() -> None:
    assert differences([entry(2, 0.1, 0.3), entry(5, 0.1), entry(8, 0.2)]) == ([5, 8], [5, 8], [])
    assert differences([entry(2, -1), entry(5, 0.0, 0.9)]) == ([], [2], []), (
        "nearer than the teacher is no fault, but different"
    )
    assert differences([entry(8, 0.1, psnr=20.0), entry(2, None, psnr=29.9)]) == ([8], [8], [2, 8])
    worse = {"speedup": 2, "figures": {"psnr": {"value": 50}}, "less_teacher": {"score": {"value": -3, "p": 0.04}}}
    assert differences([worse]) == ([2], [2], [])
    assert differences([{"speedup": 3, "figures": {}, "less_teacher": {}}]) == ([3], [3], [3]), "not finite"


def test_the_command_that_the_page_tells_says_nothing_of_where_things_went() -> None:
    said = _without(["--model", "m", "--out", "a b", "--images", "8", "--docs=c", "--out=d"], "--out", "--docs")
    assert said == ["--model", "m", "--images", "8"]


def test_optimal_timesteps_are_for_the_best_of_each_kind_that_has_timesteps_to_choose() -> None:
    model = ModelRef(name="toy", family="unet2d", fingerprint="sha256:" + "0" * 64)
    solver = Solver(name="ddim", teacher_steps=4, spacing="trailing")
    schedules = {
        kind: Schedule(model=model, solver=solver, segments=(Segment(),) * 4, timesteps=(900 + n, 9, 8, 7))
        for n, kind in enumerate(OF_UNETS)
    }
    chosen = {Place(0.5, kind): Baseline("family", kind, schedule) for kind, schedule in schedules.items()}
    retimed = [schedules[kind] for kind in OF_UNETS[:2]]
    places = at_optimal_timesteps(chosen, lambda schedule: [schedule, *retimed])
    ((place, candidates),) = places.items()
    assert place == Place(0.5, OPTIMAL)
    kinds = ("fewer DDIM steps", "fewer DPM-Solver++ steps", "uniform caching on fewer steps")
    assert [one.name for one in candidates[::4]] == [f"{kind}, optimal" for kind in kinds]
    assert [one.name for one in candidates[3::4]] == list(kinds), "and at their own timesteps"
    assert {one.family for one in candidates} == {OPTIMAL}


def test_what_is_set_by_hand_is_corrected_once_a_cost_and_neither_forecasts_nor_the_papers_space() -> None:
    model = ModelRef(name="toy", family="unet2d", fingerprint="sha256:" + "0" * 64)
    solver = Solver(name="ddim", teacher_steps=4, spacing="trailing")
    few, many = (Schedule(model=model, solver=solver, segments=(Segment(),) * 4, timesteps=(at, 9, 8, 7)) for at in (900, 800))
    asked: list[Schedule] = []

    def corrected(schedules: Sequence[Schedule]) -> list[Schedule]:
        asked.extend(schedules)
        return [one.model_copy(update={"corrections": (Correction(latent=0.1),) * 4}) for one in schedules]

    kinds = [BOTH, OPTIMAL, UNIFORM, PAPER, *ORDERS]
    chosen = {Place(0.5, kind): Baseline("family", kind, many if kind == UNIFORM else few) for kind in kinds}
    chosen[Place(0.2, BOTH)] = Baseline("family", "cheap", few)
    places = with_corrections(chosen, corrected)
    assert asked == [few, many, few], "what stands in two places of a cost is fitted once"
    assert {place: [one.name for one in group] for place, group in places.items()} == {
        Place(0.5, CORRECTED): [f"{OPTIMAL}, corrected", f"{UNIFORM}, corrected"],
        Place(0.2, CORRECTED): ["cheap, corrected"],
    }
    assert all(one.schedule.corrections for group in places.values() for one in group)


def test_what_walks_karras_levels_leaves_them_for_optimal_timesteps(tmp_path: Path) -> None:
    """On those a schedule's own timesteps would decide nothing."""
    before, at, after = np.ogrid[-1:3, 0:3, 0:4]
    errors = np.where((before < at) & (at < after), 1.0, np.inf)
    known: dict[SolverName, BestTimesteps] = {"dpmsolver++": BestTimesteps([900, 600, 300], np.ones(4), errors)}
    first = FirstSearch(JobConfig(model="toy", features="toy", guidance=1), tmp_path, tmp_path, Counting(), known)
    model = ModelRef(name="toy", family="unet2d", fingerprint="sha256:" + "0" * 64)
    solver = Solver(name="dpmsolver++", teacher_steps=2, spacing="trailing", karras=True)
    found = first.retimed(Schedule(model=model, solver=solver, segments=(Segment(),) * 2))
    assert found
    assert all(not one.solver.karras and one.timesteps and one.timesteps[0] == 900 for one in found)


def test_a_model_that_takes_the_scale_as_an_input_is_measured_as_a_search_draws_it(tmp_path: Path) -> None:
    """FLUX.1-dev: one row, and the scale beside it; never two rows away from an empty prompt."""
    torch.set_num_threads(1)
    model, looks = load(two_streams.flux(tmp_path / "flux")), extractor(ROOT / "models" / "emoji64" / "clip")
    sample = Sample(("red heart", "cat face"), (1, 2))
    searched = Objective(model, looks, sample, 4, 3.5)
    store = ImageStore(model, looks, searched.teacher.schedule, 3.5, tmp_path / "images", part=2)
    images = store.measured(Recipe(searched.teacher.schedule), sample)
    theirs = levels(searched.teacher_outputs.images).numpy()
    assert np.abs(images.shown.astype(int) - theirs.astype(int)).max() <= 1
    assert searched.rows == 1

"""The page, pictures and table of a finished search, made of a small document and random samples: no model."""

import json
import re
from collections.abc import Iterator
from functools import reduce
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from operator import getitem
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from schedule_strategies import schedules
from typer.testing import CliRunner

from registry.corrections import Correction, ScaledCorrections
from registry.errors import InvalidInput, NotFound
from registry.schedule import ModelRef, Schedule, Segment, Solver, teacher
from search_jobs.__main__ import app
from search_jobs.publish import artifacts
from search_jobs.report import FinishedRun, read, table, write
from search_jobs.report.compare import EqualCostComparison
from search_jobs.report.figures import figure, interval, macs, power
from search_jobs.report.front import front
from search_jobs.report.strips import cells, strips
from search_jobs.report.table import at_other_scales
from search_jobs.report.targets import CostTarget, targets
from search_jobs.report.verdict import sentence, summary, verdict

MODEL = ModelRef(name="toy", family="unet2d-condition", fingerprint="sha256:" + "0" * 64)
PROMPTS = ["<script>alert('x')</script>", "a $price of 5 & a very long prompt that goes on and on past every column's width"]


def solver(steps: int) -> Solver:
    return Solver(name="ddim", teacher_steps=steps, spacing="trailing")


SEARCHED = Schedule(
    model=MODEL,
    solver=solver(12),
    segments=(Segment(partial=(2, 4), branch=2), Segment(partial=(5,), branch=3)),
    timesteps=(999, 800, 600, 400, 90),
    corrections=(Correction(guidance=0.8), *[Correction()] * 4),
)
BY_HAND = Schedule(model=MODEL, solver=solver(4), segments=(Segment(partial=(1,), branch=2),) * 2)
TEACHER = teacher(MODEL, solver(12))
CHEAP = Schedule(model=MODEL, solver=solver(2), segments=(Segment(),) * 2)


def measured(rfid: float, low: float, high: float, cost: float) -> dict[str, Any]:
    intervals = {"rfid": [low, high], "psnr": [29.0, 31.0]}
    return {"cost": cost, "loss": rfid, "rfid": rfid, "psnr": 30.25, "clip_score": 71.0, "intervals": intervals}


def entry(schedule: Schedule, held: dict[str, Any], by_hand: str = "") -> dict[str, Any]:
    return {
        "digest": schedule.digest,
        "steps": schedule.counts(),
        "baseline": {"family": "cached fewer-step ddim", "name": by_hand} if by_hand else None,
        "screen": held,
        "search": held,
        "finals": held,
        "held-out": held,
    }


def budget(ceiling: float, own: dict[str, Any], schedule: Schedule, strongest: dict[str, Any] | None) -> dict[str, Any]:
    document = schedule.model_dump(mode="json", exclude_none=True)
    return {"ceiling": ceiling, **own, "strongest_baseline": strongest, "schedule": document}


def document() -> dict[str, Any]:
    rival = entry(BY_HAND, measured(0.9, 0.8, 1.2, 0.31), by_hand="2+2 s=2 ddim")
    best = budget(1 / 3, entry(SEARCHED, measured(0.0456, 0.02, 0.5, 0.3)), SEARCHED, rival)
    draft = budget(0.1, rival, BY_HAND, rival)
    bare = budget(0.05, entry(CHEAP, measured(7.0, 6.0, 9.0, 0.05)), CHEAP, None)
    points = [
        {"digest": s.digest, "cost": c, "loss": c, "rung": r}
        for s, c, r in ((SEARCHED, 0.3, "select"), (CHEAP, 0.05, "search"), (BY_HAND, 0.1, "screen"))
    ]
    stage = {"schedules": 3, "images": 1036, "macs": 2_748_000_000_000, "macs_shared": 0}
    return {
        "config": {
            "guidance": 3.0, "prompts_digest": "", "heldout": 8, "screen": 2, "images": 4, "select": 4,
            "tiers": {"best": 1 / 3}, "retime": True,
        },
        "model": MODEL.model_dump(mode="json"),
        "space_size": "7.659e+26",
        "provenance": {
            "job": "runs/<b>toy</b>", "seed": 7, "commit": None, "packages": {"torch": "2.9"},
            "finished": "2026-01-02T03:04:05+00:00", "searched_images": 1748, "searched_schedules": 158,
        },
        "evaluated": points,
        "front": [SEARCHED.digest],
        "by_hand": [{"ceiling": 1 / 3, **rival}],
        "budgets": [bare, draft, best],
        "tiers": {"best": best, "draft": draft},
        "progress": [{"images": 10, "hypervolume": 1.0}, {"images": 30, "hypervolume": 2.0}],
        "spent": {
            "stages": {"screen": stage}, "teacher_images": 12, "search_images": 1748, "front_points": 1,
            "images_per_front_point": 218.5, "images_per_front_point_without_rungs": 711.0,
            "macs_per_front_point": 7.7e11, "macs_per_front_point_without_sharing": 9.2e11,
        },
        "samples": {"prompts": PROMPTS, "seeds": [40, 41]},
        "teacher": {"digest": "ab" * 32, "macs": 13_600_000_000, "schedule": TEACHER.model_dump(mode="json")},
    }  # fmt: skip


def comparison() -> dict[str, Any]:
    searched = [measured(0.5, 0.4, 0.6, 0.1), measured(0.05, 0.04, 0.06, 0.3)]
    hand = {"name": "2+2 s=2 ddim", **measured(0.03, 0.01, 0.09, 0.31)}
    hand["searched_against_this"] = {"rfid": {"value": 5 / 3, "low": 1.1, "high": 4.0}}
    return {
        "budgets": [
            {"relative": 0.1, "searched": searched[0], "baselines": {}},
            {
                "relative": 0.333,
                "searched": searched[1],
                "baselines": {"cached fewer-step ddim": hand, "of a later version": hand},
            },
        ],
        "twins": {"literal": [None, {**measured(0.07, 0.06, 0.2, 0.3), "clip_score": None}]},
    }


def kept(folder: Path, report: dict[str, Any]) -> Path:
    """A run folder with this report, samples of most schedules, and a ledger."""
    (folder / "samples").mkdir(parents=True)
    for digest in ("teacher", SEARCHED.digest, BY_HAND.digest):
        images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
        np.save(folder / "samples" / f"{digest}.npy", images)
    (folder / "report.json").write_text(json.dumps(report))
    line = {"task": f"held-out/as it is/{BY_HAND.digest}", "schedule": BY_HAND.model_dump(mode="json", exclude_none=True)}
    (folder / "ledger.jsonl").write_text(json.dumps(line) + "\n")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = kept(tmp_path_factory.mktemp("run") / "of<tiers>", document())
    write(read(folder))
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model without texts, for budgets only, compared with others."""
    report = document() | {"tiers": {}, "samples": {"prompts": ["", ""], "seeds": [40, 41]}}
    for budget_entry in report["budgets"]:
        budget_entry["held-out"] = budget_entry["held-out"] | {"clip_score": None}
    folder = kept(tmp_path_factory.mktemp("run") / "bare", report)
    (folder / "compare.json").write_text(json.dumps(comparison()))
    write(read(folder))
    return folder


class Page(HTMLParser):
    """Text and attributes of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_every_tiers_name_and_figures(run: Path) -> None:
    text = Page(run / "report.html").text
    for expected in ("best", "draft", "≤ 0.333", "0.300", "0.0456", "0.0200–0.500", "30.2", "71.0", "2+2 s=2 ddim"):
        assert expected in text
    assert "5 of 12 (2+3)" in text, "computed steps of the teacher's, full + partial"
    assert "4 of 12 (2+2)" in text, "though its own trajectory has only 4"
    assert "teacher, all stages112163 GMACs–" in text, "1 schedule, 12 images of 13.6 GMACs"
    for expected in ("toy", "7.66 × 10²⁶", "2026-01-02", "DDIM, 12 steps, 13.6 GMACs", "2.75 TMACs", "711", "fingerprint"):
        assert expected in text
    assert f"python -m search_jobs publish {run}" in text


def test_the_page_says_what_held_at_other_sizes_and_scales_and_nothing_where_there_are_none(tmp_path: Path, run: Path) -> None:
    report = document()
    there, by_hand = measured(0.0777, 0.07, 0.08, 0.3), measured(0.999, 0.9, 1.1, 0.31)
    elsewhere = {"held-out": there, "strongest_baseline": by_hand}
    for entry in (report["tiers"]["best"], report["budgets"][2]):
        entry["by_size"] = [{"size": "512x768"} | elsewhere, {"size": "64x96", "held-out": there}]
        entry["by_guidance"] = [
            {"guidance": 5.0} | elsewhere,
            {"guidance": 7.5, "held-out": by_hand, "strongest_baseline": there},
        ]
        entry["schedule"]["validated"] = {"sizes": [[64, 64]], "guidance": [3.0, 5.0], "default_guidance": 3.0}
    folder = kept(tmp_path / "run", report)
    write(read(folder))
    text = Page(folder / "report.html").text
    for expected in (
        "At every other size",
        "512x768",
        "64x96",
        "0.0777, 30.2 dB / 0.999, 30.2 dB",
        "guidance scale",
        "0.999, 30.2 dB / 0.0777, 30.2 dB (not validated)",
    ):
        assert expected in text
    assert text.count("dB (not validated)") == 1
    assert "At every other" not in Page(run / "report.html").text


def test_the_table_says_at_which_guidance_scales_a_tier_is_not_validated(tmp_path: Path) -> None:
    report = document()
    report["config"]["scaled"] = 2
    assert at_other_scales(read(kept(tmp_path / "before", report))) is None
    there, by_hand = measured(0.0777, 0.07, 0.08, 0.3), measured(0.999, 0.9, 1.1, 0.31)
    for entry in (*report["tiers"].values(), *report["budgets"]):
        entry["by_guidance"] = [{"guidance": 7.5, "held-out": by_hand, "strongest_baseline": there}]
        entry["schedule"]["validated"] = {"sizes": [[64, 64]], "guidance": [3.0, 7.5], "default_guidance": 3.0}
    scales = at_other_scales(read(kept(tmp_path / "all", report)))
    assert scales is not None
    assert scales.caption is None
    report["tiers"]["best"]["schedule"]["validated"]["guidance"] = [3.0]
    scales = at_other_scales(read(kept(tmp_path / "one", report)))
    assert scales is not None
    assert str(scales.caption) == "Left out of what a tier is validated for: best 7.5"


def test_what_others_wrote_is_text_and_never_markup(run: Path) -> None:
    page = Page(run / "report.html")
    assert PROMPTS[0] in page.text
    assert PROMPTS[1] in page.text
    assert "runs/<b>toy</b>" in page.text
    assert "script" not in page.tags


def test_the_page_needs_nothing_beside_itself(run: Path, bare: Path) -> None:
    for folder in (run, bare):
        page = Page(folder / "report.html")
        assert page.sources
        assert all(source.startswith("data:image/png;base64,") for source in page.sources)
        assert not {"link", "iframe", "object", "base"} & set(page.tags)
        assert not re.search(r"https?://|url\(|@import", (folder / "report.html").read_text())


def test_the_picture_of_the_front_says_on_how_many_images_each_mark_was_judged(run: Path) -> None:
    legend = front(read(run)).axes[0].get_legend()
    assert legend is not None
    said = [text.get_text() for text in legend.get_texts()]
    assert {"searched, 2 images", "searched, 4 more images", "by hand, 4 images: cached fewer-step ddim"} <= set(said)


def test_pictures_are_left_for_every_tier(run: Path) -> None:
    names = {path.name for path in run.glob("*.png")}
    assert names == {"pareto.png", "samples.png", "samples-best.png", "samples-draft.png", "strips.png", "progress.png"}
    assert all((run / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for name in names)


def test_a_run_with_budgets_only_and_without_texts_has_its_page_too(bare: Path) -> None:
    text = Page(bare / "report.html").text
    assert "seed 41" in text
    assert "search_jobs publish" not in text
    assert {"samples-0.333.png", "samples-0.1.png", "compare.png"} <= {path.name for path in bare.glob("*.png")}
    assert "search literal" in text
    assert "of a later version" in text


def test_what_is_published_beside_a_schedule_is_what_is_there(run: Path, tmp_path: Path) -> None:
    assert [path.name for path in artifacts(run)] == ["report.json", "report.html", "pareto.png", "samples.png", "strips.png"]
    (tmp_path / "report.json").write_text("{}")
    assert artifacts(tmp_path) == [tmp_path / "report.json"]


def test_an_unfinished_search_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"report\.json"):
        read(tmp_path)


def places(document: Any, *above: str | int) -> Iterator[tuple[str | int, ...]]:
    """The places of all values below a document."""
    for key, value in document.items() if isinstance(document, dict) else enumerate(document):
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from places(value, *above, key)


@settings(max_examples=15, deadline=None)  # each draws all pictures
@given(data=st.data(), odd=st.sampled_from([None, "", "x", [], {}, -1, 0.5, [[]], {"": None}, "../../x", 10**400]))
def test_whatever_is_odd_in_a_run_is_shown_or_told_in_one_line(data: st.DataObject, odd: Any) -> None:
    documents = {"report.json": document(), "compare.json": comparison()}
    name = data.draw(st.sampled_from(sorted(documents)))
    *above, last = data.draw(st.sampled_from(list(places(documents[name]))))
    reduce(getitem, above, documents[name])[last] = odd
    with TemporaryDirectory() as made:
        folder = kept(Path(made) / "run", documents["report.json"])
        (folder / "compare.json").write_text(json.dumps(documents["compare.json"]))
        result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 0 or (result.exit_code, result.stderr.count("\n")) == (1, 1), (result.stderr, result.exception)
    assert result.exit_code == 0 or name in result.stderr


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_samples_are_named(run: Path, data: st.DataObject) -> None:
    whole = (run / "samples" / "teacher.npy").read_bytes()
    place = data.draw(st.integers(0, 127))
    damaged = data.draw(st.sampled_from([whole[:place], whole[: place + 128], whole[:place] + b"\xff" + whole[place + 1 :]]))
    with TemporaryDirectory() as made:
        path = Path(made) / "samples" / "teacher.npy"
        path.parent.mkdir()
        path.write_bytes(damaged)
        images, refusal = None, ""
        try:
            images = FinishedRun(Path(made), {}).images("teacher")
        except InvalidInput as error:
            refusal = error.message
    if images is None:
        assert "samples/teacher.npy is damaged" in refusal
    else:
        assert (images.ndim, images.dtype) == (4, np.uint8)


def test_a_damaged_ledger_is_named_with_its_line(run: Path, tmp_path: Path) -> None:
    for line in (b"{", b"\xff", b"[" * 100_000, b"{}", b'{"schedule": {}}'):
        (tmp_path / "ledger.jsonl").write_bytes(b"{}\n" + line + f" as it is/{BY_HAND.digest}\n".encode())
        with pytest.raises(InvalidInput, match=r"ledger.jsonl, line 2: no measurement of this version"):
            FinishedRun(tmp_path, {}).schedule({"digest": BY_HAND.digest})


def test_the_table_fits_a_narrow_terminal() -> None:
    report = document()
    report["tiers"]["best"]["strongest_baseline"]["baseline"]["name"] = "[10+20] s=4 dpmsolver++"
    console = Console(width=110, record=True, file=StringIO())
    console.print(table(FinishedRun(Path(), report)))
    lines = [line for line in console.export_text().splitlines() if line.strip()]
    assert len(lines) == 4 + 4  # title, two of heading, rule; best and its rival, draft, the budget
    assert any("by hand" in line and "[10+20] s=4 dpmsolver++" in line and "0.900" in line for line in lines)
    assert any(line.split()[:3] == ["best", "≤", "0.333"] for line in lines)


def test_aims_are_tiers_and_the_budgets_that_no_tier_stands_for() -> None:
    assert [(target.label, target.stem, target.by_hand) for target in targets(document())] == [
        ("best", "best", None),
        ("draft", "draft", "2+2 s=2 ddim"),
        ("≤ 0.05", "0.05", None),
    ]


@given(schedules())
@settings(max_examples=50, deadline=None)
def test_a_strip_has_one_cell_for_each_step_of_its_kind_and_covers_the_axis(schedule: Schedule) -> None:
    drawn = cells(schedule)
    assert [(cell.kind, cell.branch) for cell in drawn] == [(step.kind, step.branch) for step in schedule.steps()]
    assert all(one.end == after.start for one, after in pairwise(drawn))
    assert all(0 <= cell.start < cell.end <= 1 for cell in drawn)
    assert drawn[-1].end == 1


def test_cells_lie_at_the_timesteps_and_null_steps_between_them() -> None:
    starts = [cell.start for cell in cells(SEARCHED)]
    assert starts == pytest.approx([0, 0.0995, 0.199, 0.299, 0.399, 0.499, 0.599, 0.661, 0.723, 0.785, 0.847, 0.909], abs=1e-9)
    assert [cell.start for cell in cells(BY_HAND)] == [0, 0.25, 0.5, 0.75]


def test_what_has_corrections_by_scale_is_drawn_as_the_search_judged_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its document has a digest of its own; on the search's images it is a star, and its strip has the line of factors."""
    assert SEARCHED.corrections
    fits = tuple(ScaledCorrections(guidance=scale, corrections=SEARCHED.corrections) for scale in (1.0, 3.0))
    scaled = SEARCHED.model_copy(update={"corrections": None, "scaled_corrections": fits})
    stars, lines = list[Any](), list[Any]()
    monkeypatch.setattr("search_jobs.report.front._star", lambda *star: stars.append(star))
    monkeypatch.setattr("search_jobs.report.strips._factors", lambda *line: lines.append(line))
    drawn = []
    for chosen in (SEARCHED, scaled):
        found = budget(1 / 3, entry(chosen, measured(0.0456, 0.02, 0.5, 0.3)), chosen, None)
        run = FinishedRun(tmp_path, {**document(), "budgets": [found], "tiers": {"best": found}})
        front(run)
        strips(run)
        drawn.append((len(stars), len(lines)))
    assert drawn[0] == (1, 1)
    assert drawn[1] == (2, 2)


def against(own: float, other: float | None, low: float = 0.0, high: float = 0.0, by_hand: str = "") -> CostTarget:
    """A target whose ratio to its rival has this interval; the intervals of the two rFIDs themselves always overlap."""
    rival = entry(BY_HAND, measured(other, 0.01, 0.9, 0.2), by_hand="2+2") if other else None
    paired = {"rfid": {"value": own / other, "low": low, "high": high}} if other else {}
    tier = {**entry(SEARCHED, measured(own, 0.01, 0.9, 0.1), by_hand), "against_baseline": paired}
    return CostTarget("fast", 0.2, tier, rival)


BETTER, CLEARLY = against(0.1, 0.4, 0.1, 1.2), against(0.1, 0.4, 0.1, 0.6)
WORSE, CLEARLY_WORSE = against(0.5, 0.4, 0.7, 1.5), against(0.5, 0.4, 1.1, 1.5)
ALONE, HAND = against(0.5, None), against(0.5, None, by_hand="3+3")


@pytest.mark.parametrize(
    ("target", "kind", "words"),
    [
        (
            BETTER,
            "better",
            [
                "4.0 times lower",
                "though the 95\u00a0% interval of the ratio, 0.100 to 1.20, holds 1",
                "2+2 (cost 0.200, rFID 0.400)",
            ],
        ),
        (CLEARLY, "clearly better", ["4.0 times lower", "and the 95\u00a0% interval of the ratio, 0.100 to 0.600, excludes 1"]),
        (WORSE, "worse", ["worse than that of the strongest schedule set by hand", "may be chance", "chosen on other images"]),
        (CLEARLY_WORSE, "worse", ["worse", "1.10 to 1.50, excludes 1. It was"]),
        (ALONE, "alone", ["nothing set by hand is as cheap"]),
        (HAND, "by hand", ["is set by hand: 3+3", "found nothing that did better"]),
    ],
)
def test_sentences_say_what_the_figures_say(target: CostTarget, kind: str, words: list[str]) -> None:
    assert verdict(target) == kind
    assert all(word in sentence(target) for word in words)


@pytest.mark.parametrize(
    ("some", "expected"),
    [
        ([CLEARLY, CLEARLY], "both tiers come closer"),
        ([CLEARLY, BETTER], "for 1 of them the 95\u00a0% interval of the ratio excludes 1."),
        ([BETTER], "the tier comes closer"),
        ([BETTER, WORSE], "1 of the 2 tiers comes closer"),
        ([BETTER, WORSE], ", but the 95\u00a0% interval of the ratio holds 1. One is worse than by hand."),
        ([WORSE, HAND, HAND], "none of the 3 tiers comes closer"),
        ([WORSE, HAND, HAND], "same ceiling. One is worse than by hand. Two are set by hand."),
    ],
)
def test_the_summary_counts_honestly(some: list[CostTarget], expected: str) -> None:
    assert expected in summary(some, {"config": {"heldout": 8}})


def test_without_a_measured_ratio_nothing_is_clear() -> None:
    report = CostTarget("fast", 0.2, {**CLEARLY.entry, "against_baseline": {}}, CLEARLY.strongest)
    assert verdict(report) == "better"
    assert "though how sure that is was not measured" in sentence(report)
    assert interval({"intervals": None}, "rfid") == "–"


def test_the_comparison_is_turned_to_one_row_per_kind_of_schedule() -> None:
    turned = EqualCostComparison.of(comparison())
    assert turned.limits() == ["≤ 0.333", "≤ 0.1"]
    rows = {series.label: cells for series, cells in turned.cells()}
    assert rows["this search"] == [("0.0500", "0.0400–0.0600", "", False), ("0.500", "0.400–0.600", "", True)]
    assert rows["search literal"] == [("0.0700", "0.0600–0.200", "", False), ("–", "", "", False)]
    assert rows["cached fewer-step ddim"][0] == ("0.0300", "0.0100–0.0900", "1.67 (1.10–4.00)", True)
    assert [line.schedule for line in turned.lines()].count("2+2 s=2 ddim") == 2


def test_numbers_are_written_without_exponents() -> None:
    assert [figure(value) for value in (0.00012345, 0.5, 12.345, 1234.5, None)] == ["0.000123", "0.500", "12.3", "1234", "–"]
    assert [macs(value) for value in (999, 1.5e9, 2.748e12)] == ["999 MACs", "1.50 GMACs", "2.75 TMACs"]
    assert [power(text) for text in ("7.659e+26", "120")] == ["7.66 × 10²⁶", "120"]

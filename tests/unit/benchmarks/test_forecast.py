"""Forecasts of what partial steps reuse: their weights are those of the series, and images are made with them."""

from __future__ import annotations

from pathlib import Path

import model_folders
import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial
from places import ROOT
from torch import Tensor
from typer.testing import CliRunner

from benchmarks.forecast.__main__ import app as forecast
from benchmarks.forecast.denoisers import Fitting, Forecasting, nearest
from benchmarks.forecast.forecasts import Recipe, taylor
from benchmarks.orderings import app as orderings
from engine.flow import flow_levels
from engine.loading import load
from engine.model import Model
from engine.program import path_of
from engine.sampler import generate
from registry.schedule import Blocks, Correction, ModelRef, Schedule, Segment, Solver

REF = ModelRef(name="toy", family="dit-transformer2d", fingerprint="sha256:" + "0" * 64)
WHOLE = Blocks(0, 0)


def caching(model: ModelRef, full: int, every: int, pair: Blocks = WHOLE) -> Schedule:
    """Uniform caching: so many full steps, each the first of as many steps as `every`."""
    solver = Solver(name="euler", teacher_steps=full * every, spacing="linspace")
    return Schedule(model=model, solver=solver, segments=(Segment.reusing(pair, tuple(range(1, every))),) * full)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_forecast_of_an_order_is_exact_where_a_feature_is_a_line_and_its_weights_sum_to_one(order: int) -> None:
    schedule, levels = caching(REF, 4, 3), flow_levels({"shift": 3.0})  # whose steps are not evenly long
    timesteps = path_of(schedule, levels).timesteps
    weights, line = taylor(schedule, levels, order), Polynomial([5, -0.3])
    assert [len(one) for one in weights] == [min(order, before) + 1 for before in range(4) for _ in range(2)]
    for i, one in enumerate(weights):
        assert sum(one) == pytest.approx(1)
        full, offset = divmod(i, 2)
        known = [line(timesteps[3 * (full - k)]) for k in range(len(one))]
        exact = line(timesteps[3 * full + offset + 1] if len(one) > 1 else timesteps[3 * full])
        assert np.dot(one, known) == pytest.approx(exact)


def test_at_even_steps_the_second_order_is_taylorseers() -> None:
    """F + k/N ΔF + (k/N)² Δ²F / 2, at the k-th of the steps after a full one that has two before it."""
    weights = taylor(caching(REF, 3, 4), flow_levels({}), 2)[-3:]
    for k, one in enumerate(weights, start=1):
        share = k / 4
        assert one == pytest.approx((1 + share + share**2 / 2, -share - share**2, share**2 / 2))


def test_fitted_weights_are_found_where_features_are_nearly_alike() -> None:
    rng = torch.Generator().manual_seed(0)
    base, drift, bend = (torch.randn(4, 16, 8, generator=rng) * scale for scale in (1, 1e-2, 1e-3))
    features = [base, base - drift, base - 2 * drift + bend]
    assert nearest(features, base + 0.5 * drift + 0.2 * bend) == pytest.approx((1.7, -0.9, 0.2), abs=1e-3)
    assert nearest(features[:1], 0.5 * base) == pytest.approx((0.5,), abs=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = model_folders.flow_dit(tmp_path_factory.mktemp("flow") / "dit")
    (folder / "prompts.txt").write_text("\n".join("ABCDE"))
    (folder / "features").symlink_to(ROOT / "models" / "glyphs-ldm" / "features")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


def drawn(model: Model, schedule: Schedule, network: Forecasting | Fitting | None = None) -> Tensor:
    noise = torch.stack([model.noise(seed) for seed in range(3)])
    given = noise, model.encode(["A", "C", "E"]), model.negative([""] * 3), 3.0
    return generate(network or model.network, model.compile(schedule), *given)


@torch.inference_mode()
def test_a_forecast_of_order_0_is_plain_reuse_and_a_network_can_be_used_again(model: Model) -> None:
    schedule = caching(model.ref, 3, 3, Blocks(1, 0))
    plain = drawn(model, schedule)
    reusing = Forecasting(model.network, taylor(schedule, model.levels, 0))
    assert torch.equal(drawn(model, schedule, reusing), plain)
    assert torch.equal(drawn(model, schedule, reusing), plain)
    ahead = Forecasting(model.network, taylor(schedule, model.levels, 2))
    first = drawn(model, schedule, ahead)
    assert not torch.equal(first, plain)
    assert torch.equal(drawn(model, schedule, ahead), first), "nothing of the first images is left"


@torch.inference_mode()
@pytest.mark.parametrize("pair", [WHOLE, Blocks(1, 0), Blocks(0, 2)])
def test_what_a_schedule_extrapolates_is_the_residual(model: Model, pair: Blocks) -> None:
    """At its second full step r + w (r − r before), which a forecast of two features makes as well."""
    schedule = caching(model.ref, 2, 3, pair)
    corrections = [Correction(extrapolation=0.75 if i == 3 else 0) for i in range(6)]
    built = drawn(model, schedule.model_copy(update={"corrections": tuple(corrections)}))
    forecast = Forecasting(model.network, ((1.0,), (1.0,), (1.75, -0.75), (1.75, -0.75)))
    torch.testing.assert_close(built, drawn(model, schedule, forecast))
    assert not torch.allclose(built, drawn(model, schedule))


@torch.inference_mode()
def test_fitted_weights_draw_what_they_drew_when_they_were_fitted(model: Model) -> None:
    schedule = caching(model.ref, 3, 2)
    fitting = Fitting(model.network, 3)
    while_fitting = drawn(model, schedule, fitting)
    assert [len(one) for one in fitting.found] == [1, 2, 3]
    torch.testing.assert_close(drawn(model, schedule, Forecasting(model.network, tuple(fitting.found))), while_fitting)


def test_recipes_of_one_schedule_are_told_apart() -> None:
    schedule = caching(REF, 3, 2)
    recipes = [Recipe(schedule), *(Recipe(schedule, taylor(schedule, flow_levels({}), order)) for order in (1, 2))]
    assert recipes[0].digest == schedule.digest, "what was measured before there were forecasts is found"
    assert len({recipe.digest for recipe in recipes}) == 3


def test_both_comparisons_print_their_tables(folder: Path, tmp_path: Path) -> None:
    few = ["--fit", "2", "--images", "8", "--teacher-steps", "6", "--speedup", "1.8", "--branch", "0+0"]
    said = CliRunner().invoke(forecast, [str(folder), "--out", str(tmp_path / "forecast"), *few])
    assert said.exit_code == 0, said.output
    rows = [line for line in said.output.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 5 + 6
    assert "(1.00 to 1.00)" in rows[2], "beside itself"
    options = ["--images", "8", "--steps", "10", "--guidance", "1"]
    said = CliRunner().invoke(orderings, [str(folder), "--out", str(tmp_path / "orderings"), *options])
    assert said.exit_code == 0, said.output
    assert "| 0+2 |" in said.output

"""A scheduler's configuration is understood as diffusers understands it, for the solver that is chosen, or refused by name.

The oracle is diffusers' scheduler of that solver, made by `from_config` of the folder's own, with any settings left out.
"""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.config import defaults
from engine.flow import SCHEDULER as FLOW
from engine.schedulers import DISTILLED, STAND_INS, TRAINING, nearest_solver, noise_levels
from registry.errors import Unsupported
from registry.schedule import STOCHASTIC, SolverName

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers with numpy 2

FAMILIES: dict[SolverName, Any] = {
    "ddim": DDIMScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-ancestral": EulerAncestralDiscreteScheduler,
}
SCHEDULERS = [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")]
SHIFTED = ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"]  # betas, and then a shift of their own
OF_BETAS = [
    name for name in SCHEDULERS if "beta_schedule" in defaults(name) and name not in (*SHIFTED, *DISTILLED, *STAND_INS)
]  # diffusers may show the last ones' settings, or not: they have a test of their own
# Whose default betas are DDIM's, so that a configuration that leaves them out says the same to each.
ALIKE = [name for name in OF_BETAS if defaults(name).get("beta_start") == defaults("DDIMScheduler")["beta_start"]]
NONE_OF_THEM = ["NoSuchScheduler", "DDIMPipeline", "schedulers", "", None, 3, ["DDIMScheduler"]]


def config(**changes: Any) -> dict[str, Any]:
    """A scheduler configuration with everything said that the schedulers' defaults differ in."""
    plain = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return {**plain, "clip_sample": False, "steps_offset": 1, "timestep_spacing": "leading", **changes}


SAID = st.fixed_dictionaries(
    {},
    optional={
        "num_train_timesteps": st.sampled_from((1000, 600)),
        "beta_start": st.just(0.00085),
        "beta_end": st.just(0.012),
        "beta_schedule": st.sampled_from(("linear", "scaled_linear", "squaredcos_cap_v2")),
        "prediction_type": st.sampled_from(("epsilon", "v_prediction")),
        "timestep_spacing": st.sampled_from(("leading", "trailing", "linspace")),
        "steps_offset": st.sampled_from((0, 1)),
        "set_alpha_to_one": st.booleans(),
        "skip_prk_steps": st.booleans(),
        "clip_sample": st.booleans(),
        "use_karras_sigmas": st.booleans(),
        "interpolation_type": st.just("linear"),
        "final_sigmas_type": st.just("zero"),
        "sigma_min": st.none(),
        "solver_order": st.just(2),
        "_diffusers_version": st.just("0.6.0"),
    },
)


@pytest.mark.parametrize("solver", FAMILIES)
@settings(max_examples=50, deadline=None)
@given(name=st.sampled_from(OF_BETAS), said=SAID, steps=st.integers(2, 60))
def test_a_solver_takes_of_a_foreign_configuration_what_diffusers_takes(
    solver: SolverName, name: str, said: dict[str, Any], steps: int
) -> None:
    """Timesteps, noise levels, last level and clipping, whatever is left out; trained is what its own scheduler says."""
    folder = {"_class_name": name, **said, **({"beta_schedule": "squaredcos_cap_v2"} if name == "UnCLIPScheduler" else {})}
    own = getattr(diffusers, name).from_config(folder)
    trained = {} if name in ALIKE else {setting: own.config[setting] for setting in TRAINING if setting in own.config}
    theirs = FAMILIES[solver].from_config(own.config, **trained)
    train = theirs.config.num_train_timesteps
    ends_below = theirs.config.timestep_spacing == "trailing" and len(np.arange(train, 0, -train / steps)) > steps
    assume(not (ends_below and said.get("use_karras_sigmas")))  # rounding adds a timestep of −1, where Karras' levels end then
    theirs.set_timesteps(steps)
    levels = noise_levels(folder, pixels=True)
    trajectory = levels.trajectory(levels.solver(solver, steps))
    # DPM-Solver++ on Karras levels rounds timesteps, in another precision; trailing: rounding may add one more, −1
    np.testing.assert_allclose(
        trajectory.timesteps, theirs.timesteps[:steps], atol=1.0 if said.get("use_karras_sigmas") else 1e-3
    )
    np.testing.assert_allclose(levels.alphas_cumprod, theirs.alphas_cumprod, rtol=0, atol=1e-6)
    assert levels.prediction == theirs.config.prediction_type
    if solver == "ddim":
        assert trajectory.end[0] == pytest.approx(float(theirs.final_alpha_cumprod) ** 0.5)
        assert levels.clip == (theirs.config.clip_sample_range if theirs.config.clip_sample else math.inf)
    else:
        np.testing.assert_allclose(trajectory.sigmas / trajectory.alphas, theirs.sigmas[:steps], rtol=1e-4)


def test_a_pndm_folder_without_a_spacing_is_spaced_as_each_solver_spaces() -> None:
    walks = noise_levels({"_class_name": "PNDMScheduler"}).walks
    assert {solver: walk.spacing for solver, walk in walks.items()} == {
        "ddim": "leading",
        "dpmsolver++": "linspace",
        "euler": "linspace",
        "euler-ancestral": "linspace",
        "lcm": "trailing",
    }


@pytest.mark.parametrize(
    "writer", ["PNDMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler"]
)
def test_latents_are_clipped_only_where_somebody_says_so(writer: str) -> None:
    """`from_config` would give DDIM its own default, made for pixels; no published latents keep within it."""
    assert noise_levels({"_class_name": writer}).clip == math.inf
    assert noise_levels({"_class_name": writer}, pixels=True).clip == 1.0
    assert noise_levels({"_class_name": writer, "clip_sample": True, "clip_sample_range": 2.0}).clip == 2.0
    for clipping in ("DDIMScheduler", "DDPMScheduler"):  # whose own images are clipped
        assert noise_levels({"_class_name": clipping}).clip == 1.0


def test_the_class_in_the_index_counts() -> None:
    said = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear"}
    assert noise_levels(said, "EulerDiscreteScheduler").walks["euler"].spacing == "linspace"
    assert noise_levels(said, "DDPMScheduler").clip == 1.0
    assert noise_levels(said, "DDPMScheduler", pixels=True).clip == 1.0
    assert noise_levels(said, "FlowMatchEulerDiscreteScheduler").prediction == "flow_prediction"
    with pytest.raises(Unsupported, match="EDMEulerScheduler"):
        noise_levels(said, "EDMEulerScheduler")


def test_what_a_pipeline_mends_counts_for_every_solver() -> None:
    mended = noise_levels(
        {"_class_name": "DDIMScheduler", "timestep_spacing": "leading"}, mends={"clip_sample": False, "steps_offset": 1}
    )
    assert mended.clip == math.inf
    assert {walk.steps_offset for walk in mended.walks.values()} == {1}


READERS: list[tuple[str, object, dict[str, Any], set[SolverName]]] = [
    ("thresholding", True, {}, {"ddim", "dpmsolver++"}),
    ("use_beta_sigmas", True, {}, {"dpmsolver++", "euler"}),
    ("use_exponential_sigmas", True, {}, {"dpmsolver++", "euler"}),
    ("use_lu_lambdas", True, {}, {"dpmsolver++"}),
    ("lambda_min_clipped", -1.0, {}, {"dpmsolver++"}),
    ("interpolation_type", "log_linear", {}, {"euler"}),
    ("timestep_type", "continuous", {"prediction_type": "v_prediction"}, {"euler"}),
    ("timestep_type", "continuous", {}, set()),
    ("sigma_min", 0.1, {"use_karras_sigmas": True}, {"dpmsolver++", "euler"}),
    ("sigma_max", 9.0, {"use_karras_sigmas": True}, {"dpmsolver++", "euler"}),
    ("sigma_min", 0.1, {}, set()),
    ("final_sigmas_type", "sigma_min", {}, {"dpmsolver++", "euler"}),
]


@pytest.mark.parametrize(("setting", "value", "beside", "readers"), READERS)
def test_a_setting_is_refused_only_where_the_chosen_solver_reads_it(
    setting: str, value: object, beside: dict[str, Any], readers: set[SolverName]
) -> None:
    """diffusers' schedulers of the other solvers walk the same levels with it as without; of the readers, other ones."""
    levels = noise_levels(config(**{setting: value}, **beside))
    for solver, family in FAMILIES.items():
        if solver in readers:
            with pytest.raises(Unsupported, match=setting) as caught:
                levels.solver(solver, 10)
            assert caught.value.param == setting
            assert all(other in caught.value.message for other in FAMILIES.keys() - readers - {*STOCHASTIC})
        else:
            assert levels.solver(solver, 10) == noise_levels(config(**beside)).solver(solver, 10)
        if setting not in ("thresholding", "use_beta_sigmas"):  # seen in the update; wants scipy
            with_it, without = family.from_config(config(**{setting: value}, **beside)), family.from_config(config(**beside))
            for scheduler in (with_it, without):
                scheduler.set_timesteps(10)
            same = all(
                np.array_equal(getattr(with_it, array, 0), getattr(without, array, 0)) for array in ("timesteps", "sigmas")
            )
            assert same == (solver not in readers)


def test_two_kinds_of_levels_at_once_are_refused_where_diffusers_refuses_them() -> None:
    levels = noise_levels(config(use_karras_sigmas=True, use_exponential_sigmas=True))
    assert levels.solver("ddim", 10).name == "ddim"
    for solver in ("dpmsolver++", "euler"):
        with pytest.raises(Unsupported, match="Only one of"):
            levels.solver(solver, 10)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", DISTILLED)
def test_the_scheduler_of_a_distilled_model_is_refused_with_what_to_do(name: str) -> None:
    for said, named in (({"_class_name": name}, None), ({"_class_name": "DDIMScheduler"}, name), ({}, name)):
        with pytest.raises(Unsupported, match=f"{name} is for a distilled model.*load the model that it was distilled from"):
            noise_levels(said, named)


@pytest.mark.parametrize("name", OF_BETAS)
def test_every_scheduler_is_nearest_to_a_solver(name: str) -> None:
    kind = "euler" if "sigmas" in vars(getattr(diffusers, name)()) else "ddim"
    kind = {"EulerAncestralDiscreteScheduler": "euler-ancestral", "LCMScheduler": "lcm"}.get(name, kind)
    kind = "dpmsolver++" if "solver_order" in defaults(name) or "SASolver" in name or "DPMSolverSDE" in name else kind
    assert nearest_solver(name) == kind
    assert nearest_solver(None) == "ddim"


def test_what_a_configuration_leaves_out_has_its_writers_default() -> None:
    """DDPM and DDIM clip by default and Euler spaces linearly; PNDM ends on the first training level."""
    assert noise_levels(dict(DDPMScheduler().config)).clip == 1.0
    assert noise_levels({"_class_name": "DDPMScheduler"}).clip == 1.0
    assert noise_levels({"_class_name": "PNDMScheduler"}).clip == math.inf
    assert noise_levels({"_class_name": "EulerDiscreteScheduler"}).walks["euler"].spacing == "linspace"
    pndm = noise_levels(dict(PNDMScheduler(set_alpha_to_one=False).config))
    assert pndm.final_alpha_cumprod == pndm.alphas_cumprod[0]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("prediction_type", "flow_prediction"),
        ("use_flow_sigmas", True),
        ("predict_epsilon", False),
        ("prediction_type", None),
        ("timestep_spacing", "even"),
        ("timestep_spacing", None),
        ("beta_schedule", "sigmoid"),
        ("beta_schedule", "laplace"),
        ("beta_schedule", None),
        ("beta_schedule", ["linear"]),
        ("beta_start", None),
        ("beta_start", 0),
        ("beta_end", "0.02"),
        ("beta_end", math.nan),
        ("beta_end", 1.5),
        ("trained_betas", []),
        ("trained_betas", [0.1, None]),
        ("trained_betas", [0.1, 1.1]),
        ("trained_betas", [0.1] * 999),
        ("trained_betas", [0.1] * 1001),
        ("num_train_timesteps", None),
        ("num_train_timesteps", 0),
        ("num_train_timesteps", 1e3),
        ("steps_offset", -1),
        ("steps_offset", None),
    ],
)
def test_a_scheduler_setting_that_programs_cannot_express_is_refused(setting: str, value: object) -> None:
    with pytest.raises(Unsupported, match=setting) as caught:
        noise_levels(config(**{setting: value}))
    assert caught.value.param == setting


@pytest.mark.parametrize("bound", [None, 0, -1, math.nan, "1"])
def test_a_bound_that_clips_nothing_sensible_is_refused(bound: object) -> None:
    with pytest.raises(Unsupported, match="clip_sample_range") as caught:
        noise_levels(config(clip_sample=True, clip_sample_range=bound))
    assert caught.value.param == "clip_sample_range"
    assert noise_levels(config(clip_sample=False, clip_sample_range=bound)).clip == math.inf


def test_a_schedulers_own_setting_that_diffusers_refuses_is_not_a_traceback() -> None:
    with pytest.raises(Unsupported, match="bogus"):
        noise_levels({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "bogus"})


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # diffusers with numpy 2
@pytest.mark.parametrize("name", OF_BETAS)
def test_a_writers_noise_levels_are_its_own(name: str) -> None:
    got, want = noise_levels({"_class_name": name}).alphas_cumprod, getattr(diffusers, name)().alphas_cumprod
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", STAND_INS)
def test_a_scheduler_that_diffusers_does_not_show_here_has_the_settings_of_its_own_source(name: str) -> None:
    """DPMSolverSDEScheduler draws its noise with a package of its own; nothing that is read of it needs that package."""
    (source,) = (
        text
        for file in (Path(diffusers.__file__).parent / "schedulers").glob("*.py")
        if f"class {name}(" in (text := file.read_text())
    )
    (init,) = (
        function
        for kind in ast.walk(ast.parse(source))
        if isinstance(kind, ast.ClassDef) and kind.name == name
        for function in kind.body
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
    )
    said = dict(zip([a.arg for a in init.args.args[1:]], map(ast.literal_eval, init.args.defaults), strict=True))
    said.pop("noise_sampler_seed", None)
    assert said == {setting: value for setting, value in defaults(STAND_INS[name]).items() if setting in said}
    changes = {"timestep_spacing": "trailing", "use_karras_sigmas": True}
    for levels in (noise_levels({"_class_name": name, **changes}), noise_levels(changes, name)):
        assert levels.walks == noise_levels({"_class_name": STAND_INS[name], **changes}).walks
        assert levels.alphas_cumprod[0] == pytest.approx(1 - 0.00085)
        assert levels.solver("euler", 10).karras


@pytest.mark.parametrize("name", [*NONE_OF_THEM, *(name for name in SCHEDULERS if name not in (*OF_BETAS, *STAND_INS, FLOW))])
def test_a_writer_whose_levels_come_neither_from_betas_alone_nor_from_a_flow_is_refused_by_name(name: object) -> None:
    with pytest.raises(Unsupported) as caught:
        noise_levels({"_class_name": name})
    assert str(name) in caught.value.message
    assert caught.value.param == "scheduler"

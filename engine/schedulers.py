"""A folder's scheduler configuration: the noise levels that it trained on, and what each solver takes of it.

Any diffusers scheduler with betas may have written it. What the model was trained on is what that scheduler says; how a solver
walks it is what diffusers takes when it makes its scheduler of that solver from the folder's (`from_config`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from engine.config import BUILD_ERRORS, defaults, is_whole, reason
from engine.flow import SCHEDULER as FLOW
from engine.flow import flow_levels
from engine.flow_pipeline import PLAINLY, Walked
from engine.noise import Floats, NoiseLevels, Prediction, Walk
from registry.errors import Unsupported
from registry.schedule import KARRAS, SolverName, Spacing

# diffusers' scheduler of each solver, and what the solver is in its words.
SOLVERS: dict[SolverName, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
# diffusers shows a class only where the package is installed that draws its noise; another one has the same settings.
STAND_INS = {"DPMSolverSDEScheduler": "KDPM2AncestralDiscreteScheduler"}
# Of distilled models: it takes the UNet to a level between two steps and adds noise from there.
DISTILLED = ("TCDScheduler",)
# What a model was trained on, as its own scheduler has it by default; another class's default says nothing about it.
TRAINING = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")

OFF = (None, False)
# Settings that every solver reads, and the values of them that can be expressed.
REFUSED: dict[str, tuple[object, ...]] = {
    "predict_epsilon": (None, True),  # of old configurations
    "use_flow_sigmas": OFF,  # another way from images to noise
    "prediction_type": tuple(
        kind for kind in get_args(Prediction) if kind != "flow_prediction"
    ),  # `engine.flow` has its levels
    "timestep_spacing": get_args(Spacing),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
}
# Settings that only some solvers read.
REFUSED_BY: dict[SolverName, dict[str, tuple[object, ...]]] = {
    "ddim": {"thresholding": OFF},
    "dpmsolver++": {
        "thresholding": OFF,
        "use_exponential_sigmas": OFF,
        "use_beta_sigmas": OFF,
        "use_lu_lambdas": OFF,
        "final_sigmas_type": (None, "zero"),
        "lambda_min_clipped": (None, -math.inf, "-inf", "-Infinity"),
        "sigma_min": (None,),
        "sigma_max": (None,),
    },
    "euler": {
        "use_exponential_sigmas": OFF,
        "use_beta_sigmas": OFF,
        "interpolation_type": (None, "linear"),
        "timestep_type": (None, "discrete"),
        "final_sigmas_type": (None, "zero"),
        "sigma_min": (None,),
        "sigma_max": (None,),
    },
    "euler-ancestral": {},
    "lcm": {"thresholding": OFF},
}


def noise_levels(
    config: Mapping[str, Any],
    named: str | None = None,
    mends: Mapping[str, Any] | None = None,
    pixels: bool = False,
    walked: Walked = PLAINLY,
) -> NoiseLevels:
    """Noise levels from a diffusers scheduler's configuration, whichever scheduler wrote it.

    named: the class that model_index.json gives the scheduler, which counts for diffusers whatever the configuration says.
    mends: what the pipeline's constructor sets in its scheduler's configuration. pixels: whether the model makes them without
    a decoder; only these does DDIM clip where neither the configuration nor its writer says anything of clipping. walked: what
    the pipeline hands to a scheduler of flow matching.

    Settings that only choose another solver (`algorithm_type`, `solver_order`, `variance_type`, …) are left out: the schedule
    chooses. Flow matching has levels of its own (`engine.flow`). Raises `Unsupported` naming a setting that changes the noise
    levels or every solver's update and cannot be expressed; what only some solvers read is a refusal of their walks.
    """
    if (named or config.get("_class_name")) == FLOW:
        return flow_levels(config, walked)
    if "_class_name" in config:
        config = {**config, "_class_name": _shown(config["_class_name"])}
    own_name = _shown(named or config.get("_class_name"))
    for name in (config.get("_class_name", "DDIMScheduler"), own_name or "DDIMScheduler"):
        _refuse_class(name)
    full = {**defaults("DDIMScheduler"), "clip_sample": False, **(defaults(own_name) if own_name else {}), **config}
    for setting, allowed in REFUSED.items():
        if full.get(setting) not in allowed:
            raise Unsupported(f"{full[setting]!r} in the scheduler config is not supported", param=setting)
    _refuse_numbers(full)
    try:
        own = _scheduler(own_name or "DDIMScheduler").from_config(dict(config))
        settings = _settings(own)
        ddim = _scheduler("DDIMScheduler").from_config(settings)
    except BUILD_ERRORS as error:
        raise Unsupported(f"diffusers cannot build it: {reason(error)}", param="scheduler") from error
    cumprod: Floats = ddim.alphas_cumprod.numpy().astype(np.float64)
    if not (cumprod[0] < 1 and np.all(np.diff(cumprod) < 0)):
        setting = "beta_start" if full["trained_betas"] is None else "trained_betas"
        raise Unsupported("the signal must fall at every timestep, and it does not", param=setting)
    if not np.allclose(cumprod, own.alphas_cumprod.numpy(), rtol=0, atol=1e-6):
        raise Unsupported(f"{type(own).__name__} has noise levels of its own", param="scheduler")
    said = {**ddim.config, **({} if pixels else {"clip_sample": full["clip_sample"]}), **(mends or {})}
    return NoiseLevels(
        alphas_cumprod=cumprod,
        final_alpha_cumprod=float(ddim.final_alpha_cumprod),
        prediction=full["prediction_type"],
        walks={solver: _walk(solver, settings, mends or {}) for solver in SOLVERS},
        clip=float(said["clip_sample_range"]) if said["clip_sample"] else math.inf,
        cosine=full["beta_schedule"] == "squaredcos_cap_v2",
    )


def nearest_solver(scheduler: str | None) -> SolverName:
    """The solver that walks most like a diffusers scheduler: that very one, or one of its kind."""
    kinds: dict[SolverName, tuple[str, ...]] = {
        "lcm": ("LCM",),
        "euler-ancestral": ("EulerAncestral",),
        "euler": ("Euler", "Heun", "KDPM2", "LMS", FLOW),
        "dpmsolver++": ("DPMSolver", "DEIS", "UniPC", "SASolver"),
    }
    return next((solver for solver, starts in kinds.items() if (scheduler or "").startswith(starts)), "ddim")


def _settings(own: Any) -> dict[str, Any]:
    """The folder's scheduler's configuration as other schedulers take it: without the defaults that only it has, but for those
    that the model was trained with."""
    unsaid = [name for name in own.config.get("_use_default_values", ()) if name not in TRAINING]
    return {**own.config, "_use_default_values": unsaid}


def _walk(solver: SolverName, settings: dict[str, Any], mends: Mapping[str, Any]) -> Walk:
    name, choice = SOLVERS[solver]
    try:
        config = {**_scheduler(name).from_config(settings, **choice).config, **mends}
    except BUILD_ERRORS as error:
        return Walk("leading", 0, refusal=("scheduler", f"what diffusers refuses ({reason(error)})"))
    karras = solver in KARRAS and bool(config.get("use_karras_sigmas"))
    unread = set() if karras else {"sigma_min", "sigma_max"}  # the ends of Karras' levels, and of others that are refused
    if config["prediction_type"] != "v_prediction":
        unread.add("timestep_type")
    refused = (
        (setting, f"{setting} {config[setting]!r}")
        for setting, allowed in REFUSED_BY[solver].items()
        if setting not in unread and config.get(setting) not in allowed
    )
    refusal = next(refused, None)
    if solver == "lcm":
        distilled_on = int(config["original_inference_steps"]), float(config["timestep_scaling"])
        return Walk("trailing", config["steps_offset"], False, refusal, *distilled_on)
    return Walk(config["timestep_spacing"], config["steps_offset"], karras, refusal)


def _shown(name: Any) -> Any:
    """The class whose settings a class has, where diffusers may not show it; the class itself for all others."""
    return STAND_INS.get(name, name) if isinstance(name, str) else name


def _refuse_class(name: object) -> None:
    """Raises `Unsupported` for a scheduler whose noise levels do not come from betas, and for TCD's; not asked of `FLOW`."""
    import diffusers

    if name in DISTILLED:
        message = (
            f"{name} is for a distilled model, which the solvers here ({', '.join(SOLVERS)}) cannot walk: load the model that "
        )
        raise Unsupported(f"{message}it was distilled from, without its LoRA", param="scheduler")
    known = isinstance(name, str) and name and isinstance(getattr(diffusers, name, None), type)
    if not known or "beta_schedule" not in defaults(str(name)):
        message = f"_class_name {name!r} in its config: this version runs schedulers with a beta_schedule and {FLOW}"
        raise Unsupported(message, param="scheduler")


def _scheduler(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)


def _refuse_numbers(full: dict[str, Any]) -> None:
    """Raises `Unsupported` naming a setting that must be a number, or a list of numbers, and is none that can be used."""
    limits: dict[str, tuple[bool, str]] = {
        "num_train_timesteps": (is_whole(full["num_train_timesteps"]), "a whole number of at least 1"),
        "steps_offset": (is_whole(full["steps_offset"]) or full["steps_offset"] == 0, "a whole number of at least 0"),
    }
    betas = full["trained_betas"]
    if betas is not None:
        steps = full["num_train_timesteps"]
        good = isinstance(betas, list | tuple) and len(betas) == steps and all(_is_between(b, 1) or b == 1 for b in betas)
        limits["trained_betas"] = (good, f"a list of num_train_timesteps ({steps}) numbers between 0 and 1, or null")
    elif full["beta_schedule"] != "squaredcos_cap_v2":
        for setting in ("beta_start", "beta_end"):
            limits[setting] = (_is_between(full[setting], 1), "a number between 0 and 1")
    if full["clip_sample"]:
        limits["clip_sample_range"] = (_is_between(full["clip_sample_range"], math.inf), "a number above 0")
    for setting, (good, wanted) in limits.items():
        if not good:
            raise Unsupported(f"must be {wanted} in the scheduler config, got {_brief(full[setting])}", param=setting)


def _brief(value: object) -> str:
    return f"a list of {len(value)}" if isinstance(value, list | tuple) else repr(value)


def _is_between(value: object, end: float) -> bool:
    """Whether this is a number between 0 and `end`, neither of them included."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < end

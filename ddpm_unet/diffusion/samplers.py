"""Samplers by name: diffusers schedulers with the settings that suit them.

The settings come from denoising a Gaussian, whose exact answer is known. DDPM and DDIM use
"linspace" timesteps, the only spacing that both starts at T - 1 and ends at 0, like the
respacing of Nichol 2021: "leading" never sees the last timesteps (a bias of the mean under the
cosine schedule), "trailing" jumps from timestep T / steps - 1 to a clean image and loses fine
detail by it. The ODE and SDE solvers take steps of equal log-SNR, as DPM-Solver does (Lu 2022,
arXiv:2206.00927, section 3.3): with 10 to 50 of them they miss the exact solution by several
times less than with equal steps of time.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from ddpm_unet.diffusion.process import EPSILON_AT_ZERO_SNR, GaussianDiffusion
from ddpm_unet.errors import UserError

_COMMON = {"timestep_spacing": "linspace"}
_DPM = {"use_lu_lambdas": True, "final_sigmas_type": "zero"}
_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {**_DPM, "algorithm_type": "dpmsolver++"}),
    "dpm++sde": ("DPMSolverMultistepScheduler", {**_DPM, "algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {"use_exponential_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}),
    "heun": ("HeunDiscreteScheduler", {"use_exponential_sigmas": True}),
}
SAMPLERS = tuple(_SCHEDULERS)
LCM = "lcm"
"""Only for the models that were distilled for it."""
_WITHOUT_ZERO_SNR = ("heun",)
_WORDS = {
    "ddpm": "the chain of Ho 2020, noise at every step; learned variances; many steps",
    "ddim": "deterministic (Song 2021); 50 steps and more",
    "dpm++": "DPM-Solver++ 2M (Lu 2022), deterministic; 10 to 50 steps",
    "dpm++sde": "its stochastic form; 20 to 100 steps",
    "unipc": "UniPC (Zhao 2023), deterministic; 10 to 50 steps",
    "euler": "Euler's method (Karras 2022), deterministic; 50 steps and more",
    "heun": "Heun's (Karras 2022), twice the evaluations; 20 to 50 steps; no zero terminal SNR",
    LCM: "few steps; only of a folder that names LCMScheduler, without --sampler",
}


def described() -> str:
    """The samplers, one a line."""
    return "\n".join(f"{name:10}{words}" for name, words in _WORDS.items())


def make_scheduler(name: str, diffusion: GaussianDiffusion | Mapping[str, Any]) -> Any:
    """A diffusers scheduler for a model's forward process and prediction type.

    Args:
        name: One of `SAMPLERS`.
        diffusion: The forward process, or the `config` of another diffusers scheduler.

    Returns:
        A scheduler with diffusers' interface, for `sample` or a diffusers pipeline.

    Raises:
        UserError: An unknown name, or a sampler that is known to draw wrong images of such a model.
    """
    if name == LCM:
        raise UserError(
            "sampler lcm: needs a model distilled for it, whose scheduler_config.json names "
            "LCMScheduler; sample such a one without --sampler, and this one with dpm++"
        )
    if name not in _SCHEDULERS:
        near = difflib.get_close_matches(name, SAMPLERS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"unknown sampler {name!r}: did you mean {near!r}? Known: {', '.join(SAMPLERS)}"
        )
    # names beginning with _ tell diffusers which settings to forget
    settings = (
        _process(diffusion)
        if isinstance(diffusion, GaussianDiffusion)
        else {key: value for key, value in diffusion.items() if not key.startswith("_")}
    )
    class_name, options = _SCHEDULERS[name]
    return _scheduler(name, class_name, {**settings, **_COMMON, **options})


def saved_scheduler(diffusion: GaussianDiffusion, saved: Mapping[str, Any]) -> tuple[str, Any]:
    """The scheduler that a pipeline's folder names, with the settings that it has there.

    Where they leave open how timesteps are spaced it is that of `make_scheduler`.

    Args:
        diffusion: The forward process of the folder.
        saved: Its scheduler_config.json.

    Returns:
        The sampler's name, and a scheduler as from `make_scheduler`.

    Raises:
        UserError: It is no sampler known here, or known to draw wrong images of such a model.
    """
    kind = saved.get("_class_name", "DDPMScheduler")
    algorithm = saved.get("algorithm_type", "dpmsolver++")
    known = {**_SCHEDULERS, LCM: ("LCMScheduler", {})}
    name = next(
        (
            name
            for name, (class_name, options) in known.items()
            if class_name == kind and options.get("algorithm_type", algorithm) == algorithm
        ),
        None,
    )
    if name is None:
        of = f" of {algorithm}" if "algorithm_type" in saved else ""
        raise UserError(
            f"scheduler_config.json names {kind}{of}, which is no sampler here; give --sampler, "
            f"one of {', '.join(SAMPLERS)}"
        )
    if diffusion.rescale_betas_zero_snr and saved.get("timestep_spacing") == "leading":
        raise UserError(
            "scheduler_config.json has timestep_spacing leading, which never asks the last "
            "timestep, where zero terminal SNR begins; set it to trailing, or give --sampler"
        )
    own = {key: value for key, value in saved.items() if not key.startswith("_")}
    ours = {} if "timestep_spacing" in saved or name == LCM else {**_COMMON, **known[name][1]}
    return name, _scheduler(name, known[name][0], {**_process(diffusion), **ours, **own})


def _process(diffusion: GaussianDiffusion) -> dict[str, Any]:
    """What schedulers are told of a forward process."""
    config = diffusion.scheduler_config()
    del config["_class_name"]
    config.pop("timestep_spacing", None)
    return config


def _scheduler(name: str, class_name: str, settings: dict[str, Any]) -> Any:
    zero_snr = settings.get("rescale_betas_zero_snr")
    if zero_snr and settings.get("prediction_type", "epsilon") == "epsilon":
        raise UserError(EPSILON_AT_ZERO_SNR)
    if zero_snr and name in _WITHOUT_ZERO_SNR:
        raise UserError(
            f"sampler {name}: diffusers' {class_name} does not know zero terminal SNR "
            "(rescale_betas_zero_snr), and would draw from another noise; take dpm++ or unipc"
        )
    import diffusers  # takes seconds

    if class_name != "DDPMScheduler":  # which alone knows what to do with it
        settings.pop("variance_type", None)
    kind = getattr(diffusers, class_name)
    known = settings.keys() & inspect.signature(kind).parameters.keys()
    try:
        scheduler = kind(**{key: settings[key] for key in known})
    except (TypeError, ValueError, NotImplementedError) as error:
        cause = " ".join(str(error).split())[:200]
        raise UserError(f"scheduler_config.json: diffusers refuses it ({cause})") from error
    # The rest is kept, as by `from_config`, which to know it imports all schedulers, and scipy.
    scheduler.register_to_config(**{key: settings[key] for key in settings.keys() - known})
    return scheduler

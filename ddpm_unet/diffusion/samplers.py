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
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ddpm_unet.config import DiffusionConfig
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


def trained_betas(config: DiffusionConfig) -> dict[str, list[float]]:
    """What a diffusers scheduler must be told besides, of a schedule that it does not know."""
    if config.beta_schedule != "logistic":
        return {}
    from ddpm_unet.diffusion.schedule import betas  # torch takes seconds

    return {"trained_betas": [float(f"{beta:.7g}") for beta in betas(config).tolist()]}


def make_scheduler(name: str, config: DiffusionConfig | Mapping[str, Any]) -> Any:
    """A diffusers scheduler for a model's forward process and prediction type.

    Args:
        name: One of `SAMPLERS`.
        config: The settings the model was trained with, or the `config` of another diffusers
            scheduler (of a pipeline that was read from a folder).

    Returns:
        A scheduler with diffusers' interface, for `sample` or a diffusers pipeline.

    Raises:
        UserError: An unknown name.
    """
    if name not in _SCHEDULERS:
        near = difflib.get_close_matches(name, SAMPLERS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"unknown sampler {name!r}: did you mean {near!r}? Known: {', '.join(SAMPLERS)}"
        )
    if isinstance(config, DiffusionConfig):
        settings = asdict(config)
        del settings["min_snr_gamma"], settings["vlb_weight"]
        settings |= {"_class_name": "DDPMScheduler", **trained_betas(config)}
    else:  # names beginning with _ tell diffusers which settings to forget
        settings = {key: value for key, value in config.items() if not key.startswith("_")}
    import diffusers  # takes seconds

    class_name, options = _SCHEDULERS[name]
    if class_name != "DDPMScheduler":  # which alone knows what to do with it
        settings.pop("variance_type", None)
    return getattr(diffusers, class_name).from_config({**settings, **_COMMON, **options})

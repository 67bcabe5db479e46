"""Noise schedules: how much of the image is left at each timestep, in float64.

Notation of Ho 2020 (arXiv:2006.11239): x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, where
abar is the cumulative product of 1 - beta and timestep t of 0 .. T-1 is the paper's t + 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpm_unet.config import DiffusionConfig
from ddpm_unet.config.training import EPSILON_AT_ZERO_SNR
from ddpm_unet.errors import UserError

MAX_BETA = 0.999


def betas(config: DiffusionConfig) -> Tensor:
    """Variance of the noise added at each timestep.

    Returns:
        Betas in (0, 1), with zero terminal SNR the last is 1, `float64 [T]`.

    Raises:
        UserError: T below 1, betas that do not rise within (0, 1), or noise to be predicted where
            there is nothing else.
    """
    if not config.rescale_betas_zero_snr:
        return _scheduled(config)
    if config.prediction_type == "epsilon":
        raise UserError(EPSILON_AT_ZERO_SNR)
    if config.num_train_timesteps < 2:
        raise UserError("num_train_timesteps is 1: rescale_betas_zero_snr needs at least 2")
    # Lin 2023 (arXiv:2305.08891), algorithm 1: sqrt(abar) shifted to end at 0, and stretched.
    root = torch.cumprod(1 - _scheduled(config), dim=0).sqrt()
    abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return 1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])


def _scheduled(config: DiffusionConfig) -> Tensor:
    steps = config.num_train_timesteps
    if steps < 1:
        raise UserError(f"num_train_timesteps is {steps}: give at least 1")
    if config.beta_schedule == "squaredcos_cap_v2":
        return _cosine_betas(steps)
    if config.beta_schedule == "logistic":
        return _logistic_betas(steps)
    start, end = config.beta_start, config.beta_end
    if not 0 < start <= end < 1:
        raise UserError(f"beta_start {start}, beta_end {end}: need 0 < beta_start <= beta_end < 1")
    if config.beta_schedule == "linear":  # Ho 2020, section 4
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if config.beta_schedule == "scaled_linear":  # latent diffusion (arXiv:2112.10752)
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    raise UserError(f"unknown beta_schedule {config.beta_schedule!r}")


def _cosine_betas(steps: int) -> Tensor:
    """Nichol 2021 (arXiv:2102.09672), equation 17, with betas of at most 0.999."""
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    abar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - abar[1:] / abar[:-1]).clamp(max=MAX_BETA)


def _logistic_betas(steps: int) -> Tensor:
    """Jabri 2022 (arXiv:2212.11972), figure 8, from -3 to 3, with betas of at most 0.999."""
    curve = torch.sigmoid(torch.linspace(3, -3, steps + 1, dtype=torch.float64))
    abar = curve - curve[-1]
    return (1 - abar[1:] / abar[:-1]).clamp(max=MAX_BETA)


def alphas_cumprod(config: DiffusionConfig) -> Tensor:
    """The share abar of the image's variance that is left at each timestep (Ho 2020, eq. 4).

    Returns:
        Falling numbers in (0, 1), with zero terminal SNR the last is 0, `float64 [T]`.
    """
    return torch.cumprod(1 - betas(config), dim=0)


def snr(abar: Tensor) -> Tensor:
    """Signal-to-noise ratio abar / (1 - abar) (Kingma 2021, arXiv:2107.00630, eq. 2)."""
    return abar / (1 - abar)


def log_snr(abar: Tensor) -> Tensor:
    """Natural logarithm of the signal-to-noise ratio, the logit of abar."""
    return torch.logit(abar)


def alphas_cumprod_at(log_snr: Tensor) -> Tensor:
    """The abar at which the logarithm of the signal-to-noise ratio is `log_snr`."""
    return torch.sigmoid(log_snr)

"""The training objective: noise an image, predict, compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm_unet import randomness
from ddpm_unet.config import DiffusionConfig
from ddpm_unet.diffusion.prediction import mean_channels, min_snr_weight, target_mixture
from ddpm_unet.diffusion.schedule import alphas_cumprod
from ddpm_unet.diffusion.variational_bound import VariationalBound
from ddpm_unet.errors import UserError


class Objective:
    """Denoising loss of a `denoiser(x_t, t, **conditions) -> prediction`.

    The weighted simple loss of Ho 2020 (arXiv:2006.11239, eq. 14) for any prediction type; with
    learned variances, the hybrid loss of Nichol 2021 (arXiv:2102.09672, eq. 16).

    Args:
        config: The forward process, the prediction type and the weighting.

    Raises:
        UserError: A schedule or weighting that makes no sense.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        abar = alphas_cumprod(config)
        gamma = config.min_snr_gamma
        if gamma is not None and gamma <= 0:
            raise UserError(f"min_snr_gamma is {gamma}: give a positive number or null")
        if gamma is not None and config.rescale_betas_zero_snr:
            raise UserError(
                f"min_snr_gamma {gamma:g}: would give the last timestep, whose SNR is zero with "
                "rescale_betas_zero_snr, no weight; set one of the two to null or false"
            )
        target = target_mixture(config.prediction_type, abar)
        weight = (
            torch.ones_like(abar)
            if gamma is None
            else min_snr_weight(config.prediction_type, abar, gamma)
        )
        # one row per timestep: x_t = [0] x_0 + [1] eps, target = [2] x_0 + [3] eps, weight [4]
        rows = (abar.sqrt(), (1 - abar).sqrt(), *target, weight)
        self._table = torch.stack(rows, dim=1).float()
        self._bound = VariationalBound(config) if config.variance_type == "learned_range" else None

    def to(self, device: torch.device | str) -> Objective:
        """Move the tables to a device; returns itself."""
        self._table = self._table.to(device)
        if self._bound:
            self._bound.to(device)
        return self

    def draw(
        self,
        seed: int,
        positions: randomness.Positions,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> tuple[Tensor, Tensor]:
        """Timesteps, uniform in 0 .. T-1, and noise: functions of (seed, position).

        Args:
            seed: Seed of the run.
            positions: Positions of the images in the stream, B of them.
            shape: Shape of one image, such as (C, H, W).
            device: Where the noise is drawn.

        Returns:
            Timesteps `int64 [B]` and standard normal noise `float32 [B, *shape]`.
        """
        timesteps = randomness.integers(
            seed, "timestep", positions, self.config.num_train_timesteps
        )
        noise = randomness.normal(seed, "noise", positions, shape, device)
        return torch.from_numpy(timesteps).to(device), noise

    def add_noise(self, images: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """A draw of q(x_t | x_0) (Ho 2020, eq. 4), `float32 [B, ...]`."""
        return self._mix(0, images, timesteps, noise)

    def target(self, images: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """What the denoiser should predict, `float32 [B, ...]`."""
        return self._mix(2, images, timesteps, noise)

    def losses(
        self,
        denoiser: Callable[..., Tensor],
        images: Tensor,
        timesteps: Tensor,
        noise: Tensor,
        **conditions: Any,
    ) -> Tensor:
        """Weighted mean squared error of each image, and with learned variances the bound.

        The bound is the sum over all timesteps, of which the image's own is drawn, and moves the
        variances alone: no gradient of it reaches the mean.

        Args:
            denoiser: Called as `denoiser(x_t, timesteps, **conditions)`; with learned variances
                it predicts `[B, 2 C, ...]`.
            images: Clean images, `float32 [B, C, ...]` in [-1, 1].
            timesteps: `int64 [B]` in 0 .. T-1.
            noise: Standard normal, `float32`, of the shape of the images.
            conditions: What else the denoiser needs.

        Returns:
            `float32 [B]`, whatever precision the denoiser computes in.
        """
        noisy = self.add_noise(images, timesteps, noise)
        prediction = denoiser(noisy, timesteps, **conditions).float()
        means = mean_channels(prediction, images.shape[1])
        error = means - self.target(images, timesteps, noise)
        simple = self._table[timesteps, 4] * error.square().flatten(1).mean(1)
        if self._bound is None:
            return simple
        stopped = torch.cat([means.detach(), prediction[:, images.shape[1] :]], dim=1)
        bits = self._bound.terms(images, noisy, timesteps, stopped).bits
        return simple + self.config.vlb_weight * self.config.num_train_timesteps * bits

    def _mix(self, column: int, images: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        rows = self._table[timesteps].reshape(-1, 5, *[1] * (images.ndim - 1))
        return rows[:, column] * images + rows[:, column + 1] * noise

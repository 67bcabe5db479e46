"""The variational bound on the likelihood of images, timestep by timestep.

-log p(x_0) <= L_T + sum of L_{t-1} + L_0 (Ho 2020, arXiv:2006.11239, eq. 5): how far the noised
image is from pure noise, how far each reverse step is from the posterior, and what the last step
makes of the image's 256 levels. All in bits per dimension.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_unet.config import DiffusionConfig
from ddpm_unet.diffusion.prediction import image_mixture, mean_channels
from ddpm_unet.diffusion.schedule import alphas_cumprod

LEVELS = 256
"""Values of a pixel, evenly spaced from -1 to 1."""


class Terms(NamedTuple):
    """Of each image at its timestep, `float32 [B]` each.

    Args:
        bits: L_{t-1}, or L_0 at timestep 0, in bits per dimension.
        noise_error: Mean squared error of the noise that the prediction means.
        image_error: Mean squared error of the image that it means.
    """

    bits: Tensor
    noise_error: Tensor
    image_error: Tensor


class VariationalBound:
    """The terms of the bound, for fixed and for learned variances.

    Variances are interpolated between log posterior variance and log beta (Nichol 2021,
    arXiv:2102.09672, eq. 15). At timestep 0, where the posterior has none, that of timestep 1
    stands in for it, also for "fixed_large", as in the authors' code.

    Args:
        config: The forward process, the prediction type and the kind of variance.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        abar = alphas_cumprod(config)
        previous = torch.cat([torch.ones(1).double(), abar[:-1]])
        beta = 1 - abar / previous
        posterior = (1 - previous) / (1 - abar) * beta  # Ho 2020, eq. 7
        posterior[0] = posterior[1] if len(abar) > 1 else beta[0]
        widest = (beta / posterior).log()
        if config.variance_type == "fixed_large":
            fixed = widest.clone()
            fixed[0] = 0
        else:
            fixed = torch.zeros_like(widest)
        of_image = previous.sqrt() * beta / (1 - abar)
        snr = abar / (1 - abar)
        rows = (
            *image_mixture(config.prediction_type, abar),
            of_image,
            posterior.log(),
            widest,
            fixed,
            snr,
        )
        self._table = torch.stack(rows, dim=1).float()
        self._last = float(abar[-1])

    def to(self, device: torch.device | str) -> VariationalBound:
        """Move the table to a device; returns itself."""
        self._table = self._table.to(device)
        return self

    def terms(
        self,
        images: Tensor,
        noisy: Tensor,
        timesteps: Tensor,
        prediction: Tensor,
        clip: bool = False,
    ) -> Terms:
        """The terms of a batch.

        Args:
            images: `float32 [B, C, ...]` in [-1, 1].
            noisy: Draws of q(x_t | x_0) of them.
            timesteps: `int64 [B]` in 0 .. T-1.
            prediction: What a denoiser made of them, `[B, C or 2 C, ...]`.
            clip: Clip the predicted image to [-1, 1], as sampling does.
        """
        from_x, from_prediction, of_image, log_posterior, widest, fixed, snr = (
            column.reshape(-1, *[1] * (images.ndim - 1))
            for column in self._table[timesteps].unbind(1)
        )
        channels = images.shape[1]
        means = mean_channels(prediction.float(), channels)
        predicted = from_x * noisy + from_prediction * means
        if clip:
            predicted = predicted.clamp(-1, 1)
        wider = fixed
        if self.config.variance_type == "learned_range":
            wider = (prediction[:, channels:].float() + 1) / 2 * widest
        error, log_variance = images - predicted, log_posterior + wider
        last = (timesteps == 0).reshape(from_x.shape)
        # Elsewhere it is asked what is easy: a gradient that is thrown away must still be finite.
        decoder = log_level_probability(
            images, predicted.where(last, images), log_variance.where(last, torch.zeros(()))
        )
        step = gaussian_divergence(of_image * error, log_posterior, log_variance)
        nats = torch.where(last, -decoder, step)
        image_error = error.square().flatten(1).mean(1)
        bits = nats.flatten(1).mean(1) / math.log(2)
        return Terms(bits, snr.flatten() * image_error, image_error)

    def prior(self, images: Tensor) -> Tensor:
        """L_T, from the noised images to pure noise, `[B]` in bits per dimension."""
        abar = self._last
        log_variance = torch.full_like(images, math.log1p(-abar))
        nats = gaussian_divergence(abar**0.5 * images, log_variance, torch.zeros_like(images))
        return nats.flatten(1).mean(1) / math.log(2)


def gaussian_divergence(offset: Tensor, log_first: Tensor, log_second: Tensor) -> Tensor:
    """KL divergence, in nats, of a Gaussian from a second one.

    Args:
        offset: Difference of their means.
        log_first: Logarithm of the first one's variance.
        log_second: Logarithm of the second one's variance.
    """
    wider = log_second - log_first
    return 0.5 * (wider + torch.expm1(-wider) + offset.square() * torch.exp(-log_second))


def log_level_probability(images: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Logarithm of a Gaussian's probability of a level (Ho 2020, eq. 13).

    That is, of the interval around it; the first and the last level have all that lies beyond.

    Args:
        images: Levels, in [-1, 1].
        mean: The Gaussian's.
        log_variance: The Gaussian's.
    """
    half = 1 / (LEVELS - 1)
    scale = torch.exp(-0.5 * log_variance)
    far = torch.full_like(images, 1e3)  # of which the rest of a Gaussian cannot be told from 0
    low = torch.where(images < -1 + half, -far, (images - half - mean) * scale)
    high = torch.where(images > 1 - half, far, (images + half - mean) * scale)
    # Both in the lower tail, where the distribution function keeps its digits.
    flip = low + high > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    below, up_to = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return up_to + torch.log(-torch.expm1(below - up_to))

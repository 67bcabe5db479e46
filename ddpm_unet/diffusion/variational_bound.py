"""The variational bound on the likelihood of images, timestep by timestep.

-log p(x_0) <= L_T + sum of L_{t-1} + L_0 (Ho 2020, arXiv:2006.11239, eq. 5): how far the noised
image is from pure noise, how far each reverse step is from the posterior, and what the last step
makes of the image's 256 levels. All in bits per dimension.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ddpm_unet.diffusion.process import GaussianDiffusion

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


def bound_terms(
    diffusion: GaussianDiffusion,
    images: Tensor,
    noisy: Tensor,
    timesteps: Tensor,
    prediction: Tensor,
    clip: bool = False,
) -> Terms:
    """The terms of a batch.

    Variances, fixed or learned, lie between log posterior variance and log beta (Nichol 2021,
    arXiv:2102.09672, eq. 15).

    Args:
        diffusion: The forward process, the prediction type and the kind of variance.
        images: `float32 [B, C, ...]` in [-1, 1].
        noisy: Draws of q(x_t | x_0) of them.
        timesteps: `int64 [B]` in 0 .. T-1.
        prediction: What a network made of them, `[B, C or 2 C, ...]`.
        clip: Clip the predicted image to [-1, 1], as sampling does.
    """
    predicted = diffusion.predict_x0(noisy, timesteps, prediction.float())
    of_image, log_posterior, widest = diffusion.at(
        timesteps,
        images.ndim,
        "posterior_mean_from_x0",
        "posterior_log_variance",
        "log_variance_range",
    )
    if clip:
        predicted = predicted.clamp(-1, 1)
    last = (timesteps == 0).reshape(widest.shape)
    if diffusion.variance_type == "learned_range":
        wider = (prediction[:, images.shape[1] :].float() + 1) / 2 * widest
    elif diffusion.variance_type == "fixed_large":
        wider = widest.masked_fill(last, 0)
    else:
        wider = torch.zeros_like(widest)
    error, log_variance = images - predicted, log_posterior + wider
    # Elsewhere it is asked what is easy: a gradient that is thrown away must still be finite.
    decoder = log_level_probability(
        images, predicted.where(last, images), log_variance.where(last, torch.zeros_like(wider[:1]))
    )
    step = gaussian_divergence(of_image * error, log_posterior, log_variance)
    nats = torch.where(last, -decoder, step)
    image_error = error.square().flatten(1).mean(1)
    bits = nats.flatten(1).mean(1) / math.log(2)
    return Terms(bits, diffusion.snr(timesteps) * image_error, image_error)


def prior_bits(diffusion: GaussianDiffusion, images: Tensor) -> Tensor:
    """L_T, from the noised images to pure noise, `[B]` in bits per dimension."""
    abar = float(diffusion.alphas_cumprod_float64[-1])
    log_variance = torch.full_like(images, math.log1p(-abar))
    nats = gaussian_divergence(abar**0.5 * images, log_variance, torch.zeros_like(images))
    return nats.flatten(1).mean(1) / math.log(2)


def gaussian_divergence(offset: Tensor, log_first: Tensor, log_second: Tensor) -> Tensor:
    """KL divergence, in nats, of a Gaussian from a second one, `offset` between their means."""
    wider = log_second - log_first
    return 0.5 * (wider + torch.expm1(-wider) + offset.square() * torch.exp(-log_second))


def log_level_probability(images: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Logarithm of a Gaussian's probability of levels in [-1, 1] (Ho 2020, eq. 13).

    That is, of the interval around each; the first and the last have all that lies beyond.
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

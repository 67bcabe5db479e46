"""Guidance: away from what a weaker prediction says, towards what a better one adds to it.

One formula, guide + scale (denoiser - guide), for two weaker predictions: the same network's
that is told nothing (classifier-free guidance, Ho 2022, arXiv:2207.12598, eq. 6, where scale is
1 + w), and another network's, such as an earlier snapshot (autoguidance, Karras 2024,
arXiv:2406.02507, eq. 5). Predictions of noise, image or velocity are guided alike: they are
affine functions of each other at a given x and t, and the weights sum to one. Predicted variances
stay those of the denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddpm_unet.diffusion.conditions import withhold
from ddpm_unet.diffusion.prediction import mean_channels

Denoiser = Callable[..., Tensor]
Pair = Callable[..., tuple[Tensor, Tensor]]
"""`(x, t, **conditions) -> (the guide's prediction, the denoiser's)`."""


def guided(
    denoiser: Denoiser,
    pair: Pair,
    scale: float,
    interval: tuple[float, float] = (-math.inf, math.inf),
) -> Denoiser:
    """A denoiser that is guided.

    Args:
        denoiser: `(x, t, **conditions) -> prediction`.
        pair: `told_nothing` or `beside_another`.
        scale: 0 is the guide, 1 the denoiser itself, at one evaluation; above 1 it is guided.
        interval: The timesteps, both included, within which it is guided (Kynkaanniemi 2024,
            arXiv:2404.07724); outside it is the denoiser itself, at one evaluation.
    """
    low, high = interval
    everywhere = (low, high) == (-math.inf, math.inf)

    def guided_denoiser(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        if scale == 1 or not (everywhere or low <= float(t[0]) <= high):
            return denoiser(x, t, **conditions)
        weaker, better = pair(x, t, **conditions)
        channels = x.shape[1]
        weaker = mean_channels(weaker.float(), channels)
        means = torch.lerp(weaker, mean_channels(better.float(), channels), scale)
        return torch.cat([means, better[:, channels:].float()], dim=1)

    return guided_denoiser


def told_nothing(denoiser: Denoiser, null_class: int | None) -> Pair:
    """The denoiser without and with its conditions, in one evaluation of twice the batch."""

    def pair(x: Tensor, t: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        first = torch.arange(2 * len(x), device=x.device) < len(x)
        twice = {name: torch.cat([told, told]) for name, told in conditions.items()}
        told = withhold(twice, first, null_class)
        without, with_them = denoiser(torch.cat([x, x]), torch.cat([t, t]), **told).chunk(2)
        return without, with_them

    return pair


def beside_another(denoiser: Denoiser, guide: Denoiser) -> Pair:
    """Another denoiser's prediction beside the denoiser's, both told the same."""

    def pair(x: Tensor, t: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        return guide(x, t, **conditions), denoiser(x, t, **conditions)

    return pair

"""What a denoiser is told besides the noisy image and its time, by argument.

class_labels    `int64 [B]`
context         `[B, L, C]`, a sequence to attend to; with it context_mask, `bool [B, L]`
planes          `[B, K, *space]`, to go by: a mask, a lower resolution, an image with a hole
estimate        `[B, C, *space]`, the clean image as last predicted (self-conditioning)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ddpm_unet import randomness
from ddpm_unet.config import DiffusionConfig
from ddpm_unet.diffusion.prediction import image_mixture, mean_channels
from ddpm_unet.diffusion.schedule import alphas_cumprod


def beside_the_input(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A denoiser that hands the images it is told to a network as further input channels.

    Args:
        network: `(channels, t, **conditions) -> prediction`.

    Returns:
        `(x, t, planes=None, estimate=None, **conditions) -> prediction`; the channels are those
        of x, of the estimate and the planes, in this order.
    """

    def denoiser(
        x: Tensor,
        t: Tensor,
        planes: Tensor | None = None,
        estimate: Tensor | None = None,
        **conditions: Any,
    ) -> Tensor:
        channels = [x, *(told for told in (estimate, planes) if told is not None)]
        return network(torch.cat(channels, 1) if len(channels) > 1 else x, t, **conditions)

    return denoiser


def withhold(
    conditions: Mapping[str, Tensor], chosen: Tensor, null_class: int | None
) -> dict[str, Tensor]:
    """Tell some images nothing: of the class null_class, and zeros for context and planes.

    Zeros make keys and values of zero, so attention to them adds nothing, whatever the mask. An
    estimate is no condition, and stays.

    Args:
        conditions: By argument.
        chosen: Which images, `bool [B]` or one for all.
        null_class: The class that stands for none.
    """

    def nothing(name: str, told: Tensor) -> Tensor:
        if name in ("estimate", "context_mask"):
            return told
        value: Any = null_class if name == "class_labels" else 0
        return torch.where(chosen.reshape(-1, *[1] * (told.ndim - 1)), value, told)

    return {name: nothing(name, told) for name, told in conditions.items()}


def withheld(seed: int, positions: randomness.Positions, share: float) -> Tensor:
    """Which images of a training are told nothing, `bool [B]`: a function of (seed, position)."""
    return torch.from_numpy(randomness.uniform(seed, "withheld", positions) < share)


class SelfConditioning:
    """Half of the images in training are told what the denoiser itself makes of them (Chen 2022).

    Bit diffusion, arXiv:2208.04202, section 3.2; the estimate is clipped to [-1, 1]
    where samples are (`clip_sample`).

    Args:
        config: The forward process and the prediction type.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        rows = image_mixture(config.prediction_type, alphas_cumprod(config))
        self._table = torch.stack(rows, dim=1).float()
        self._clip = config.clip_sample

    def estimate(
        self,
        denoiser: Callable[..., Tensor],
        noisy: Tensor,
        timesteps: Tensor,
        seed: int,
        positions: randomness.Positions,
        **conditions: Tensor,
    ) -> Tensor:
        """The clean image as predicted without an estimate, or zeros, `float32 [B, C, *space]`.

        Which of the two is a function of (seed, position). No gradient flows through it.

        Args:
            denoiser: `(x, t, estimate=..., **conditions) -> prediction`.
            noisy: `[B, C, *space]`.
            timesteps: `int64 [B]` in 0 .. T-1.
            seed: Seed of the run.
            positions: Of the images in the stream, B of them.
            conditions: What else the denoiser is told.
        """
        zeros = torch.zeros_like(noisy)
        told = randomness.integers(seed, "self-conditioning", positions, 2)
        with torch.no_grad():
            # Of all images, so that a network split over processes runs equally often on each.
            prediction = denoiser(noisy, timesteps, estimate=zeros, **conditions).float()
        prediction = mean_channels(prediction, noisy.shape[1])
        of_noisy, of_prediction = (
            column.reshape(-1, *[1] * (noisy.ndim - 1))
            for column in self._table.to(noisy.device)[timesteps].unbind(1)
        )
        image = of_noisy * noisy + of_prediction * prediction
        if self._clip:
            image = image.clamp(-1, 1)
        chosen = torch.from_numpy(told).to(noisy.device, torch.bool)
        return image.where(chosen.reshape(of_noisy.shape), zeros)

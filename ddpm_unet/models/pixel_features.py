"""A per-pixel network on frozen activations of a denoiser's decoder.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models", ICLR 2022
(arXiv 2112.03126), section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_unet.config import HeadConfig, UNetConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models.architecture import up_levels
from ddpm_unet.models.pretrained import model_folder
from ddpm_unet.models.unet import UNet
from ddpm_unet.randomness import normal, on_device


class PixelHead(nn.Module):
    """Classify every pixel by the activations of all levels and noise levels at its place.

    The published code enlarges thousands of channels to the image's size and keeps them, about
    210 GB for 50 images of 256 x 256. The first layer is linear, as is the enlargement, so here
    each activation passes its part of the first layer at its own size, one after the other, and
    only the sum is ever as large as the image: the same function. A training step on 256 x 256
    pixels with the 114M-parameter LSUN network, all 18 layers at 3 noise levels, takes 1.9 GB.

    Args:
        channels: Channels of each activation, in the order they come.
        num_classes: Outputs per pixel.
        widths: Hidden widths, (128, 32) in the paper for fewer than 30 classes.
        dims: 2 for images or 3 for volumes.
    """

    def __init__(
        self, channels: Sequence[int], num_classes: int, widths: tuple[int, int], dims: int = 2
    ) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.channels = tuple(channels)
        self.mode = "bilinear" if dims == 2 else "trilinear"
        self.first = conv(sum(channels), widths[0], kernel_size=1, bias=False)
        self.bias = nn.Parameter(torch.zeros(widths[0], *[1] * dims))
        self.rest = nn.Sequential(
            nn.ReLU(),
            norm(widths[0]),
            conv(widths[0], widths[1], kernel_size=1),
            nn.ReLU(),
            norm(widths[1]),
            conv(widths[1], num_classes, kernel_size=1),
        )

    def forward(self, activations: Iterable[Tensor], size: Sequence[int]) -> Tensor:
        """Logits `[B, num_classes, *size]` of activations `[B, channels[i], h_i, w_i]`.

        Each is dropped before the next is asked for.
        """
        convolve = F.conv2d if len(size) == 2 else F.conv3d
        parts = self.first.weight.split(self.channels, dim=1)
        total: Tensor = self.bias
        for part, activation in zip(parts, activations, strict=True):
            projected = convolve(activation, part)
            total = total + F.interpolate(projected, tuple(size), mode=self.mode)
        return self.rest(total)


def pixel_head(config: HeadConfig, unet: UNetConfig) -> PixelHead:
    """The head that fits `activations` of such a U-Net.

    Raises:
        UserError: No timestep, layers that there are not, or not one alpha a timestep.
    """
    if not config.feature_timesteps:
        raise UserError("feature_timesteps is empty; give at least one noise level")
    if len(config.feature_alphas) != len(config.feature_timesteps):
        raise UserError(
            f"feature_alphas has {len(config.feature_alphas)} entries and feature_timesteps"
            f" {len(config.feature_timesteps)}; give the cumulative alpha of every timestep"
        )
    channels = [level.channels for level in up_levels(unet) for _ in range(level.layers)]
    layers = config.feature_layers
    if layers is None:
        layers = tuple(range(len(channels)))
    if not layers or not set(layers) <= set(range(len(channels))):
        raise UserError(
            f"feature_layers {layers} are not in the decoder; it has 0 to {len(channels) - 1}"
        )
    read = [channels[i] for i in layers] * len(config.feature_timesteps)
    return PixelHead(read, config.num_classes, config.feature_widths, unet.dims)


def activations(
    unet: UNet, config: HeadConfig, images: Tensor, cond: Sequence[Tensor | None]
) -> Iterator[Tensor]:
    """What the decoder's layers say of `images [B, C, *space]` at one noise level after the other.

    `cond` is the U-Net's context, class labels and context mask. The noise is the same for every
    image and noise level. Yields `[B, c_i, *space_i]`, per timestep from coarse to fine.
    """
    noise = _noise(config.feature_seed, images.shape[1:], images.device).to(images)
    for t, alpha in zip(config.feature_timesteps, config.feature_alphas, strict=True):
        pyramid = unet.pyramid(alpha**0.5 * images + (1 - alpha) ** 0.5 * noise, t, *cond)
        layers = range(len(pyramid)) if config.feature_layers is None else config.feature_layers
        for i in layers:
            yield pyramid[i]


def _noise(seed: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """The one noise, `[1, *shape]`; torch.compile cannot follow a generator of random numbers."""
    # Only then, as `disable` takes seconds to import.
    draw = torch.compiler.disable(_drawn) if torch.compiler.is_compiling() else _drawn
    return draw(seed, shape, device)


def _drawn(seed: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """Drawn on the host, as on any device it must be the same; a GPU is not waited for."""
    return on_device(normal(seed, "segmentation features", [0], shape).numpy(), device)


def schedule_alphas(denoiser: Any, timesteps: Sequence[int]) -> tuple[float, ...]:
    """Cumulative alphas by the schedule of a denoiser.

    Args:
        denoiser: An object whose `diffusion` has `alphas_cumprod`; or the folder of a pipeline, or
            its `unet/`, with `scheduler/` beside it.
        timesteps: Which.

    Raises:
        UserError: There is no schedule, or it is shorter.
    """
    if isinstance(denoiser, str | PathLike):
        from diffusers import DDPMScheduler

        root = model_folder(denoiser).resolve().parent
        if not (root / "scheduler" / "scheduler_config.json").is_file():
            raise UserError(
                f"{Path(denoiser)} has no scheduler/scheduler_config.json; set feature_alphas, the"
                " cumulative alpha of every one of feature_timesteps"
            )
        table = DDPMScheduler.from_pretrained(root, subfolder="scheduler").alphas_cumprod
    else:
        table = getattr(getattr(denoiser, "diffusion", None), "alphas_cumprod", None)
        if table is None:
            raise UserError(
                "the denoiser has no noise schedule; set feature_alphas, the cumulative alpha of"
                " every one of feature_timesteps"
            )
    if not set(timesteps) <= set(range(len(table))):
        raise UserError(f"feature_timesteps {timesteps}: the denoiser has 0 to {len(table) - 1}")
    return tuple(table[t].item() for t in timesteps)

"""Blocks of the classic networks: convolutions with ReLU, pooling, upsampling, joining."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_unet.config import ClassicConfig
from ddpm_unet.models.layers.convolution import convolution


class ConvBlock(nn.Sequential):
    """3x3 convolutions, each followed by normalisation (if any) and ReLU.

    Args:
        config: Padding, normalisation and dimensions.
        channels: Of the input, and of what each convolution gives.
    """

    def __init__(self, config: ClassicConfig, *channels: int) -> None:
        layers: list[nn.Module] = []
        normed = config.norm == "batch"
        padding = 1 if config.padding == "same" else 0
        for i, o in pairwise(channels):
            layers.append(convolution(config.dims, i, o, padding=padding, bias=not normed))
            if normed:
                layers.append(layer(config, "BatchNorm")(o))
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class Up(nn.Module):
    """Double the size, join with activations of that size, convolve twice.

    Args:
        config: How the size is doubled and the activations are joined.
        channels: Of what is doubled.
        skips: Channels of each activation that it is joined with.
        width: Channels of the level.
        out: Channels of the result, where they are not those of the level.
    """

    def __init__(
        self, config: ClassicConfig, channels: int, skips: Sequence[int], width: int, out: int = 0
    ) -> None:
        super().__init__()
        self.add = config.skip == "add"
        up = channels
        self.up: nn.Module
        if config.upsample == "transposed":
            up = channels if config.doubling == "before_pooling" else width
            self.up = layer(config, "ConvTranspose")(channels, up, kernel_size=2, stride=2)
        else:
            self.up = Interpolate(config)
        self.block = ConvBlock(config, up if self.add else up + sum(skips), width, out or width)

    def forward(self, x: Tensor, *skips: Tensor) -> Tensor:
        """`[B, channels, h, w]` and `[B, skip, ~2h, ~2w]` each to `[B, out, ~2h, ~2w]`."""
        x = self.up(x)
        size = [min(a, b) for a, b in zip(x.shape[2:], skips[0].shape[2:], strict=True)]
        x, *cut = (centre(part, size) for part in (x, *skips))
        return self.block(x + cut[0] if self.add else torch.cat([*cut, x], dim=1))


class Interpolate(nn.Module):
    """Linear interpolation to the double size.

    With padding "same" the corners are aligned, as in milesial's network. Without padding nothing
    may depend on where the image ends: pixel centres are aligned and the outermost pixels, which
    would need values from beyond the border, are dropped.
    """

    def __init__(self, config: ClassicConfig) -> None:
        super().__init__()
        self.mode = "bilinear" if config.dims == 2 else "trilinear"
        self.same = config.padding == "same"

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, h, w]` to `[B, C, 2h, 2w]`, without padding `[B, C, 2h - 2, 2w - 2]`."""
        x = F.interpolate(x, scale_factor=2, mode=self.mode, align_corners=self.same)
        return x if self.same else centre(x, [n - 2 for n in x.shape[2:]])


def layer(config: ClassicConfig, kind: str) -> Callable[..., nn.Module]:
    """`torch.nn`'s 2-D or 3-D layer: "Conv" -> `nn.Conv2d` or `nn.Conv3d`."""
    return getattr(nn, f"{kind}{config.dims}d")


def widths(config: ClassicConfig) -> list[int]:
    """Channels of every level, finest first."""
    doubled = config.doubling == "before_pooling"
    return [config.base_width * 2 ** (level + doubled) for level in range(config.depth)]


def halved(config: ClassicConfig) -> bool:
    """Whether convolutions hand up half their level's channels.

    In the plain U-Net something must, before the two halves are joined; where no up-convolution
    does, it is the last convolution of the level below.
    """
    return (
        config.decoder == "unet"
        and config.upsample == "bilinear"
        and config.doubling == "after_pooling"
    )


def pool(x: Tensor, factor: int = 2) -> Tensor:
    """Divide the size by `factor`; a rest is pooled alone, the decoder crops it again."""
    pooling = F.max_pool2d if x.dim() == 4 else F.max_pool3d
    return pooling(x, kernel_size=factor, ceil_mode=True)


def centre(x: Tensor, size: Sequence[int]) -> Tensor:
    """The centre of `x`, of spatial size `size`."""
    for dim, n in enumerate(size, start=2):
        x = x.narrow(dim, (x.shape[dim] - n) // 2, n)
    return x


def corner(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first corner of `x`, of spatial size `size`."""
    for dim, n in enumerate(size, start=2):
        x = x.narrow(dim, 0, n)
    return x


@torch.no_grad()
def he_initialise(network: nn.Module) -> None:
    """Normal weights of standard deviation sqrt(2 / N), N the number of inputs of one output.

    Ronneberger 2015, section 3, after He 2015 (arXiv 1502.01852). An output of a 2x2
    up-convolution with stride 2 sees one pixel of every channel.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            inputs: float = module.in_channels // module.groups * prod(module.kernel_size)
            if module.transposed:
                inputs /= prod(module.stride)
            module.weight.normal_(0, sqrt(2 / inputs))
            if module.bias is not None:
                module.bias.zero_()

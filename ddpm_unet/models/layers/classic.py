"""Blocks of the classic networks: convolutions with ReLU, pooling, upsampling, joining."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise
from math import prod, sqrt

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ddpm_unet import native
from ddpm_unet.config import ClassicConfig
from ddpm_unet.models.layers.convolution import convolution


class ConvBlock(nn.Sequential):
    """3x3 convolutions, each followed by normalisation (if any) and ReLU.

    Args:
        config: Padding, normalisation and dimensions.
        channels: Of the input, and of what each convolution gives.
    """

    def __init__(self, config: ClassicConfig, *channels: int) -> None:
        super().__init__()
        self.normed = config.norm == "batch"
        padding = 1 if config.padding == "same" else 0
        for i, o in pairwise(channels):
            self.append(convolution(config.dims, i, o, padding=padding, bias=not self.normed))
            if self.normed:
                self.append(layer(config, "BatchNorm")(o))
            self.append(nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, channels[0], *space]` to `[B, channels[-1], *space]`, 2 less without padding.

        Where nothing is trained, the normalisation is part of the convolution's weights.
        """
        if (
            not self.normed
            or self.training
            or not native.unseen()
            or native.differentiated(x, *self.parameters())
        ):
            return super().forward(x)
        for conv, norm, relu in zip(*[iter(self)] * 3, strict=True):
            factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
            weight = conv.weight * factor.reshape(-1, *[1] * (conv.weight.dim() - 1))
            x = relu(conv._conv_forward(x, weight, norm.bias - norm.running_mean * factor))
        return x


class Double(nn.ConvTranspose2d):
    """The up-convolution of stride 2, each pixel becoming 2 x 2.

    Args:
        channels: Of the input.
        out: Of the output.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, kernel_size=2, stride=2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """`[B, channels, H, W]` to `[B, out, 2H, 2W]`."""
        assert self.bias is not None
        if not native.serves(x, self.weight, self.bias):
            return super().forward(x, output_size)
        # A product, and its values two by two as complex numbers, which is how they lie in memory:
        # on a CPU up to three times as fast as torch's.
        weight = rearrange(self.weight, "c k i j -> (k i j) c 1 1")
        values = F.conv2d(x, weight, self.bias.repeat_interleave(4))
        left, right = rearrange(values, "b (k i j) h w -> j b k h i w", i=2, j=2)
        pairs = torch.complex(left, right)
        return rearrange(torch.view_as_real(pairs), "b k h i w j -> b k (h i) (w j)")


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
            self.up = (
                Double(channels, up)
                if config.dims == 2
                else nn.ConvTranspose3d(channels, up, kernel_size=2, stride=2)
            )
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
    if (
        x.device.type == "cpu"
        and native.unseen()
        and not native.differentiated(x)
        and not any(size % factor for size in x.shape[2:])
    ):
        for dim in range(2, x.dim()):  # the same, ten times faster there
            x = reduce(torch.maximum, x.unflatten(dim, (-1, factor)).unbind(dim + 1))
        return x
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

"""Blocks of the classic networks: convolutions with ReLU, pooling, upsampling, joining."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from math import prod, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ddpm_unet.config import ClassicConfig
from ddpm_unet.models.layers import convolution


class Recomputing(nn.Module):
    """A module that runs its blocks by `run`; with `checkpointing` activations are not kept."""

    checkpointing = False

    def run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        """The block's output."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        return checkpoint(
            block,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _spare_statistics(block)),
        )


@contextmanager
def _spare_statistics(block: nn.Module) -> Iterator[None]:
    """Batch normalisation counts a batch once: what the recomputation adds is thrown away."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    kept = [norm._buffers for norm in norms]
    for norm in norms:
        norm._buffers = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers = buffers


class ConvBlock(nn.Sequential):
    """3x3 convolutions between these channels, each with normalisation (if any) and ReLU."""

    def __init__(self, config: ClassicConfig, *channels: int) -> None:
        super().__init__()
        self.normed = config.norm == "batch"
        padding = 1 if config.padding == "same" else 0
        for i, o in pairwise(channels):
            self.append(convolution(config.dims, i, o, padding=padding, bias=not self.normed))
            if self.normed:
                self.append(layer(config, "BatchNorm")(o))
            self.append(nn.ReLU(inplace=True))


class Pool(nn.Module):
    """Maxima of `factor` pixels in each direction; a rest at the far sides is pooled alone."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, *space]` to a `factor`-th of each size, rounded up."""
        pooling = F.max_pool2d if x.dim() == 4 else F.max_pool3d
        return pooling(x, kernel_size=self.factor, ceil_mode=True)


class Up(nn.Module):
    """Double the size, join with activations of that size, convolve twice.

    From `channels` and `skips` of each activation to `out` channels, by default those of the
    level, `width`.
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


class ContractingPath(Recomputing):
    """Two 3x3 convolutions a level, 2x2 max pooling between levels (Ronneberger 2015).

    `widths` are the channels of every level's activations.
    """

    def __init__(self, config: ClassicConfig) -> None:
        super().__init__()
        self.widths = widths(config)
        if halved(config):
            self.widths[-1] //= 2
        self.pool = Pool()
        self.blocks = nn.ModuleList()
        channels = config.in_channels
        for width, out in zip(widths(config), self.widths, strict=True):
            first = width // 2 if config.doubling == "before_pooling" else out
            self.blocks.append(ConvBlock(config, channels, first, out))
            channels = out
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, images: Tensor) -> list[Tensor]:
        """`[B, in_channels, H, W]` to `[B, widths[i], ~H / 2^i, ~W / 2^i]` for every level i."""
        features: list[Tensor] = []
        for level, block in enumerate(self.blocks):
            x = self.run(block, self.pool(features[-1]) if features else images)
            if level >= len(self.blocks) - 2:
                x = self.dropout(x)
            features.append(x)
        return features


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

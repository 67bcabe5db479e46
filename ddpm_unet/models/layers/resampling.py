"""Halving and doubling of the resolution, for any size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_unet.models.layers.convolution import convolution
from ddpm_unet.models.layers.forgetting import forgetful, without_keeping


def halve(x: Tensor) -> Tensor:
    """Means of 2 x 2 (x 2) pixels; of an odd size the last row is dropped, unless it is all."""
    if (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not any(size % 2 for size in x.shape[2:])
    ):
        for dim in range(2, x.ndim):  # the same, up to twenty times faster there
            x = torch.add(*x.unflatten(dim, (-1, 2)).unbind(dim + 1))
        return x * 0.5 ** (x.ndim - 2)
    pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    return pool(x, 2, ceil_mode=any(size == 1 for size in x.shape[2:]))


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest-neighbour interpolation to the spatial `size`, about twice the present one."""
    if (
        x.device.type == "cpu"
        and x.is_contiguous()
        and not torch.compiler.is_compiling()
        and list(size) == [2 * n for n in x.shape[2:]]
    ):
        for dim in reversed(range(2, x.ndim)):  # the same, several times faster there
            x = x.repeat_interleave(2, dim)
        return x
    return F.interpolate(x, size=tuple(size), mode="nearest")


def padded(x: Tensor) -> Tensor:
    """A row of zeros more at the far sides, two for a single one."""
    return F.pad(x, [n for size in reversed(x.shape[2:]) for n in (0, 2 if size == 1 else 1)])


class Downsample(nn.Module):
    """Convolution of stride 2.

    Args:
        dims: 2 or 3.
        channels: Channels in and out.
        padding: 0 pads at the far sides only (Ho 2020), else on both sides.
    """

    def __init__(self, dims: int, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = convolution(dims, channels, channels, stride=2, padding=padding)
        self.pad_far_side = padding == 0

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """`[B, C, *space]` to half of each size, rounded down (`padding` 0) or up, at least 1.

        Called like a residual block, but blind to the time embedding.
        """
        if self.pad_far_side:
            x = forgetful(padded, x)
        return without_keeping(self.conv, x)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement and convolution.

    Args:
        dims: 2 or 3.
        channels: Channels in and out.
    """

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.conv = convolution(dims, channels, channels)

    def forward(self, x: Tensor, emb: Tensor | None, size: Sequence[int]) -> Tensor:
        """`[B, C, *space]` to `[B, C, *size]`.

        Called like a residual block, but blind to the time embedding.
        """
        return without_keeping(self.conv, forgetful(partial(enlarge, size=size), x))

"""Convolutions in two or three dimensions, and the initial value of last layers."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

from ddpm_unet.models.layers import winograd

Layer = TypeVar("Layer", bound=nn.Module)


def convolution(
    dims: int,
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    bias: bool = True,
) -> nn.Conv2d | nn.Conv3d:
    """A convolution over images (`dims` 2) or volumes (`dims` 3)."""
    layer = nn.Conv2d if dims == 2 else nn.Conv3d
    if (dims, kernel, stride) == (2, 3, 1) and padding in (0, 1):
        layer = Conv3x3
    return layer(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=bias)


class Conv3x3(nn.Conv2d):
    """A 3 x 3 convolution of stride 1, padded by 1 or not, on a CPU by Winograd's method."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`[B, in_channels, H, W]` to `[B, out_channels, H, W]`, or 2 less without padding."""
        if winograd.applies(x, weight, bias):
            y = winograd.conv2d(x, weight, bias)
            return y if self.padding == (1, 1) else y[..., 1:-1, 1:-1].clone()
        return super()._conv_forward(x, weight, bias)


def zeroed(layer: Layer) -> Layer:
    """The layer with all weights zero, so that its branch starts by adding nothing (Ho 2020)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer

"""Convolutions in two or three dimensions, and the initial value of last layers."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)


def convolution(
    dims: int,
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
) -> nn.Conv2d | nn.Conv3d:
    """A convolution over images (`dims` 2) or volumes (`dims` 3)."""
    layer = nn.Conv2d if dims == 2 else nn.Conv3d
    return layer(in_channels, out_channels, kernel, stride=stride, padding=padding)


def zeroed(layer: Layer) -> Layer:
    """The layer with all weights zero, so that its branch starts by adding nothing (Ho 2020)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer

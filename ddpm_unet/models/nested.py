"""Expansive paths with more skips: U-Net++ and U-Net 3+, with deep supervision or without."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_unet.config import ClassicConfig
from ddpm_unet.models.decoders import scores
from ddpm_unet.models.layers.classic import (
    ConvBlock,
    Up,
    corner,
    layer,
    pool,
    widths,
)
from ddpm_unet.models.layers.recomputing import Recomputing


class NestedDecoder(Recomputing):
    """U-Net++: between encoder and decoder of a level, a row of densely joined nodes.

    Zhou 2018 (arXiv 1807.10165), eq. 1: node (i, j) joins all nodes before it in its row, (i, 0)
    to (i, j - 1), with node (i + 1, j - 1) doubled; (i, 0) is the encoder's. The nodes (0, j) see
    j + 1 levels: under deep supervision each of them gives scores, and one may do without the
    levels that it does not need (`ClassicUNet.pruned`).

    Args:
        config: The architecture.
        encoded: Channels of the encoder's activations.
    """

    def __init__(self, config: ClassicConfig, encoded: Sequence[int]) -> None:
        super().__init__()
        levels = widths(config)
        self.depth = config.depth
        self.nodes = nn.ModuleDict()
        for j in range(1, self.depth):
            for i in range(self.depth - j):
                below = encoded[i + 1] if j == 1 else levels[i + 1]
                row = [encoded[i], *[levels[i]] * (j - 1)]
                self.nodes[f"{i}_{j}"] = Up(config, below, row, levels[i])
        supervised = range(1, self.depth) if config.deep_supervision else [self.depth - 1]
        self.heads = nn.ModuleDict(
            {str(j): layer(config, "Conv")(levels[0], scores(config), 1) for j in supervised}
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """`[B, encoded[i], ~H / 2^i, ~W / 2^i]` to `[B, scores, H, W]`."""
        rows = [[x] for x in features]
        for j in range(1, self.depth):
            for i in range(self.depth - j):
                x = self.run(self.nodes[f"{i}_{j}"], rows[i + 1][j - 1], *rows[i])
                rows[i].append(x)
        counted = [*reversed(list(self.heads))] if self.training else [str(self.depth - 1)]
        return [self.heads[j](rows[0][int(j)]) for j in counted]


class FullScaleDecoder(Recomputing):
    """U-Net 3+: every level of the decoder joins activations of all levels.

    Huang 2020 (arXiv 2004.08790), section 2.1. Under deep supervision every level gives scores,
    interpolated to full size. The classification that the paper lets guide them is not here.

    Args:
        config: The architecture.
        encoded: Channels of the encoder's activations.
    """

    def __init__(self, config: ClassicConfig, encoded: Sequence[int]) -> None:
        super().__init__()
        joined = config.depth * config.base_width
        decoded = [joined] * (config.depth - 1) + [encoded[-1]]
        self.levels = nn.ModuleList(
            FullScaleLevel(config, level, [*encoded[: level + 1], *decoded[level + 1 :]])
            for level in range(config.depth - 1)
        )
        self.heads = nn.ModuleList(
            layer(config, "Conv")(width, scores(config), 3, padding=1)
            for width in (decoded if config.deep_supervision else decoded[:1])
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """`[B, encoded[i], ~H / 2^i, ~W / 2^i]` to `[B, scores, H, W]`."""
        decoded = list(features)
        for number, level in reversed(list(enumerate(self.levels))):
            decoded[number] = self.run(level, *features[: number + 1], *decoded[number + 1 :])
        size = features[0].shape[2:]
        counted = self.heads if self.training else self.heads[:1]
        return [
            _enlarge(head(x), number, size)
            for number, (head, x) in enumerate(zip(counted, decoded, strict=False))
        ]


class FullScaleLevel(nn.Module):
    """A level of U-Net 3+: a 3x3 convolution of each level's activations, and one of them all.

    Args:
        config: The architecture; a level contributes `base_width` channels.
        level: Its number, 0 is the finest.
        channels: Of every level's activations.
    """

    def __init__(self, config: ClassicConfig, level: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.level = level
        self.branches = nn.ModuleList(ConvBlock(config, n, config.base_width) for n in channels)
        joined = len(channels) * config.base_width
        self.join = ConvBlock(config, joined, joined)

    def forward(self, *activations: Tensor) -> Tensor:
        """Of all levels, `[B, channels[i], ~H / 2^i, ~W / 2^i]`, to this one's."""
        size = activations[self.level].shape[2:]
        parts = [
            branch(
                pool(x, 2 ** (self.level - number))
                if number < self.level
                else _enlarge(x, number - self.level, size)
            )
            for number, (branch, x) in enumerate(zip(self.branches, activations, strict=True))
        ]
        return self.join(torch.cat(parts, dim=1))


def _enlarge(x: Tensor, levels: int, size: Sequence[int]) -> Tensor:
    """Interpolate to `2^levels` times the size, pixel centres aligned, and cut to `size`."""
    if levels:
        mode = "bilinear" if x.dim() == 4 else "trilinear"
        x = F.interpolate(x, scale_factor=2**levels, mode=mode, align_corners=False)
    return corner(x, size)

"""Expansive paths: from activations of every level to scores of every class at every pixel.

Each is made of a `ClassicConfig` and the channels of an encoder's activations, takes these
activations, finest first, `[B, encoded[i], ~H / 2^i, ~W / 2^i]`, and gives a list of logits
`[B, scores, ~H, ~W]`, the one that counts first; there are others only in training, to be
supervised too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_unet.config import ClassicConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models.classic_layers import (
    ConvBlock,
    Pool,
    Recomputing,
    Up,
    corner,
    halved,
    layer,
    widths,
)


def scores(config: ClassicConfig) -> int:
    """Outputs per pixel."""
    return 1 if config.one_logit else config.num_classes


class UNetDecoder(Recomputing):
    """Up-convolution, skip and two 3x3 convolutions a level; a 1x1 convolution at the end.

    Ronneberger 2015, figure 1.
    """

    def __init__(self, config: ClassicConfig, encoded: Sequence[int]) -> None:
        super().__init__()
        levels = widths(config)
        if config.skip == "add" and list(encoded[:-1]) != levels[:-1]:
            raise UserError(
                f'skip "add": the encoder has {list(encoded[:-1])} channels and the decoder '
                f'{levels[:-1]}; set skip "concat"'
            )
        self.up = nn.ModuleList()
        channels = encoded[-1]
        for level in reversed(range(config.depth - 1)):
            out = levels[level] // 2 if halved(config) and level > 0 else levels[level]
            self.up.append(Up(config, channels, [encoded[level]], levels[level], out))
            channels = out
        self.head = layer(config, "Conv")(channels, scores(config), kernel_size=1)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """See the module."""
        *skips, x = features
        for block in self.up:
            x = self.run(block, x, skips.pop())
        return [self.head(x)]


class FCNDecoder(Recomputing):
    """Scores of the last three levels, pooled, interpolated and added: FCN-8s.

    Long 2014 (arXiv 1411.4038), section 4.2: 1x1 convolutions give scores; transposed
    convolutions double their size, initialised to bilinear interpolation and learned; the last
    one, to full size, stays what it is. With 5 levels the scores have strides 8, 16 and 32. The
    paper's fully connected layers, as convolutions between the last pooling and its scores, are
    not here.
    """

    def __init__(self, config: ClassicConfig, encoded: Sequence[int]) -> None:
        super().__init__()
        classes = scores(config)
        self.scores = nn.ModuleList(
            layer(config, "Conv")(width, classes, kernel_size=1) for width in encoded[-3:]
        )
        self.up = nn.ModuleList(LearnedInterpolation(config, classes, 2) for _ in range(2))
        self.last = LearnedInterpolation(config, classes, 2 ** (config.depth - 2))
        self.last.requires_grad_(False)
        self.pool = Pool()

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """See the module."""
        fine, middle, coarse = (
            score(self.pool(x)) for score, x in zip(self.scores, features[-3:], strict=True)
        )
        x = corner(self.up[0](coarse), middle.shape[2:]) + middle
        x = corner(self.up[1](x), fine.shape[2:]) + fine
        return [corner(self.last(x), features[0].shape[2:])]


class LearnedInterpolation(nn.Module):
    """A transposed convolution that starts as linear interpolation, by an even factor."""

    def __init__(self, config: ClassicConfig, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        places = (torch.arange(2 * factor) + 0.5) / factor
        line = 1 - (places - 1).abs()
        kernel = line
        for _ in range(config.dims - 1):
            kernel = kernel[..., None] * line
        weight = torch.zeros(channels, channels, *kernel.shape)
        weight[range(channels), range(channels)] = kernel
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, channels, h, w]` to `[B, channels, factor h, factor w]`."""
        convolve = F.conv_transpose2d if x.dim() == 4 else F.conv_transpose3d
        return convolve(x, self.weight, stride=self.factor, padding=self.factor // 2)


class TernausDecoder(Recomputing):
    """Decoder of TernausNet: pooled once more, then blocks that narrow, double and join.

    Iglovikov 2018 (arXiv 1801.05746), figure 2: a block is a 3x3 convolution and a 3x3
    transposed convolution of stride 2, each with ReLU, whose channels depend on `base_width` (32
    in the paper) and not on the encoder.
    """

    def __init__(self, config: ClassicConfig, encoded: Sequence[int]) -> None:
        super().__init__()
        base = config.base_width
        self.pool = Pool()
        self.up = nn.ModuleList()
        channels = encoded[-1]
        for level in reversed(range(config.depth)):
            narrowed, out = min(base * 4 * 2**level, base * 16), min(base * 2**level, base * 8)
            self.up.append(
                nn.Sequential(
                    ConvBlock(config, channels, narrowed),
                    layer(config, "ConvTranspose")(
                        narrowed, out, kernel_size=3, stride=2, padding=1, output_padding=1
                    ),
                    nn.ReLU(inplace=True),
                )
            )
            channels = out + encoded[level]
        self.last = ConvBlock(config, channels, base)
        self.head = layer(config, "Conv")(base, scores(config), kernel_size=1)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """See the module."""
        x = self.pool(features[-1])
        for block, skip in zip(self.up, reversed(features), strict=True):
            x = torch.cat([corner(self.run(block, x), skip.shape[2:]), skip], dim=1)
        return [self.head(self.run(self.last, x))]


class NestedDecoder(Recomputing):
    """U-Net++: between encoder and decoder of a level, a row of densely joined nodes.

    Zhou 2018 (arXiv 1807.10165), eq. 1: node (i, j) joins all nodes before it in its row, (i, 0)
    to (i, j - 1), with node (i + 1, j - 1) doubled; (i, 0) is the encoder's. The nodes (0, j) see
    j + 1 levels: under deep supervision each of them gives scores, and one may do without the
    levels that it does not need (`ClassicUNet.pruned`).
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
        """See the module."""
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
        """See the module."""
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

    A level, of which 0 is the finest, contributes `base_width` channels.
    """

    def __init__(self, config: ClassicConfig, level: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.level = level
        self.branches = nn.ModuleList(ConvBlock(config, n, config.base_width) for n in channels)
        self.pools = nn.ModuleList(Pool(2 ** (level - number)) for number in range(level))
        joined = len(channels) * config.base_width
        self.join = ConvBlock(config, joined, joined)

    def forward(self, *activations: Tensor) -> Tensor:
        """Of all levels, `[B, channels[i], ~H / 2^i, ~W / 2^i]`, to this one's."""
        size = activations[self.level].shape[2:]
        parts = [
            branch(
                self.pools[number](x)
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

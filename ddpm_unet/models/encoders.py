"""Contracting paths: from images to activations of every level, finest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ddpm_unet.config import ClassicConfig
from ddpm_unet.models.layers.classic import ConvBlock, halved, pool, widths
from ddpm_unet.models.layers.recomputing import Recomputing

if TYPE_CHECKING:
    from ddpm_unet.models.backbones import Backbone


class ContractingPath(Recomputing):
    """Two 3x3 convolutions a level, 2x2 max pooling between levels (Ronneberger 2015).

    Attributes:
        widths: Channels of every level's activations.

    Args:
        config: The architecture.
    """

    def __init__(self, config: ClassicConfig) -> None:
        super().__init__()
        self.widths = widths(config)
        if halved(config):
            self.widths[-1] //= 2
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
            x = self.run(block, pool(features[-1]) if features else images)
            if level >= len(self.blocks) - 2:
                x = self.dropout(x)
            features.append(x)
        return features


def build_encoder(config: ClassicConfig) -> ContractingPath | Backbone:
    """The encoder of a configuration."""
    if config.encoder == "classic":
        return ContractingPath(config)
    from ddpm_unet.models.backbones import Backbone  # torchvision takes seconds

    return Backbone(config)

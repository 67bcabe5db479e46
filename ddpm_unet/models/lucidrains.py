"""The U-Net of denoising-diffusion-pytorch, so that its checkpoints can be used.

It differs from `UNet` in every layer (`layers/lucidrains.py`) and in what is joined to what, but it
is called, sampled from and made a segmenter of like one. New networks are better a `UNet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_unet.config.foreign import LucidrainsConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models.blocks import Block, Conditions
from ddpm_unet.models.layers.convolution import convolution, zeroed
from ddpm_unet.models.layers.embeddings import TimestepEmbedding
from ddpm_unet.models.layers.lucidrains import LinearAttention, MemoryAttention, PostNormBlock
from ddpm_unet.models.layers.normalisation import ACTIVATIONS
from ddpm_unet.models.layers.resampling import enlarge
from ddpm_unet.models.unet import UNet


class LucidrainsUNet(UNet, config=LucidrainsConfig):
    """A network from an image and a time step to an image of the same size.

    Sides must have at least 2^(levels - 1) pixels.

    Args:
        config: The architecture.

    Raises:
        UserError: A setting has not one entry per level.
    """

    def __init__(self, config: LucidrainsConfig) -> None:
        nn.Module.__init__(self)
        for name in ("full_attention", "attention_heads", "head_dims"):
            if len(getattr(config, name)) != len(config.block_out_channels):
                raise UserError(f"{name} has not one entry per level of block_out_channels")
        self.config = config
        widths, below = config.block_out_channels, config.channels_below
        base, emb, last = widths[0], 4 * widths[0], len(widths) - 1
        self.conv_in = convolution(2, config.in_channels, base, kernel=7, padding=3)
        self.time_embedding = TimestepEmbedding(base, emb, "gelu")
        self.class_embedding = None
        self.emb_act = ACTIVATIONS["silu"]
        self.down_blocks = nn.ModuleList(
            Level(config, i, width, width, below[i], halves=i < last)
            for i, width in enumerate(widths)
        )
        middle = config.mid_channels
        self.mid_block = Level(config, last, middle, middle, attention_after=0)  # type: ignore[assignment]
        self.up_blocks = nn.ModuleList(
            Level(config, i, below[i] + widths[i], below[i], widths[i])
            for i in reversed(range(last + 1))
        )
        self.up_blocks.append(PostNormBlock(2 * base, base, emb, config.dropout))
        self.conv_norm_out = nn.Identity()  # type: ignore[assignment]
        self.conv_out = zeroed(convolution(2, base, config.out_channels, kernel=1, padding=0))

    def _run(self, x: Tensor, given: Conditions, seen: list[Tensor] | None) -> Tensor:
        x = first = self.conv_in(x)
        skips: list[Tensor] = []
        for down in self.down_blocks:
            outputs, x = down(x, given)
            skips += outputs
        _, x = self.mid_block(x, given)  # type: ignore[misc]
        *ups, final = self.up_blocks
        for up in ups:
            own = skips.pop(), skips.pop()
            size = (skips[-1] if skips else first).shape[2:]
            outputs, x = up(x, given, own, size)
            if seen is not None:
                seen += outputs
        x = final(torch.cat((x, first), dim=1), given.emb)
        if seen is not None:
            seen.append(x)
        return x


class Level(Block):
    """Two residual blocks and one attention at one resolution.

    Args:
        config: Settings of the whole network.
        number: Of the level, whose settings the attention has, from fine to coarse.
        in_channels: Channels that each residual block reads.
        channels: Channels out.
        next_channels: Channels out of the convolution to the next level; None for none.
        halves: That convolution halves the resolution.
        attention_after: The residual block after which the attention is.
    """

    def __init__(
        self,
        config: LucidrainsConfig,
        number: int,
        in_channels: int,
        channels: int,
        next_channels: int | None = None,
        *,
        halves: bool = False,
        attention_after: int = 1,
    ) -> None:
        nn.Module.__init__(self)
        emb = 4 * config.block_out_channels[0]
        inputs = in_channels, in_channels
        self.resnets = nn.ModuleList(
            PostNormBlock(width, channels, emb, config.dropout) for width in inputs
        )
        full = config.full_attention[number] or next_channels is None
        kind = MemoryAttention if full else LinearAttention
        heads, head_dim = config.attention_heads[number], config.head_dims[number]
        self.attention = kind(channels, heads, head_dim, config.memory)
        self.attention_after = attention_after
        self.resampler: nn.Module = nn.Identity()
        if next_channels is not None:
            shape: dict[str, Any] = {"kernel": 2, "stride": 2, "padding": 0} if halves else {}
            self.resampler = convolution(2, channels, next_channels, **shape)
        self.gradient_checkpointing = False

    def forward(
        self,
        x: Tensor,
        given: Conditions,
        skips: Sequence[Tensor] | None = None,
        size: Sequence[int] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Both layers, and the way to the next level.

        Args:
            x: `[B, C, H, W]`.
            given: Conditions.
            skips: The encoder's outputs, one for each layer, to be joined to its input.
            size: Height and width of the next level, where it is the finer one.

        Returns:
            The outputs of the layers, `[B, channels, H, W]`, and `[B, next_channels, *size]`.
        """
        outputs = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, given, None if skips is None else skips[i])
            outputs.append(x)
        return outputs, self.resampler(x if size is None else enlarge(x, size))

    def _layer(self, i: int, x: Tensor, given: Conditions, skip: Tensor | None) -> Tensor:
        if skip is not None:
            x = torch.cat((x, skip), dim=1)
        x = self.resnets[i](x, given.emb)
        return x + self.attention(x) if i == self.attention_after else x

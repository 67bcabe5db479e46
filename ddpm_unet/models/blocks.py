"""The encoder's, middle and decoder's blocks: residual blocks and attention at one resolution.

    DOWN_BLOCKS["MyDownBlock2D"] = MyDownBlock      # constructed and called like `DownBlock`
    UNet(down_block_types=("MyDownBlock2D", "AttnDownBlock2D"), ...)

A part of a network that is made is replaced: `unet.mid_block = MyMiddle()`, called as
`mid_block(x, cond)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm_unet.config import UNetConfig
from ddpm_unet.models.architecture import Level
from ddpm_unet.models.attention import SelfAttention, Transformer
from ddpm_unet.models.layers import Downsample, ResidualBlock, Upsample


class Cond(NamedTuple):
    """What every block reads besides its input.

    Args:
        emb: Activated embedding of time and class, `[B or 1, 4 * block_out_channels[0]]`.
        context: Sequence to attend to, `[B, L, C]`.
        bias: Added to the attention logits over the context, `[B, 1, 1, L]`.
    """

    emb: Tensor
    context: Tensor | None = None
    bias: Tensor | None = None


class Block(nn.Module):
    """Residual blocks, which read `in_channels`, the first `attentions` followed by attention."""

    def __init__(
        self, config: UNetConfig, level: Level, in_channels: Sequence[int], attentions: int,
        output_scale: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        resnets = nn.ModuleList(
            residual_block(config, channels, level.channels, output_scale=output_scale)
            for channels in in_channels
        )
        self.attentions = nn.ModuleList(
            attention(config, level, output_scale)
            for _ in range(attentions if level.attention else 0)
        )
        self.resnets = resnets  # after the attentions, as in diffusers
        self.gradient_checkpointing = False

    def layer(self, i: int, x: Tensor, cond: Cond, skip: Tensor | None = None) -> Tensor:
        """The i-th residual block and its attention, of x joined to a `skip` if there is one."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._layer, i, x, cond, skip, use_reentrant=False)
        return self._layer(i, x, cond, skip)

    def _layer(self, i: int, x: Tensor, cond: Cond, skip: Tensor | None) -> Tensor:
        if skip is not None:
            x = torch.cat((x, skip), dim=1)
        x = self.resnets[i](x, cond.emb)
        if i < len(self.attentions):
            x = self.attentions[i](x, cond.context, cond.bias)
        return x


class DownBlock(Block):
    """One level of the encoder; the `last`, coarsest, does not halve the resolution."""

    def __init__(self, config: UNetConfig, level: Level, in_channels: int, last: bool) -> None:
        inputs = [in_channels] + [level.channels] * (level.layers - 1)
        super().__init__(config, level, inputs, attentions=level.layers)
        self.downsamplers = nn.ModuleList()
        if not last:
            self.downsamplers.append(
                residual_block(config, level.channels, level.channels, down=True)
                if level.resnet_resampling
                else Downsample(config.dims, level.channels, config.downsample_padding)
            )

    def forward(self, x: Tensor, cond: Cond) -> list[Tensor]:
        """The output of every layer, which the decoder will read, the last being the block's."""
        outputs = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, cond)
            outputs.append(x)
        for downsample in self.downsamplers:
            outputs.append(downsample(x, cond.emb))
        return outputs


class MidBlock(Block):
    """The middle: attention between residual blocks."""

    def __init__(self, config: UNetConfig, level: Level) -> None:
        inputs = [level.channels] * level.layers
        scale = config.mid_block_scale_factor
        super().__init__(config, level, inputs, attentions=level.layers - 1, output_scale=scale)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        """`[B, C, *space]` to the same."""
        for i in range(len(self.resnets)):
            x = self.layer(i, x, cond)
        return x


class UpBlock(Block):
    """One level of the decoder; the `last`, finest, does not double the resolution.

    It reads encoder outputs of `skip_channels`, one a layer.
    """

    def __init__(
        self, config: UNetConfig, level: Level, in_channels: int, skip_channels: Sequence[int],
        last: bool,
    ) -> None:  # fmt: skip
        inputs = [in_channels] + [level.channels] * (level.layers - 1)
        inputs = [x + skip for x, skip in zip(inputs, skip_channels, strict=True)]
        super().__init__(config, level, inputs, attentions=level.layers)
        self.upsamplers = nn.ModuleList()
        if not last:
            self.upsamplers.append(
                residual_block(config, level.channels, level.channels)
                if level.resnet_resampling
                else Upsample(config.dims, level.channels)
            )

    def forward(
        self, x: Tensor, skips: Sequence[Tensor], cond: Cond, size: Sequence[int] | None,
        seen: list[Tensor] | None,
    ) -> Tensor:  # fmt: skip
        """Join the encoder's outputs to `x`, one per layer, and enlarge the result.

        Args:
            x: `[B, in_channels, *space]`.
            skips: `[B, skip_channels[i], *space]` for layer i.
            cond: Conditioning.
            size: Spatial size of the next level; None for the last block.
            seen: If given, the output of every layer is appended.
        """
        for i, skip in enumerate(skips):
            x = self.layer(i, x, cond, skip)
            if seen is not None:
                seen.append(x)
        for upsample in self.upsamplers:
            x = upsample(x, cond.emb, size)
        return x


DOWN_BLOCKS: dict[str, type[nn.Module]] = dict.fromkeys(
    ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"), DownBlock
)
UP_BLOCKS: dict[str, type[nn.Module]] = dict.fromkeys(
    ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "CrossAttnUpBlock2D"), UpBlock
)


def residual_block(
    config: UNetConfig, in_channels: int, out_channels: int, **options: Any
) -> ResidualBlock:
    """A residual block with the network's settings; `options` are the block's own."""
    return ResidualBlock(
        config.dims,
        in_channels,
        out_channels,
        emb_channels=4 * config.block_out_channels[0],
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        act=config.act_fn,
        dropout=config.dropout,
        scale_shift=config.resnet_time_scale_shift == "scale_shift",
        **options,
    )


def attention(config: UNetConfig, level: Level, output_scale: float) -> SelfAttention | Transformer:
    """The attention of a level that has one."""
    if level.attention == "self":
        options: dict[str, Any] = {"eps": config.norm_eps, "output_scale": output_scale}
        heads = level.heads, level.head_dim
        return SelfAttention(level.channels, *heads, groups=level.groups, **options)
    sizes = level.channels, level.heads, level.transformer_layers, level.context_channels
    options = {"linear": config.use_linear_projection, "groups": config.norm_num_groups}
    options["only_cross_attention"] = level.only_cross_attention
    return Transformer(config.dims, *sizes, **options)

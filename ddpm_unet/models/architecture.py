"""What each level of a U-Net consists of, read off its `UNetConfig`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ddpm_unet.config import UNetConfig

AttentionKind = Literal["self", "cross"] | None

DOWN_BLOCKS: dict[str, AttentionKind] = {
    "DownBlock2D": None,
    "AttnDownBlock2D": "self",
    "ResnetDownsampleBlock2D": None,
    "CrossAttnDownBlock2D": "cross",
}
UP_BLOCKS: dict[str, AttentionKind] = {
    "UpBlock2D": None,
    "AttnUpBlock2D": "self",
    "ResnetUpsampleBlock2D": None,
    "CrossAttnUpBlock2D": "cross",
}
MID_BLOCKS = ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn")


@dataclass(frozen=True)
class Level:
    """One resolution of the encoder or the decoder, or the middle.

    Args:
        channels: Channels of its residual blocks.
        layers: Number of residual blocks.
        attention: What follows a residual block: self-attention, a transformer or nothing.
        heads: Heads of that attention.
        head_dim: Channels of a head.
        groups: Groups of the attention's normalisation, None for no normalisation.
        transformer_layers: Blocks of a transformer.
        context_channels: Channels of the context of a transformer.
        only_cross_attention: Both attentions of a transformer block attend to the context.
        resnet_resampling: Halve or double with a residual block, not a convolution.
    """

    channels: int
    layers: int
    attention: AttentionKind
    heads: int
    head_dim: int
    groups: int | None
    transformer_layers: int
    context_channels: int
    only_cross_attention: bool
    resnet_resampling: bool = False


def down_levels(config: UNetConfig) -> list[Level]:
    """The encoder's levels, from fine to coarse."""
    return [
        replace(
            _level(config, i, DOWN_BLOCKS[block]),
            layers=at_level(config.layers_per_block, i),
            resnet_resampling=_resnet_resampling(block, config.downsample_type),
        )
        for i, block in enumerate(config.down_block_types)
    ]


def up_levels(config: UNetConfig) -> list[Level]:
    """The decoder's levels, from coarse to fine."""
    levels = []
    for j, block in enumerate(config.up_block_types):
        i = len(config.up_block_types) - 1 - j
        kind = UP_BLOCKS[block]
        backwards = kind == "self" and config.conditional
        levels.append(
            replace(
                # For self-attention in conditional networks diffusers reads it from fine to coarse.
                _level(config, i, kind, head_setting_of=j if backwards else i),
                layers=at_level(config.layers_per_block, i) + 1,
                resnet_resampling=_resnet_resampling(block, config.upsample_type),
            )
        )
    return levels


def mid_level(config: UNetConfig) -> Level | None:
    """The middle block, if any."""
    last = len(config.block_out_channels) - 1
    if config.mid_block_type is None:
        return None
    if config.mid_block_type == "UNetMidBlock2DCrossAttn":
        return replace(_level(config, last, "cross"), layers=2, only_cross_attention=False)
    if config.conditional:  # diffusers' UNet2DConditionModel builds a lone residual block
        return replace(_level(config, last, None), layers=1)
    groups = config.attn_norm_num_groups
    if groups is None and config.resnet_time_scale_shift == "default":
        groups = config.norm_num_groups
    kind: AttentionKind = "self" if config.add_attention else None
    return replace(_level(config, last, kind), layers=2, groups=groups)


def at_level(setting: Any, i: int) -> Any:
    """The value at level `i`, counted from the finest, of a setting given once or per level."""
    return setting[i] if isinstance(setting, Sequence) else setting


def _level(
    config: UNetConfig, i: int, attention: AttentionKind, head_setting_of: int | None = None
) -> Level:
    channels = config.block_out_channels[i]
    setting = at_level(config.attention_head_dim, i if head_setting_of is None else head_setting_of)
    if attention == "cross":
        heads, head_dim = setting, channels // setting
    else:
        head_dim = setting or channels
        heads = channels // head_dim
    return Level(
        channels=channels,
        layers=1,
        attention=attention,
        heads=heads,
        head_dim=head_dim,
        groups=config.norm_num_groups,
        transformer_layers=at_level(config.transformer_layers_per_block, i),
        context_channels=at_level(config.cross_attention_dim, i),
        only_cross_attention=at_level(config.only_cross_attention, i),
    )


def _resnet_resampling(block: str, setting: str) -> bool:
    return block.startswith("Resnet") or (block.startswith("Attn") and setting == "resnet")

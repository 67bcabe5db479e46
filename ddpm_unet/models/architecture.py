"""What each level of a `UNet` consists of, and which configurations make no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from ddpm_unet.config import UNetConfig
from ddpm_unet.config.reading import check_settings
from ddpm_unet.errors import UserError, did_you_mean

AttentionKind = Literal["self", "cross"] | None
MID_BLOCKS = ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn")
DDPM_ONLY = ("downsample_type", "upsample_type", "add_attention", "attn_norm_num_groups")
CONDITIONAL_ONLY = (
    "cross_attention_dim",
    "transformer_layers_per_block",
    "use_linear_projection",
    "only_cross_attention",
    "upcast_attention",
)
PER_LEVEL = (
    "layers_per_block",
    "attention_head_dim",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "only_cross_attention",
)


@dataclass(frozen=True)
class Level:
    """One resolution of the encoder or the decoder, or the middle."""

    channels: int  # of its residual blocks
    layers: int  # residual blocks
    attention: AttentionKind  # what follows each: self-attention, a transformer or nothing
    heads: int
    head_dim: int  # channels of a head
    groups: int | None  # of the attention's normalisation, None for no normalisation
    transformer_layers: int  # blocks of a transformer
    context_channels: int
    only_cross_attention: bool  # both attentions of a transformer block attend to the context
    resnet_resampling: bool = False  # halve or double with a residual block, not a convolution


def down_levels(config: UNetConfig) -> list[Level]:
    """The encoder's levels, from fine to coarse."""
    blocks, resampler = config.down_block_types, config.downsample_type
    return [_level(config, i, block, resampler) for i, block in enumerate(blocks)]


def up_levels(config: UNetConfig) -> list[Level]:
    """The decoder's levels, from coarse to fine, of one residual block more."""
    blocks, resampler = config.up_block_types, config.upsample_type
    last = len(blocks) - 1
    return [_level(config, last - j, block, resampler, 1) for j, block in enumerate(blocks)]


def mid_level(config: UNetConfig) -> Level | None:
    """The middle block, if any."""
    last = len(config.block_out_channels) - 1
    if config.mid_block_type is None:
        return None
    if config.mid_block_type == "UNetMidBlock2DCrossAttn":
        level = _level(config, last, "CrossAttn", "conv")
        return replace(level, layers=2, only_cross_attention=False)
    if config.conditional:  # diffusers' UNet2DConditionModel builds a lone residual block
        return replace(_level(config, last, "", "conv"), layers=1)
    groups = config.attn_norm_num_groups
    if groups is None and config.resnet_time_scale_shift == "default":
        groups = config.norm_num_groups
    level = _level(config, last, "Attn" if config.add_attention else "", "conv")
    return replace(level, layers=2, groups=groups)


def _level(config: UNetConfig, i: int, block: str, resampler: str, more: int = 0) -> Level:
    """Level `i` of the encoder, or of the decoder, which has one layer `more`."""

    def at(setting: Any, i: int = i) -> Any:  # given once or per level
        return setting[i] if isinstance(setting, Sequence) else setting

    kind: AttentionKind = "self" if "Attn" in block else None
    kind = "cross" if block.startswith("CrossAttn") else kind
    channels, heads_of = config.block_out_channels[i], i
    if more and kind == "self" and config.conditional:  # which diffusers reads from fine to coarse
        heads_of = len(config.block_out_channels) - 1 - i
    setting = at(config.attention_head_dim, heads_of)
    head_dim = channels // setting if kind == "cross" else setting or channels
    return Level(
        channels=channels,
        layers=at(config.layers_per_block) + more,
        attention=kind,
        heads=setting if kind == "cross" else channels // head_dim,
        head_dim=head_dim,
        groups=config.norm_num_groups,
        transformer_layers=at(config.transformer_layers_per_block),
        context_channels=at(config.cross_attention_dim),
        only_cross_attention=at(config.only_cross_attention),
        resnet_resampling=block.startswith("Resnet")
        or (block.startswith("Attn") and resampler == "resnet"),
    )


def check(config: UNetConfig, down_blocks: Iterable[str], up_blocks: Iterable[str]) -> None:
    """Refuse a configuration that makes no network of these blocks, or none for diffusers to read.

    Raises:
        UserError: Names the setting and the cure.
    """
    check_settings(config)
    levels = len(config.block_out_channels)
    if levels == 0:
        raise UserError("block_out_channels is empty; give the channels of at least one level")
    for name, known in (("down_block_types", down_blocks), ("up_block_types", up_blocks)):
        for block in getattr(config, name):
            _check_block(name, block, known)
    if config.mid_block_type is not None:
        _check_block("mid_block_type", config.mid_block_type, MID_BLOCKS)
    for name in ("down_block_types", "up_block_types", *PER_LEVEL):
        value = getattr(config, name)
        if isinstance(value, Sequence) and len(value) != levels:
            raise UserError(
                f"{name} has {len(value)} entries and block_out_channels {levels};"
                f" give one per level{', or one number for all' if name in PER_LEVEL else ''}"
            )
    _check_kind(config)
    _check_channels(config)


def _check_block(name: str, block: str, known: Iterable[str]) -> None:
    if block not in known:
        cure = did_you_mean(block, known, f"take one of {', '.join(known)}", 0.8)
        raise UserError(f"{name}: unknown block {block!r}; {cure}")


def _check_kind(config: UNetConfig) -> None:
    blocks = (*config.down_block_types, str(config.mid_block_type), *config.up_block_types)
    cross = [block for block in blocks if "CrossAttn" in block]
    if cross and not config.conditional:
        raise UserError(
            f"cross_attention_dim is null, but {cross[0]} attends to a context;"
            " set it to the context's channels"
        )
    default = {field.name: field.default for field in fields(UNetConfig)}
    foreign: tuple[str, ...] = CONDITIONAL_ONLY
    whose, cure = "conditional networks", "set cross_attention_dim"
    if config.conditional:
        foreign, whose, cure = DDPM_ONLY, "networks without context", f"{cure} to null"
    for name in foreign:
        if getattr(config, name) != default[name]:
            raise UserError(f"{name} is for {whose} only; leave it at {default[name]!r}, or {cure}")
    if config.conditional and config.attention_head_dim is None:
        raise UserError(
            "attention_head_dim is null, which is for networks without context only; give a number"
        )


def _check_channels(config: UNetConfig) -> None:
    for channels in config.block_out_channels:
        if channels % config.norm_num_groups:
            raise UserError(
                f"block_out_channels: {channels} is not a multiple of"
                f" norm_num_groups {config.norm_num_groups}; change either"
            )
    groups = config.attn_norm_num_groups
    if groups is not None and config.block_out_channels[-1] % groups:
        raise UserError(
            f"attn_norm_num_groups {groups} does not divide the last of block_out_channels,"
            f" {config.block_out_channels[-1]}; change either"
        )
    for level in (*down_levels(config), mid_level(config), *up_levels(config)):
        if level is not None and level.attention and 0 in (level.heads, level.head_dim):
            raise UserError(
                f"attention_head_dim: {config.attention_head_dim} is too large for a level"
                f" of {level.channels} channels; take at most that many"
            )
    if config.block_out_channels[0] // 2 <= config.freq_shift:
        raise UserError(
            f"block_out_channels: the first, {config.block_out_channels[0]}, is too small for"
            f" freq_shift {config.freq_shift}; take at least {2 * config.freq_shift + 2}"
        )

"""What each level of a `UNet` consists of, and which configurations make no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
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
    return [
        _level(
            config,
            i,
            _attention(block),
            layers=_at_level(config.layers_per_block, i),
            resnet_resampling=_resnet_resampling(block, config.downsample_type),
        )
        for i, block in enumerate(config.down_block_types)
    ]


def up_levels(config: UNetConfig) -> list[Level]:
    """The decoder's levels, from coarse to fine."""
    levels = []
    for j, block in enumerate(config.up_block_types):
        i, kind = len(config.up_block_types) - 1 - j, _attention(block)
        level = _level(
            config,
            i,
            kind,
            # For self-attention in conditional networks diffusers reads it from fine to coarse.
            heads_of=j if kind == "self" and config.conditional else i,
            layers=_at_level(config.layers_per_block, i) + 1,
            resnet_resampling=_resnet_resampling(block, config.upsample_type),
        )
        levels.append(level)
    return levels


def mid_level(config: UNetConfig) -> Level | None:
    """The middle block, if any."""
    last = len(config.block_out_channels) - 1
    if config.mid_block_type is None:
        return None
    if config.mid_block_type == "UNetMidBlock2DCrossAttn":
        return _level(config, last, "cross", layers=2, only_cross_attention=False)
    if config.conditional:  # diffusers' UNet2DConditionModel builds a lone residual block
        return _level(config, last, None)
    groups = config.attn_norm_num_groups
    if groups is None and config.resnet_time_scale_shift == "default":
        groups = config.norm_num_groups
    return _level(config, last, "self" if config.add_attention else None, layers=2, groups=groups)


def _attention(block: str) -> AttentionKind:
    return "cross" if block.startswith("CrossAttn") else "self" if "Attn" in block else None


def _at_level(setting: Any, i: int) -> Any:
    """The value at level `i`, from the finest on, of a setting given once or per level."""
    return setting[i] if isinstance(setting, Sequence) else setting


def _level(
    config: UNetConfig, i: int, attention: AttentionKind, heads_of: int | None = None, **own: Any
) -> Level:
    """Level `i`, whose heads are those of level `heads_of`, with settings of its `own`."""
    channels = config.block_out_channels[i]
    setting = _at_level(config.attention_head_dim, i if heads_of is None else heads_of)
    head_dim = channels // setting if attention == "cross" else setting or channels
    usual: dict[str, Any] = {
        "layers": 1,
        "heads": setting if attention == "cross" else channels // head_dim,
        "groups": config.norm_num_groups,
        "transformer_layers": _at_level(config.transformer_layers_per_block, i),
        "context_channels": _at_level(config.cross_attention_dim, i),
        "only_cross_attention": _at_level(config.only_cross_attention, i),
    }
    return Level(channels=channels, attention=attention, head_dim=head_dim, **usual | own)


def _resnet_resampling(block: str, setting: str) -> bool:
    return block.startswith("Resnet") or (block.startswith("Attn") and setting == "resnet")


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

"""Refusal of a `UNetConfig` that makes no network, or none that diffusers could read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from ddpm_unet.config import UNetConfig
from ddpm_unet.config.reading import check_limits
from ddpm_unet.errors import UserError
from ddpm_unet.models.architecture import (
    DOWN_BLOCKS,
    MID_BLOCKS,
    UP_BLOCKS,
    down_levels,
    mid_level,
    up_levels,
)
from ddpm_unet.models.layers.normalisation import ACTIVATIONS

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


def check(config: UNetConfig) -> None:
    """Refuse a configuration that makes no network.

    Raises:
        UserError: Naming the setting and the cure.
    """
    check_limits(config)
    _check_blocks(config)
    _check_kind(config)
    _check_channels(config)
    _check_choices(config)


def _check_blocks(config: UNetConfig) -> None:
    levels = len(config.block_out_channels)
    if levels == 0:
        raise UserError("block_out_channels is empty; give the channels of at least one level")
    for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        blocks = getattr(config, name)
        for block in blocks:
            if block not in known:
                raise UserError(f"{name}: unknown block {block!r}; {_instead(block, known)}")
        if len(blocks) != levels:
            raise UserError(
                f"{name} has {len(blocks)} entries and block_out_channels {levels};"
                " give one per level"
            )
    mid = config.mid_block_type
    if mid is not None and mid not in MID_BLOCKS:
        raise UserError(
            f"mid_block_type: unknown block {mid!r}; {_instead(mid, MID_BLOCKS)}, or null"
        )
    for name in PER_LEVEL:
        value = getattr(config, name)
        if isinstance(value, Sequence) and len(value) != levels:
            raise UserError(
                f"{name} has {len(value)} entries and block_out_channels {levels};"
                " give one per level, or one number for all"
            )


def _check_kind(config: UNetConfig) -> None:
    blocks = (*config.down_block_types, str(config.mid_block_type), *config.up_block_types)
    cross = [block for block in blocks if "CrossAttn" in block]
    if cross and not config.conditional:
        raise UserError(
            f"cross_attention_dim is null, but {cross[0]} attends to a context;"
            " set it to the context's channels"
        )
    default = {field.name: field.default for field in fields(UNetConfig)}
    foreign, whose, cure = (
        (DDPM_ONLY, "networks without context", "set cross_attention_dim to null")
        if config.conditional
        else (CONDITIONAL_ONLY, "conditional networks", "set cross_attention_dim")
    )
    for name in foreign:
        if getattr(config, name) != default[name]:
            raise UserError(f"{name} is for {whose} only; leave it at {default[name]!r}, or {cure}")
    if config.conditional and config.attention_head_dim is None:
        raise UserError(
            "attention_head_dim is null, which is for networks without context only; give a number"
        )


def _check_channels(config: UNetConfig) -> None:
    nullable = ("attention_head_dim", "cross_attention_dim")
    for name in (
        "in_channels",
        "out_channels",
        "block_out_channels",
        "norm_num_groups",
        *PER_LEVEL,
    ):
        value = getattr(config, name)
        for number in value if isinstance(value, Sequence) else [value]:
            if number is None and name not in nullable:
                raise UserError(f"{name} is null; give a number")
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


def _check_choices(config: UNetConfig) -> None:
    choices: dict[str, Sequence[Any]] = {
        "dims": (2, 3),
        "downsample_padding": (0, 1),
        "downsample_type": ("conv", "resnet"),
        "upsample_type": ("conv", "resnet"),
        "act_fn": tuple(ACTIVATIONS),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "class_embed_type": (None, "timestep", "identity"),
    }
    for name, known in choices.items():
        value = getattr(config, name)
        if value not in known:
            raise UserError(
                f"{name}: {value!r} is not supported; take one of {', '.join(map(str, known))}"
            )


def _instead(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.8)
    return f"did you mean {near[0]}?" if near else f"take one of {', '.join(known)}"

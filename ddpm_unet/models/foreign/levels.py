"""From what the tensors say of each level, and what was told, to a `UNetConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ddpm_unet.config import UNetConfig
from ddpm_unet.models.foreign.checkpoint import Checkpoint

Value = TypeVar("Value")


@dataclass(frozen=True)
class Levels:
    """The levels of a foreign U-Net, whose middle attends.

    Args:
        channels: Channels, from fine to coarse.
        layers: Residual blocks in the encoder, from fine to coarse.
        down_attends: Whether the encoder attends, from fine to coarse.
        up_attends: Whether the decoder attends, from coarse to fine.
        resampler: A tensor of the first residual block that halves the resolution, None where
            convolutions do it.
        transformers: Blocks of the transformers, from fine to coarse; None: self-attention.
        context: Channels of the context of the transformers.
    """

    channels: tuple[int, ...]
    layers: tuple[int, ...]
    down_attends: tuple[bool, ...]
    up_attends: tuple[bool, ...]
    resampler: str | None
    transformers: tuple[int, ...] | None = None
    context: int | None = None

    @property
    def attends(self) -> list[bool]:
        """Whether anything attends at a level, from fine to coarse."""
        either = [d or u for d, u in zip(self.down_attends, self.up_attends[::-1], strict=True)]
        return [*either[:-1], True]


def network(
    given: Checkpoint, levels: Levels, questions: Mapping[str, str | None], **rest: Any
) -> UNetConfig:
    """The architecture.

    Args:
        given: The checkpoint.
        levels: What its tensors say.
        questions: What must be told besides the heads; see `Checkpoint.ask`.
        rest: Further settings of a `UNetConfig`.

    Raises:
        UserError: Something is left open, or `UNet` cannot hold this network.
    """
    given.ask({"heads": given.possible_heads(levels.channels, levels.attends), **questions})
    dims = given.head_dims(levels.channels, levels.attends)
    plain, attending = "{}Block2D", "Attn{}Block2D"
    if levels.resampler:
        plain = "Resnet{}sampleBlock2D"
    if levels.transformers is None:
        resampling = "resnet" if levels.resampler else "conv"
        rest |= {
            "attention_head_dim": per_level(dims, levels.attends),
            "attn_norm_num_groups": rest["norm_num_groups"],
            "downsample_type": resampling,
            "upsample_type": resampling,
        }
    else:
        attending = "CrossAttn{}Block2D"
        heads = [c // d for c, d in zip(levels.channels, dims, strict=True)]
        rest |= {
            "attention_head_dim": per_level(heads, levels.attends),
            "cross_attention_dim": levels.context,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "transformer_layers_per_block": per_level(levels.transformers, levels.attends),
        }
        if levels.resampler and any(levels.down_attends[:-1] + levels.up_attends[:-1]):
            given.refuse(levels.resampler, "is of a residual block that halves beside transformers")
    return UNetConfig(
        block_out_channels=levels.channels,
        layers_per_block=per_level(levels.layers, [True] * len(levels.layers)),
        down_block_types=_blocks("Down", plain, attending, levels.down_attends),
        up_block_types=_blocks("Up", plain, attending, levels.up_attends),
        **rest,
    )


def per_level(values: Sequence[Value], matters: Sequence[bool]) -> Value | tuple[Value, ...]:
    """One value if it is the same at every level where it matters, else one per level."""
    chosen = {value for value, used in zip(values, matters, strict=True) if used}
    return chosen.pop() if len(chosen) == 1 else tuple(values)


def _blocks(way: str, plain: str, attending: str, attends: Sequence[bool]) -> tuple[str, ...]:
    return tuple((attending if used else plain).format(way) for used in attends)

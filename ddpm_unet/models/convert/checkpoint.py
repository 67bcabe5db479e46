"""The tensors of one network of another code base, and the questions that they leave open."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

import torch
from torch import Tensor

from ddpm_unet.config import CheckpointHints, UNetConfig
from ddpm_unet.errors import UserError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Levels:
    """The levels of a U-Net whose middle attends, from fine to coarse but for `up_attends`."""

    channels: tuple[int, ...]
    layers: tuple[int, ...]  # residual blocks in the encoder
    down_attends: tuple[bool, ...]
    up_attends: tuple[bool, ...]  # from coarse to fine
    resampler: str | None  # a tensor of the first residual block that halves the resolution, if any
    transformers: tuple[int, ...] | None = None  # blocks of each; None: self-attention
    context: int | None = None  # channels of what the transformers attend to

    @property
    def attends(self) -> list[bool]:
        """Whether anything attends at a level, from fine to coarse."""
        either = [d or u for d, u in zip(self.down_attends, self.up_attends[::-1], strict=True)]
        return [*either[:-1], True]


class Checkpoint(ABC):
    """Tensors of one network by the names of the code base that wrote them; a subclass knows one.

    Attributes:
        NAME: Of the code base.
        ANCHOR: A tensor that every such network has, and no other.
    """

    NAME: ClassVar[str]
    ANCHOR: ClassVar[str]

    def __init__(self, file: Path, weights: Mapping[str, Tensor], hints: CheckpointHints) -> None:
        self.file, self.weights, self.hints = file, weights, hints

    @abstractmethod
    def config(self) -> UNetConfig:
        """The architecture; refused where `UNet` cannot hold it or something is left open."""

    @abstractmethod
    def renamed(self) -> dict[str, Tensor]:
        """The weights by the names of `UNet`."""

    def shape(self, name: str) -> torch.Size:
        """Shape of a tensor that must be there."""
        if name not in self.weights:
            self.refuse(name, f"is missing, which every U-Net of {self.NAME} has")
        return self.weights[name].shape

    def has(self, module: str) -> bool:
        """Whether a module of this name has any tensors."""
        return any(name.startswith(f"{module}.") for name in self.weights)

    def count(self, modules: str) -> int:
        """Length of a list of modules, `modules.0`, `modules.1`, ..."""
        number = 0
        while self.has(f"{modules}.{number}"):
            number += 1
        return number

    def refuse(self, name: str, fault: str) -> NoReturn:
        """Say which tensor makes this a network that `UNet` is not."""
        raise UserError(f"{self.file}: tensor {name} {fault}; UNet cannot hold this network")

    def network(
        self, levels: Levels, questions: Mapping[str, str | None], **rest: Any
    ) -> UNetConfig:
        """The architecture, of `levels` and `rest`, further settings.

        `questions` have the possible answers to what is open besides the heads, by the name of the
        hint; None where there is only one.
        """
        heads = self._possible_heads(levels)
        self._ask({"heads": heads, **questions})
        dims = self._head_dims(levels, heads)
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
            heads_at = [c // d for c, d in zip(levels.channels, dims, strict=True)]
            rest |= {
                "attention_head_dim": per_level(heads_at, levels.attends),
                "cross_attention_dim": levels.context,
                "mid_block_type": "UNetMidBlock2DCrossAttn",
                "transformer_layers_per_block": per_level(levels.transformers, levels.attends),
            }
            beside = any(levels.down_attends[:-1] + levels.up_attends[:-1])
            if levels.resampler and beside:
                fault = "is of a residual block that halves beside transformers"
                self.refuse(levels.resampler, fault)

        def blocks(way: str, attends: Sequence[bool]) -> tuple[str, ...]:
            return tuple((attending if used else plain).format(way) for used in attends)

        return UNetConfig(
            block_out_channels=levels.channels,
            layers_per_block=per_level(levels.layers, [True] * len(levels.layers)),
            down_block_types=blocks("Down", levels.down_attends),
            up_block_types=blocks("Up", levels.up_attends),
            **rest,
        )

    def _ask(self, questions: Mapping[str, str | None]) -> None:
        answered = {name for name in questions if getattr(self.hints, name) is not None}
        if self.hints.head_dim is not None:
            answered.add("heads")
        missing = [
            f"{name} {answers}"
            for name, answers in questions.items()
            if answers is not None and name not in answered
        ]
        if missing:
            raise UserError(
                f"{self.file}: the tensors of a {self.NAME} U-Net do not say everything; give also"
                f" {' and '.join(missing)}"
            )

    def _possible_heads(self, levels: Levels) -> str:
        """The answers to the question how many heads there are."""
        used = zip(levels.channels, levels.attends, strict=True)
        return f"N, or head_dim N (of {divisors([c for c, attends in used if attends])})"

    def _head_dims(self, levels: Levels, possible: str) -> list[int]:
        """Channels of a head at every level; 1 where nothing attends."""
        heads, head_dim = self.hints.heads, self.hints.head_dim
        if heads is not None and head_dim is not None:
            raise UserError("heads and head_dim say the same; give one of the two")
        divisor, setting = (head_dim, "head_dim") if heads is None else (heads, "heads")
        dims = []
        for width, attending in zip(levels.channels, levels.attends, strict=True):
            if attending and (not divisor or divisor < 0 or width % divisor):
                raise UserError(
                    f"{self.file}: {setting} {divisor} does not divide {width} channels; "
                    f"give {setting} {possible}"
                )
            dims.append((width // heads if heads else head_dim or 1) if attending else 1)
        return dims


def divisors(numbers: Sequence[int]) -> str:
    """All common divisors, for people."""
    common = gcd(*numbers)
    return ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)


def per_level(values: Sequence[Value], matters: Sequence[bool]) -> Value | tuple[Value, ...]:
    """One value if it is the same at every level where it matters, else one per level."""
    chosen = {value for value, used in zip(values, matters, strict=True) if used}
    return chosen.pop() if len(chosen) == 1 else tuple(values)

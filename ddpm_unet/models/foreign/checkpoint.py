"""The tensors of one foreign network, and the questions that they leave open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import gcd
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from ddpm_unet.config.foreign import ForeignConfig
from ddpm_unet.errors import UserError

PeerNetwork = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""Another toolkit's network: (x, t, context, class labels) -> prediction."""


class Checkpoint:
    """Weights by the names of the toolkit that wrote them.

    Args:
        file: Where they come from.
        peer: Name of that toolkit, for messages.
        weights: Tensors of one network, by their names in it.
        told: What the tensors do not say.
    """

    def __init__(
        self, file: Path, peer: str, weights: Mapping[str, Tensor], told: ForeignConfig
    ) -> None:
        self.file = file
        self.peer = peer
        self.weights = weights
        self.told = told

    def shape(self, name: str) -> torch.Size:
        """Shape of a tensor.

        Raises:
            UserError: There is no such tensor.
        """
        if name not in self.weights:
            self.refuse(name, f"is missing, which every U-Net of {self.peer} has")
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
        """Say which tensor makes this a network that `UNet` is not.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self.file}: tensor {name} {fault}; UNet cannot hold this network")

    def ask(self, questions: Mapping[str, str | None]) -> None:
        """Ask for all that is not told, at once.

        Args:
            questions: Possible answers, by the name of the setting; None where there is only one.

        Raises:
            UserError: Something is not told.
        """
        answered = {name for name in questions if getattr(self.told, name) is not None}
        if self.told.head_dim is not None:
            answered.add("heads")
        missing = [
            f"--{name} {answers}"
            for name, answers in questions.items()
            if answers is not None and name not in answered
        ]
        if missing:
            raise UserError(
                f"{self.file}: the tensors of a {self.peer} U-Net do not say everything; give"
                f" ddpm-unet convert also {' and '.join(missing)}"
            )

    def possible_heads(self, channels: Sequence[int], attends: Sequence[bool]) -> str:
        """The answers to the question how many heads there are."""
        common = gcd(*(c for c, used in zip(channels, attends, strict=True) if used))
        numbers = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        return f"N, or --head_dim N (of {numbers})"

    def head_dims(self, channels: Sequence[int], attends: Sequence[bool]) -> list[int]:
        """Channels of a head at every level, as told; 1 where nothing attends.

        Raises:
            UserError: It does not divide the channels, or both settings are given.
        """
        heads, head_dim = self.told.heads, self.told.head_dim
        if heads is not None and head_dim is not None:
            raise UserError("heads and head_dim say the same; give one of the two")
        divisor = head_dim if heads is None else heads
        dims = []
        for width, attending in zip(channels, attends, strict=True):
            if attending and (not divisor or divisor < 0 or width % divisor):
                setting = "head_dim" if heads is None else "heads"
                raise UserError(
                    f"{self.file}: {setting} {divisor} does not divide {width} channels; "
                    f"give --{setting} {self.possible_heads(channels, attends)}"
                )
            dims.append((width // heads if heads else head_dim or 1) if attending else 1)
        return dims

"""Places in the endless sequence of items that a run sees, epoch after epoch in a new order.

What stands at a position is a function of (seed, position), so any process can make any part of
any batch, in any order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from ddpm_unet.randomness import bits

Batch = dict[str, Tensor]
Positions = Sequence[int] | np.ndarray


class PositionStream(Dataset[Batch], ABC):
    """Batches by position over a data set, epoch after epoch in a new order.

    Everything that is drawn goes by the seed. `images.name(i)` is for messages.
    """

    def __init__(self, images: Any, seed: int, counts: np.ndarray) -> None:
        """Visit each item `counts` (`int64 [N]`) times in an epoch."""
        self.images, self.seed = images, seed
        self._bounds = np.cumsum(counts)

    @property
    def epoch_length(self) -> int:
        """Positions in an epoch."""
        return int(self._bounds[-1])

    @abstractmethod
    def __getitems__(self, positions: Positions) -> Batch:
        """The batch at these positions, whatever they are; "position" is `int64 [B]`."""

    def __getitem__(self, position: int) -> Batch:
        return {key: values[0] for key, values in self.__getitems__([position]).items()}

    def numbers(self, positions: Positions) -> np.ndarray:
        """The item at each position, `int64 [B]`."""
        items = order(self.seed, np.asarray(positions, dtype=np.int64), self.epoch_length)
        return np.searchsorted(self._bounds, items, side="right")

    def name(self, position: int) -> str:
        """The image from which a position is cut, for messages."""
        return self.images.name(int(self.numbers([position])[0]))

    @property
    def digest(self) -> str:
        """Of the data set, to tell whether it changed between stop and resume."""
        return self.images.digest


def order(seed: int, positions: np.ndarray, length: int) -> np.ndarray:
    """The item at each position of the stream, `int64 [B]` in [0, length).

    Epoch e, positions [e length, (e + 1) length), is a permutation that is a function of
    (seed, e): every item once. It costs one sort an epoch (0.1 s for a million items).
    """
    epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), length)
    items = np.empty_like(places)
    for epoch in set(epochs.tolist()):
        chosen = epochs == epoch
        items[chosen] = _permutation(seed, epoch, length)[places[chosen]]
    return items


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.argsort(bits(seed, f"data/order/{epoch}", np.arange(length)), kind="stable")

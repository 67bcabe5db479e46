"""Positions and windows: which item stands where in a run, and what is cut from it.

A position is a place in the endless sequence of items that a run sees, epoch after epoch in a new
order. What stands there is a function of (seed, position), so any process can make any part of
any batch, in any order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddpm_unet.data.pixels import box
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


class Windows(NamedTuple):
    """One window per position, turned anticlockwise in its last two axes, then mirrored."""

    image: np.ndarray
    """Its number, `int64 [B]`."""
    corner: np.ndarray
    """(Front,) top and left, `int64 [B, axes]`."""
    rot90: np.ndarray
    """Quarter turns, `int64 [B]`."""
    mirrored: np.ndarray
    """Along each axis, `bool [B, axes]`."""


def cut_window(planes: Any, corner: Sequence[int], size: Sequence[int]) -> Any:
    """The window `[..., *size]` at a corner, which may be below 0, of `[..., (D,) H, W]`.

    Beyond the edges it is mirrored.
    """
    lengths = planes.shape[-len(size) :]
    places = list(zip(corner, size, lengths, strict=True))
    if all(start >= 0 and start + n <= length for start, n, length in places):
        return planes[box(corner, size)]
    return planes[(..., *np.ix_(*(mirrored(*place) for place in places)))]


def mirrored(start: int, count: int, length: int) -> np.ndarray:
    """Indices of an endless row that runs to and fro between 0 and length - 1."""
    places = np.arange(start, start + count) % max(2 * (length - 1), 1)
    return np.minimum(places, 2 * (length - 1) - places)


def rare_pixel(mask: np.ndarray, kind: float, pixel: float) -> np.ndarray | None:
    """Where a class is that covers less of the labelled pixels than the mean one, `int64 [axes]`.

    Of such classes and their pixels those are taken that `kind` and `pixel`, in [0, 1), point at;
    None where all that is there is equally frequent.
    """
    counts = np.bincount(mask[mask >= 0])
    rare = np.flatnonzero((counts > 0) & (counts * np.count_nonzero(counts) < counts.sum()))
    if not len(rare):
        return None
    places = np.flatnonzero(mask == rare[int(kind * len(rare))])
    return np.array(np.unravel_index(places[int(pixel * len(places))], mask.shape))


def unturned(image: np.ndarray, corner: np.ndarray) -> Windows:
    """Windows as they are."""
    return Windows(image, corner, np.zeros_like(image), np.zeros(corner.shape, dtype=bool))


def orientation_in_words(flips: bool, rot90: bool, group: str = "") -> str:
    """What a description says of windows of random orientation, and how to switch it off."""
    changes = {"flips": "mirrored"} if flips else {}
    changes |= {"rot90": "turned by quarters"} if rot90 else {}
    names = " and ".join(f"{group}{name}" for name in changes)
    how = f" at random (where left and up matter, set {names} to false)"
    return f", {' and '.join(changes.values())}{how}" if changes else ""


def orient_windows(batch: np.ndarray, windows: Windows) -> None:
    """Turn and mirror `[B, ..., (S,) S, S]` in place.

    A quarter turn is a transposition followed by mirroring (numpy.rot90), so one masked
    assignment for it and one an axis do for all orientations.
    """
    mirrored = windows.mirrored.T
    if windows.rot90.any():
        transposed = windows.rot90 % 2 == 1
        batch[transposed] = batch[transposed].swapaxes(-1, -2)
        mirrored = mirrored.copy()
        mirrored[-2] ^= (windows.rot90 == 1) | (windows.rot90 == 2)
        mirrored[-1] ^= windows.rot90 >= 2
    values = batch.view(f"i{batch.itemsize}")  # torch mirrors several times as fast as numpy,
    for axis, chosen in enumerate(mirrored, start=-len(mirrored)):  # but not all unsigned types
        if chosen.any():
            values[chosen] = torch.from_numpy(values[chosen]).flip(axis).numpy()

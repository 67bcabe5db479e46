"""Which window of which picture, and how it is turned: functions of (seed, position) alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

from ddpm_unet.data.image_set import Layout
from ddpm_unet.randomness import bits, integers

CORNER = ("front", "top", "left")
MIRRORED = ("reversed", "upended", "mirrored")
"""What is drawn for each axis, the last ones for pictures."""


class Windows(NamedTuple):
    """One window per position: picture, corner, orientation; corners and mirrors per axis.

    The window is turned anticlockwise by quarter turns of its last two axes, then mirrored.

    Attributes:
        picture: Its number, `int64 [B]`.
        corner: (Front,) top and left, `int64 [B, axes]`.
        turns: Quarters, `int64 [B]`.
        mirrored: Along each axis, `bool [B, axes]`.
    """

    picture: np.ndarray
    corner: np.ndarray
    turns: np.ndarray
    mirrored: np.ndarray


def window_counts(sizes: np.ndarray, size: int) -> np.ndarray:
    """How many windows each picture counts for, `int64 [N]`: its area over the window's.

    Args:
        sizes: (Depth,) height and width of each, `int64 [N, axes]`.
        size: Of every side of a window.
    """
    return np.maximum(1, sizes.prod(1) // size ** sizes.shape[1])


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


def random_windows(
    room: np.ndarray,
    image: np.ndarray,
    flips: Sequence[bool],
    rot90: bool,
    seed: int,
    positions: np.ndarray,
) -> Windows:
    """A random window of each position's image, any place as likely as another.

    Args:
        room: Number of places of a window along each axis, `int64 [B, axes]`, at least 1.
        image: The image at each position, `int64 [B]`.
        flips: Whether to mirror along each axis.
        rot90: Whether to turn.
        seed: Of the run.
        positions: In the training stream, `int64 [B]`.
    """

    def draw(purpose: str, high: int | np.ndarray) -> np.ndarray:
        return integers(seed, f"data/{purpose}", positions, high)

    axes = room.shape[1]
    corner, mirrored = np.zeros_like(room), np.zeros(room.shape, dtype=bool)
    for axis, name in enumerate(CORNER[-axes:]):
        if (room[:, axis] > 1).any():
            corner[:, axis] = draw(name, room[:, axis])
    for axis, name in enumerate(MIRRORED[-axes:]):
        if flips[axis]:
            mirrored[:, axis] = draw(name, 2)
    turns = draw("turns", 4) if rot90 else np.zeros(len(room), dtype=np.int64)
    return Windows(image, corner, turns, mirrored)


def grid_windows(layout: Layout, size: int) -> Windows:
    """All windows of a gapless grid from each picture's top left corner, as they are."""
    corners = [
        (i, *corner)
        for i, lengths in enumerate(layout.sizes.tolist())
        for corner in product(*(range(0, length - size + 1, size) for length in lengths))
    ]
    places = np.array(corners, dtype=np.int64)
    picture, corner = places[:, 0], places[:, 1:]
    return Windows(picture, corner, np.zeros_like(picture), np.zeros(corner.shape, dtype=bool))


def orient_windows(batch: np.ndarray, windows: Windows) -> None:
    """Turn and mirror `[B, C, (S,) S, S]` in place.

    A quarter turn is a transposition followed by mirroring (numpy.rot90), so one masked
    assignment for it and one an axis do for all orientations.
    """
    mirrored = windows.mirrored.T
    if windows.turns.any():
        transposed = windows.turns % 2 == 1
        batch[transposed] = batch[transposed].swapaxes(-1, -2)
        mirrored = mirrored.copy()
        mirrored[-2] ^= (windows.turns == 1) | (windows.turns == 2)
        mirrored[-1] ^= windows.turns >= 2
    values = batch.view(f"i{batch.itemsize}")  # torch mirrors several times as fast as numpy,
    for axis, chosen in enumerate(mirrored, start=2):  # but not all unsigned types
        if chosen.any():
            values[chosen] = torch.from_numpy(values[chosen]).flip(axis).numpy()

"""Which window of which picture, and how it is turned: functions of (seed, position) alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data.image_set import Layout
from ddpm_unet.randomness import bits, integers


@dataclass(frozen=True)
class Windows:
    """One window per position, every field `[B]`: picture number, corner, orientation.

    The window is turned anticlockwise by quarter turns, then mirrored left-right and top-bottom.
    """

    picture: np.ndarray
    top: np.ndarray
    left: np.ndarray
    turns: np.ndarray
    mirrored: np.ndarray
    upended: np.ndarray


def window_counts(layout: Layout, size: int) -> np.ndarray:
    """How many windows each picture counts for, `int64 [N]`: its area over the window's."""
    return np.maximum(1, layout.heights * layout.widths // size**2)


def order(seed: int, positions: np.ndarray, length: int) -> np.ndarray:
    """The item at each position of the stream, `int64 [B]` in [0, length).

    Epoch e, positions [e length, (e + 1) length), is a permutation that is a function of
    (seed, e): every item once. It costs one sort an epoch (0.1 s for a million items).
    """
    epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), length)
    items = np.empty_like(places)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        items[chosen] = _permutation(seed, int(epoch), length)[places[chosen]]
    return items


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.argsort(bits(seed, f"data/order/{epoch}", np.arange(length)), kind="stable")


def random_windows(
    layout: Layout, picture: np.ndarray, config: ImageDataConfig, seed: int, positions: np.ndarray
) -> Windows:
    """A random window of each position's picture, any place as likely as another.

    Args:
        layout: Sizes of all pictures.
        picture: The picture at each position, `int64 [B]`.
        config: Window size, flips ("resize" mirrors left-right only) and turns.
        seed: Of the run.
        positions: In the training stream, `int64 [B]`.
    """

    def draw(purpose: str, high: int | np.ndarray) -> np.ndarray:
        return integers(seed, f"data/{purpose}", positions, high)

    return Windows(
        picture,
        draw("top", layout.heights[picture] - config.size + 1),
        draw("left", layout.widths[picture] - config.size + 1),
        draw("turns", 4 if config.turns else 1),
        draw("mirrored", 2 if config.flips else 1).astype(bool),
        draw("upended", 2 if config.flips and config.fit == "crop" else 1).astype(bool),
    )


def grid_windows(layout: Layout, size: int) -> Windows:
    """All windows of a gapless grid from each picture's top left corner, as they are."""
    corners = [
        (i, top, left)
        for i, (height, width) in enumerate(zip(layout.heights, layout.widths, strict=True))
        for top in range(0, height - size + 1, size)
        for left in range(0, width - size + 1, size)
    ]
    picture, top, left = np.array(corners, dtype=np.int64).T
    none = np.zeros(len(corners), dtype=bool)
    return Windows(picture, top, left, none.astype(np.int64), none, none)


def orient_windows(batch: np.ndarray, windows: Windows) -> None:
    """Turn and mirror `[B, C, S, S]` in place.

    A quarter turn is a transposition followed by mirroring (numpy.rot90), so three masked
    assignments do for all eight orientations.
    """
    transposed = windows.turns % 2 == 1
    upended = windows.upended ^ np.isin(windows.turns, (1, 2))
    mirrored = windows.mirrored ^ np.isin(windows.turns, (2, 3))
    batch[transposed] = batch[transposed].swapaxes(-1, -2)
    batch[upended] = batch[upended][..., ::-1, :]
    batch[mirrored] = batch[mirrored][..., ::-1]

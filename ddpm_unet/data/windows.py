"""Windows of images: where they lie, how they are turned, and how they are cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ddpm_unet.data.pixels import box


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
    return planes[(..., *np.ix_(*(_mirrored(*place) for place in places)))]


def _mirrored(start: int, count: int, length: int) -> np.ndarray:
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

"""Resampling of images, volumes and masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import interpolate


def resize(planes: np.ndarray, *size: int) -> np.ndarray:
    """Antialiased linear resampling, type kept (16 bits, and volumes, pass through float32).

    No value leaves the range of the old ones, as means by weights that add up to 1 to rounding
    would.

    Args:
        planes: `[C, H, W]` or `[C, D, H, W]`; int16 are classes, which are never mixed.
        size: Its new (depth,) height and width.
    """
    if planes.shape[1:] == size:
        return planes
    if planes.dtype == np.int16:
        return nearest(planes, (len(planes), *size))
    exact = planes.dtype == np.uint8 and len(size) == 2
    *depth, height, width = size
    tensor = torch.from_numpy(planes if exact else planes.astype(np.float32))
    tensor = _bilinear(tensor.reshape(1, -1, *tensor.shape[-2:]), height, width)
    if depth:  # linear interpolation is separable: the slices next, a row for every pixel of one
        tensor = tensor.reshape(1, len(planes), -1, height * width)
        tensor = _bilinear(tensor, depth[0], height * width)
    scaled = tensor.reshape(len(planes), *size).numpy()
    if planes.dtype.kind == "f":
        return scaled.clip(planes.min(), planes.max())
    return scaled if exact else scaled.round().astype(planes.dtype)


def _bilinear(planes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return interpolate(planes, (height, width), mode="bilinear", antialias=True)


def nearest(array: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resample `[(D,) H, W]` without mixing values: the pixel under each new pixel's centre."""
    places = [
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
        for new, old in zip(size, array.shape, strict=True)
    ]
    return np.ascontiguousarray(array[np.ix_(*places)])

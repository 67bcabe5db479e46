"""What a picture's header tells: its shape, type and orientation, and whether it is too large."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddpm_unet.errors import UserError


@dataclass(frozen=True)
class PictureInfo:
    """What the header tells: the shape and type that reading will give; volumes have a depth."""

    height: int
    width: int
    channels: int
    dtype: np.dtype
    depth: int | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """(Depth,) height and width."""
        depth = () if self.depth is None else (self.depth,)
        return (*depth, self.height, self.width)


def orient(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn `[H, W, C]` upright: EXIF / TIFF tag 274, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def check_pixels(path: str | Path, shape: tuple[int, ...], max_pixels: float) -> None:
    """Refuse no pixels, more than max_pixels million, or four times so many values.

    Args:
        path: For the message.
        shape: `[..., H, W, C]`.
        max_pixels: Million pixels.
    """
    pixels = math.prod(shape[:-1])
    if not pixels * shape[-1]:
        raise UserError(f"{path}: has no pixels; replace or remove the file")
    if pixels > max_pixels * 1e6 or pixels * shape[-1] > 4e6 * max_pixels:
        raise UserError(
            f"{path}: {' x '.join(map(str, shape))} is {pixels / 1e6:,.0f} million pixels, over "
            f"the limit of {max_pixels:g}; if the file can be trusted, raise data.max_pixels or "
            "--max_pixels"
        )

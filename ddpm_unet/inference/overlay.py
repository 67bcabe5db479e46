"""A picture with its classes drawn over it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_ROWS_AT_ONCE = 256


def displayable(picture: np.ndarray) -> np.ndarray:
    """A picture of any depth as `uint8 [H, W, 3]`.

    8 bits stay as they are; deeper ones are stretched between their 0.5 and 99.5 percentiles. Of
    one or two channels (grey, alpha) the first is shown, of three or more the first three.

    Args:
        picture: `[H, W, C]`.
    """
    picture = picture[..., : 3 if picture.shape[-1] >= 3 else 1]
    if picture.dtype != np.uint8:
        low, high = np.percentile(picture, [0.5, 99.5])
        unit = (picture.astype(np.float32) - low) / max(high - low, np.finfo(np.float32).tiny)
        picture = (255 * unit.clip(0, 1)).round().astype(np.uint8)
    return np.broadcast_to(picture, (*picture.shape[:2], 3))


def draw_overlay(
    picture: np.ndarray, classes: np.ndarray, colors: np.ndarray, opacity: float = 0.3
) -> np.ndarray:
    """Tint every class but 0 in its colour and draw its outline.

    Args:
        picture: `[H, W, C]`, see `displayable`.
        classes: `[H, W]` integer.
        colors: `uint8 [K, 3]`, one per class.
        opacity: Of the tint; the outline is opaque, one pixel wide in each 800 of the picture.

    Returns:
        `uint8 [H, W, 3]`.
    """
    overlay = displayable(picture).copy()
    near = _near_another(classes, 1 + max(classes.shape) // 800)
    for top in range(0, len(overlay), _ROWS_AT_ONCE):
        part = slice(top, top + _ROWS_AT_ONCE)
        found = classes[part]
        cover = np.where(near[part], np.float32(1), np.float32(opacity)) * (found > 0)
        blend = overlay[part] + cover[..., None] * (
            colors[found].astype(np.float32) - overlay[part]
        )
        overlay[part] = blend.round()
    return overlay


def _near_another(classes: np.ndarray, width: int) -> np.ndarray:
    """Pixels within `width` of one of another class."""
    size = 2 * width + 1
    highest = ndimage.maximum_filter(classes, size, mode="nearest")
    lowest = ndimage.minimum_filter(classes, size, mode="nearest")
    return highest != lowest

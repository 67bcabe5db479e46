"""An image with its classes drawn over it, and a colour for every class."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np

_ROWS_AT_ONCE = 256
_SMALL = 256  # pixels of a slice that is enlarged up to


def displayable(image: np.ndarray) -> np.ndarray:
    """An image (or volume) of any depth as `uint8 [H, W, 3]` (`[D, H, W, 3]`).

    8 bits stay as they are; deeper ones are stretched between their 0.5 and 99.5 percentiles. Of
    one or two channels (grey, alpha) the first is shown, of three or more the first three.

    Args:
        image: `[H, W, C]` or `[D, H, W, C]`.
    """
    image = image[..., : 3 if image.shape[-1] >= 3 else 1]
    if image.dtype != np.uint8:
        low, high = np.percentile(image, [0.5, 99.5])
        unit = (image.astype(np.float32) - low) / max(high - low, np.finfo(np.float32).tiny)
        image = (255 * unit.clip(0, 1)).round().astype(np.uint8)
    return np.broadcast_to(image, (*image.shape[:-1], 3))


def side_by_side(
    image: np.ndarray, masks: Sequence[np.ndarray], colors: np.ndarray, most: int = 4
) -> np.ndarray:
    """An image under each of several masks, from left to right.

    Of a volume, some slices from top to bottom, enlarged where they are small: evenly spread over
    those in which the first mask has another class than 0.

    Args:
        image: `[H, W, C]` or `[D, H, W, C]`.
        masks: Classes, `[H, W]` or `[D, H, W]` each.
        colors: `uint8 [K, 3]`.
        most: Slices shown.

    Returns:
        `uint8 [H', W', 3]`.
    """
    shown = displayable(image)
    places: list[Any] = [...]
    zoom = 1
    if shown.ndim == 4:
        filled = np.flatnonzero(masks[0].any(axis=(1, 2)))
        first, last = (filled[0], filled[-1]) if len(filled) else (0, len(shown) - 1)
        places = sorted(set(np.linspace(first, last, most + 2).round().astype(int)[1:-1].tolist()))
        zoom = max(1, _SMALL // max(shown.shape[1:3]))

    def drawn(place: Any, mask: np.ndarray) -> np.ndarray:
        large = [a[place].repeat(zoom, axis=0).repeat(zoom, axis=1) for a in (shown, mask)]
        return draw_overlay(large[0], large[1], colors)

    rows = [np.concatenate([drawn(place, mask) for mask in masks], axis=1) for place in places]
    return np.concatenate(rows)


def draw_overlay(
    image: np.ndarray,
    classes: np.ndarray,
    colors: np.ndarray,
    opacity: float = 0.3,
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """Tint every class but 0 in its colour and draw its outline, or those of its objects.

    Args:
        image: `[H, W, C]`, see `displayable`.
        classes: `[H, W]` integer.
        colors: `uint8 [K, 3]`, one per class.
        opacity: Of the tint; the outline is opaque, one pixel wide in each 800 of the image.
        labels: Numbers of objects, `[H, W]`.

    Returns:
        `uint8 [H, W, 3]`.
    """
    overlay = displayable(image).copy()
    near = _near_another(classes if labels is None else labels, 1 + max(classes.shape) // 800)
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
    from scipy import ndimage  # takes a quarter of a second

    size = 2 * width + 1
    highest = ndimage.maximum_filter(classes, size, mode="nearest")
    lowest = ndimage.minimum_filter(classes, size, mode="nearest")
    return highest != lowest


MAX_CLASSES = 256
_GOLDEN = 0.618033988749895
# Okabe and Ito's palette, which colour-blind readers can tell apart; class 0 is black.
_FIRST = (
    (0, 0, 0),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


def class_colors(num_classes: int, colors: Sequence[Sequence[int]] = ()) -> np.ndarray:
    """RGB per class, `uint8 [num_classes, 3]`: the given ones, or a table of distinct colours.

    Raises:
        ValueError: More than 256 classes, which no palette holds, or another number of colours.
    """
    if num_classes > MAX_CLASSES:
        raise ValueError(f"{num_classes} classes, but a palette holds {MAX_CLASSES}")
    if not colors:
        return np.array([_table_color(i) for i in range(num_classes)], dtype=np.uint8)
    if len(colors) != num_classes:
        raise ValueError(f"{len(colors)} colours for {num_classes} classes")
    return np.array(colors, dtype=np.uint8)


def _table_color(index: int) -> tuple[int, ...]:
    if index < len(_FIRST):
        return _FIRST[index]
    # Hues by the golden ratio are never close to the ones just before; three shades in turn.
    value, saturation = ((1.0, 0.9), (0.75, 0.6), (0.5, 1.0))[index % 3]
    return tuple(
        round(255 * c) for c in colorsys.hsv_to_rgb(index * _GOLDEN % 1, saturation, value)
    )

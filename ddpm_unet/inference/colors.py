"""A colour for every class."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

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

"""What parts cells that touch: border weights (Ronneberger 2015, eq. 2), and interiors."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy import ndimage


def balanced_weights(counts: np.ndarray) -> np.ndarray:
    """The class weights w_c `float64 [K]` of classes of so many pixels `[K]`.

    Inverse to the frequency, one on average over all pixels; 0 for a class without pixels.
    """
    counts = np.asarray(counts, np.float64)
    present = counts > 0
    weights = np.zeros(len(counts))
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights


def connected_cells(classes: np.ndarray, cell_classes: Iterable[int]) -> np.ndarray:
    """The 4-connected pieces of each of some classes, numbered from 1, `int32 [H, W]`."""
    cells = np.zeros(classes.shape, np.int32)
    for cell_class in cell_classes:
        pieces, _ = ndimage.label(classes == cell_class)
        cells[pieces > 0] = pieces[pieces > 0] + cells.max()
    return cells


def interiors(cells: np.ndarray, width: int = 1) -> np.ndarray:
    """1 inside the cells, 0 in the background and within `width` pixels of another cell or of it.

    Args:
        cells: Cell numbers, `int [*space]`, 0 for background.
        width: Of the rim left out, pixels.

    Returns:
        `float32 [*space]`.
    """
    size = 2 * width + 1
    alone = ndimage.maximum_filter(cells, size) == ndimage.minimum_filter(cells, size)
    return ((cells > 0) & alone).astype(np.float32)


def two_nearest(cells: np.ndarray, reach: float = math.inf) -> tuple[np.ndarray, np.ndarray]:
    """Distances of every background pixel to the nearest and to the second nearest cell.

    One distance transform of the whole image finds the nearest cell; then, for each cell, one
    of the neighbourhood of those background pixels that it is nearest to finds the second.
    Of cell numbers `int [H, W]`, 0 for background.

    Returns:
        d1 and d2, `float64 [H, W]`, exact (Euclidean, between pixel centres) in the background
        wherever d1 + d2 <= reach. d2 is infinite elsewhere, and d1 where there is no cell.
    """
    d2 = np.full(cells.shape, math.inf)
    if not cells.any():
        return d2.copy(), d2
    d1, (rows, columns) = ndimage.distance_transform_edt(cells == 0, return_indices=True)
    candidates = np.where((d1 > 0) & (d1 <= reach / 2), cells[rows, columns], 0)
    margin = math.ceil(min(reach, max(cells.shape)))
    for number, box in enumerate(ndimage.find_objects(candidates), start=1):
        if box is None:
            continue
        around = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in box)
        others = (cells[around] != 0) & (cells[around] != number)
        if others.any():
            mine = candidates[around] == number
            d2[around][mine] = ndimage.distance_transform_edt(~others)[mine]
    d2[d1 + d2 > reach] = math.inf
    return d1, d2


def border_weights(
    classes: np.ndarray,
    cells: np.ndarray,
    class_weights: np.ndarray,
    w0: float = 10.0,
    sigma: float = 5.0,
) -> np.ndarray:
    """w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2)), Ronneberger 2015, eq. 2.

    The second term is for the background, where the borders between cells are to be learned;
    inside the cells the weight is w_c. Cells that touch have no pixel between them, and so no
    border: draw one first. Border terms under w0 * 1e-8 are taken as 0.

    Args:
        classes: Class of each pixel, `int [H, W]`; negative where unlabelled (weight 0).
        cells: Number of the cell at each pixel, `int [H, W]`, 0 for background.
        class_weights: w_c of each class, `float [K]`.
        w0: Weight of a border between touching cells.
        sigma: Width of the weighted borders, pixels.

    Returns:
        `float32 [H, W]`.
    """
    d1, d2 = two_nearest(cells, reach=sigma * math.sqrt(-2 * math.log(1e-8)))
    border = w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))  # d2 is infinite in cells
    weights = np.asarray(class_weights)[classes.clip(0)] + border
    return np.where(classes < 0, 0.0, weights).astype(np.float32)

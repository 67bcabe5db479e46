"""Cells in masks: their numbers, what parts those that touch, and weights of their borders.

Border weights are of Ronneberger 2015, eq. 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import ndimage

FEW = 100
"""So many values may be classes."""
TRIED = 20
"""Of the values of a mask, so many are looked at."""


def number_objects(values: Sequence[np.ndarray], richest: np.ndarray, most: float) -> bool:
    """Whether masks can only number objects: by over 100 values from 1 on, others in each mask.

    Of shades, as of soft edges, most values lie in many pieces, and the highest is the type's.

    `values` are the sorted ones of each mask, `richest` the mask `[*space]` with most of them, and
    `most` the highest value of its type, for floats 1.
    """
    held = [each[each > 0] for each in values]
    held = [each for each in held if len(each)]
    largest = max(held, key=len, default=np.empty(0, int))
    if not len(largest) > FEW or any(each.dtype.kind not in "iu" for each in values):
        return False
    dense = np.mean([each[-1] <= 1.5 * len(each) + 1 for each in held]) > 0.9
    differ = len({int(each[-1]) for each in held}) > 1 and largest[-1] != most
    if not dense or not differ or any(each.min(initial=0) < 0 for each in values):
        return False
    tried = largest[:: len(largest) // TRIED]
    return sum(ndimage.label(richest == value)[1] for value in tried) < 1.5 * len(tried)


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


def small_object(images: Iterable[np.ndarray]) -> int:
    """Pixels of an object that only 5 % are smaller than; 0 without any.

    Of numbers of cells, `int [*space]`, 0 for none.
    """
    areas = np.concatenate([np.bincount(cells.ravel())[1:] for cells in images])
    return int(np.quantile(areas[areas > 0], 0.05)) if areas.any() else 0


def interiors(cells: np.ndarray) -> np.ndarray:
    """1 inside the cells, 0 in the background and in pixels beside another cell or beside it.

    Of cell numbers `int [*space]`, 0 for background, `float32 [*space]`.
    """
    alone = ndimage.maximum_filter(cells, 3) == ndimage.minimum_filter(cells, 3)
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

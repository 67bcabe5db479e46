"""How well found objects fit true ones: average precision, panoptic quality, AJI, counts."""

from __future__ import annotations

import numpy as np

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Least intersection over union of an object that counts as found."""
OBJECT_SCORES = (*(f"ap{100 * least:.0f}" for least in THRESHOLDS), "pq", "aji", "count_error")


def object_ious(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intersections of objects, their areas, of labels `int [*space]`, 0 for background.

    Returns:
        Pixels that true object t and found object f share, `int64 [T, F]`; pixels of each true
        one, `int64 [T]`, and of each found one, `int64 [F]`.

    Raises:
        ValueError: Different shapes.
    """
    if found.shape != true.shape:
        raise ValueError(f"found objects {found.shape} and true ones {true.shape} differ in shape")
    sides = [np.unique(labels, return_inverse=True) for labels in (true, found)]
    (rows, row), (columns, column) = sides
    counts = np.zeros((len(rows), len(columns)), np.int64)
    np.add.at(counts, (row.ravel(), column.ravel()), 1)
    things = counts[rows > 0][:, columns > 0]
    return things, counts.sum(1)[rows > 0], counts.sum(0)[columns > 0]


def object_scores(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Scores of one image's objects, given as labels `int [*space]`, 0 for background.

    At each threshold the most objects are matched one to one whose intersection over union reaches
    it. "ap50" to "ap90" are TP / (TP + FP + FN), as of Kaggle's 2018 bowl and stardist; "pq" is the
    panoptic quality at 0.5 (Kirillov 2019, eq. 1); "aji" the aggregated Jaccard index (Kumar 2017,
    algorithm 1), of intersections over unions of every true object with its best; "count_error"
    the difference of the numbers of objects. Without any object there are no scores but the last.

    Raises:
        ValueError: Different shapes.
    """
    from scipy.optimize import linear_sum_assignment

    shared, true_areas, found_areas = object_ious(found, true)
    unions = true_areas[:, None] + found_areas - shared
    ious = shared / np.maximum(unions, 1)
    total, scores = len(true_areas) + len(found_areas), {}
    for least in THRESHOLDS if total else ():
        rows, columns = linear_sum_assignment(-1.0 * (ious >= least) - ious / total)
        matched = ious[rows, columns][ious[rows, columns] >= least]
        scores[f"ap{100 * least:.0f}"] = len(matched) / (total - len(matched))
        if least == THRESHOLDS[0]:
            scores["pq"] = 2 * float(matched.sum()) / total
    if total:
        rows = np.flatnonzero(ious.max(1, initial=0) > 0)
        best = ious[rows].argmax(1) if len(rows) else rows
        union = unions[rows, best].sum() + np.delete(true_areas, rows).sum()
        union += np.delete(found_areas, best).sum()
        scores["aji"] = float(shared[rows, best].sum() / union)
    return scores | {"count_error": float(abs(len(true_areas) - len(found_areas)))}

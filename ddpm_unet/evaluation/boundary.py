"""How far the outline of a predicted region is from the true one.

On scipy's exact Euclidean distance transform: torchmetrics' Hausdorff distance has no
percentile, and scikit-image's compares sets of points, not outlines.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def outline(region: np.ndarray) -> np.ndarray:
    """Pixels of a bool region that have a face in common with the outside or the image's end."""
    return region & ~ndimage.binary_erosion(region)


def outline_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of every outline pixel of one region to the other region's nearest one.

    Args:
        prediction: Bool `[H, W]` or `[D, H, W]`.
        truth: Bool of the same shape.
        spacing: Size of a pixel, one or per axis; distances are in its unit.

    Returns:
        `float64 [P]` from the prediction's outline to the truth's, `float64 [T]` back. Infinite
        where the other region is empty.

    Raises:
        ValueError: Different shapes, or not bool.
    """
    if prediction.shape != truth.shape or prediction.dtype != bool or truth.dtype != bool:
        raise ValueError(
            f"prediction {prediction.dtype} {prediction.shape} and truth {truth.dtype} "
            f"{truth.shape} must be bool and of one shape"
        )
    ours, theirs = outline(prediction), outline(truth)
    return _distance_to(theirs, spacing)[ours], _distance_to(ours, spacing)[theirs]


def hausdorff(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: Sequence[float] | float = 1.0,
    percentile: float = 95,
) -> float:
    """Hausdorff distance of two outlines, at a percentile: HD95.

    The larger of the two directed percentiles (as in MONAI; some programs pool both directions
    first). 0 when both regions are empty, infinite when one is. Arguments: `outline_distances`.
    """
    there, back = outline_distances(prediction, truth, spacing)
    if there.size == 0 or back.size == 0:
        return 0.0 if there.size == back.size else float("inf")
    return float(max(np.percentile(there, percentile), np.percentile(back, percentile)))


def boundary_f(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: Sequence[float] | float = 1.0,
    tolerance: float = 2.0,
) -> float:
    """Boundary F (Martin 2004; Csurka 2013), 0 to 1.

    Harmonic mean of the share of the prediction's outline within `tolerance` of the truth's, and
    of the truth's outline within it of the prediction's. 1 when both regions are empty, 0 when
    one is. Arguments: `outline_distances`; `tolerance` is in the unit of `spacing`.
    """
    there, back = outline_distances(prediction, truth, spacing)
    if there.size == 0 or back.size == 0:
        return float(there.size == back.size)
    precision, recall = np.mean(there <= tolerance), np.mean(back <= tolerance)
    return float(2 * precision * recall / max(precision + recall, np.finfo(float).tiny))


def _distance_to(points: np.ndarray, spacing: Sequence[float] | float) -> np.ndarray:
    if not points.any():
        return np.full(points.shape, np.inf)
    return ndimage.distance_transform_edt(~points, sampling=spacing)

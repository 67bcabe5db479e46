"""V_rand and V_info, the scores of the ISBI 2012 challenge on segmenting neurites.

Arganda-Carreras et al., "Crowdsourcing the creation of image segmentation algorithms for
connectomics", Frontiers in Neuroanatomy 9:142 (2015). A segmentation is a partition of the
pixels into cells: a hole in a membrane that joins two cells costs much, a membrane drawn a
little thicker or thinner costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from ddpm_unet.errors import from_extra

# Summed up as the challenge's program (Fiji's Trainable_Segmentation) does: the last threshold
# is just below 1, so that pixels which are certain still count as cells.
THRESHOLDS = tuple(accumulate([0.1] * 10, initial=0.0))


@dataclass(frozen=True)
class ThinnedScores:
    """Scores at every threshold, means over slices; 1 is perfect.

    Args:
        thresholds: `float64 [T]`.
        rand: V_rand, `float64 [T]` in (0, 1].
        info: V_info, `float64 [T]` in [0, 1].
    """

    thresholds: np.ndarray
    rand: np.ndarray
    info: np.ndarray

    @property
    def v_rand(self) -> float:
        """The challenge's V_rand: the largest over the thresholds."""
        return float(self.rand.max())

    @property
    def v_info(self) -> float:
        """The challenge's V_info: the largest over the thresholds, perhaps at another one."""
        return float(self.info.max())


def thinned_scores(truth: Iterable[np.ndarray], probability: Iterable[np.ndarray]) -> ThinnedScores:
    """V_rand and V_info after border thinning, over the slices of a stack.

    Args:
        truth: Slices `[H, W]`, integer or bool: 0 is membrane, and every 4-connected region of
            one other value is a cell.
        probability: Slices `[H, W]` in [0, 1]: the probability of *cell*, one minus that of
            membrane. A pixel is cell where it is above the threshold.

    Raises:
        ValueError: Slices that do not match, values outside [0, 1], or a slice of the truth
            without any cell, where the scores are undefined.
    """
    scores = [
        _slice_scores(np.asarray(t), np.asarray(p), number)
        for number, (t, p) in enumerate(zip(truth, probability, strict=True))
    ]
    if not scores:
        raise ValueError("there is no slice to score")
    rand, info = np.mean(scores, axis=0).T
    return ThinnedScores(np.array(THRESHOLDS), rand, info)


def thin(cells: np.ndarray) -> np.ndarray:
    """Grow cells until only one-pixel dams remain between different ones.

    A 4-connected watershed of the binary image (Vincent, Soille 1991) that floods the membranes
    from all cells at equal speed. A membrane that separates nothing vanishes.

    Args:
        cells: Cell pixels, bool `[H, W]`.

    Returns:
        Segments numbered from 1, and 0 on the dams, integer `[H, W]`. An image without any cell
        is one segment.
    """
    seeds = _connected(cells)
    if not cells.any():
        return np.ones(cells.shape, dtype=np.int32)
    from skimage import segmentation

    return segmentation.watershed(~cells, seeds, connectivity=1, watershed_line=True)


def partition_scores(truth: np.ndarray, segments: np.ndarray) -> tuple[float, float]:
    """V_rand and V_info of two partitions, over the pixels where the truth is not 0.

    With p_ij the share of these pixels in cell i and segment j, and a_i and b_j its sums over
    j and i, V_rand = 2 sum p_ij^2 / (sum a_i^2 + sum b_j^2) and V_info = 2 I / (H_A + H_B), with
    I the mutual information and H the entropies. Every pixel where `segments` is 0 is a segment
    of its own. Pairs of a pixel with itself count (scikit-image's `adapted_rand_error` leaves
    them out).

    Args:
        truth: Cell numbers, integer of any shape, 0 outside cells.
        segments: Segment numbers, integer of the same shape, 0 on dams.

    Raises:
        ValueError: The truth is 0 everywhere.
    """
    inside = truth != 0
    n = np.count_nonzero(inside)
    if n == 0:
        raise ValueError("the truth has no cell, it is 0 everywhere")
    cell = truth[inside].astype(np.int64)
    segment = segments[inside].astype(np.int64)
    dam = segment == 0
    segment[dam] = segment.max() + 1 + np.arange(np.count_nonzero(dam))

    p_ij = _shares(cell * (segment.max() + 1) + segment)
    a_i, b_j = _shares(cell), _shares(segment)
    rand = 2 * np.sum(p_ij**2) / (np.sum(a_i**2) + np.sum(b_j**2))

    h_ab, h_a, h_b = (-np.sum(p * np.log(p)) for p in (p_ij, a_i, b_j))
    # Without entropy there is one cell and one segment: equal.
    info = 2 * (h_a + h_b - h_ab) / (h_a + h_b) if h_a + h_b > 0 else 1.0
    return float(rand), float(info)


def _shares(numbers: np.ndarray) -> np.ndarray:
    """How often every distinct number occurs, as a share of all, `float64`."""
    return np.unique(numbers, return_counts=True)[1] / numbers.size


def _slice_scores(truth: np.ndarray, probability: np.ndarray, number: int) -> np.ndarray:
    """V_rand and V_info of a slice, `float64 [T, 2]`."""
    if truth.ndim != 2 or truth.shape != probability.shape:
        raise ValueError(
            f"slice {number}: truth {truth.shape} and probability {probability.shape} must be "
            "[H, W] of one size"
        )
    if truth.dtype.kind not in "biu":
        raise ValueError(f"slice {number}: the truth must be integer or bool, not {truth.dtype}")
    if not (probability.min() >= 0 and probability.max() <= 1):
        raise ValueError(f"slice {number}: probabilities must lie in [0, 1]")
    regions = _connected(truth)
    if not regions.any():
        raise ValueError(f"slice {number}: the truth has no cell, it is 0 everywhere")

    scores: list[tuple[float, float]] = []
    before = None
    for threshold in THRESHOLDS:
        cells = probability.astype(np.float64) > threshold
        same = before is not None and np.array_equal(cells, before)
        scores.append(scores[-1] if same else partition_scores(regions, thin(cells)))
        before = cells
    return np.array(scores)


def _connected(values: np.ndarray) -> np.ndarray:
    """The 4-connected regions of equal values but 0, numbered."""
    measure = from_extra("skimage.measure", "metrics", "V_rand and V_info")
    return measure.label(values, background=0, connectivity=1)

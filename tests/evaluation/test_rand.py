import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

pytest.importorskip("skimage")

from skimage.metrics import adapted_rand_error, variation_of_information

from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.rand import THRESHOLDS, partition_scores, thin, thinned_scores


def by_pairs(truth, segments):
    """The definition, pixel pair by pixel pair: (V_rand, V_info)."""
    pixels = [(t, s) for t, s in zip(truth.flat, segments.flat, strict=True) if t != 0]
    # A dam pixel is alone: give it a number nobody has.
    pixels = [(t, s if s != 0 else -1 - i) for i, (t, s) in enumerate(pixels)]
    same_cell = same_segment = same_both = 0
    information = entropy_cell = entropy_segment = 0.0
    n = len(pixels)
    for t, s in pixels:
        in_cell = sum(t == u for u, _ in pixels)
        in_segment = sum(s == v for _, v in pixels)
        in_both = sum(t == u and s == v for u, v in pixels)
        same_cell, same_segment, same_both = (
            same_cell + in_cell,
            same_segment + in_segment,
            same_both + in_both,
        )
        entropy_cell -= math.log(in_cell / n) / n
        entropy_segment -= math.log(in_segment / n) / n
        information += math.log(in_both * n / (in_cell * in_segment)) / n
    total = entropy_cell + entropy_segment
    return 2 * same_both / (same_cell + same_segment), 2 * information / total if total else 1.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40).filter(
        lambda pairs: any(t for t, _ in pairs)
    )
)
def test_scores_equal_the_definition_over_pixel_pairs(pairs):
    truth, segments = np.array(pairs).T
    assert partition_scores(truth, segments) == pytest.approx(by_pairs(truth, segments), abs=1e-12)


def test_scores_by_hand():
    truth = np.array([0, 1, 1, 2, 2])
    # One segment over two halves: sum p^2 = 1/2, sum a^2 = 1/2, sum b^2 = 1; it tells nothing.
    assert partition_scores(truth, np.array([5, 5, 5, 5, 5])) == pytest.approx((2 / 3, 0))
    # A dam on one pixel of the second half: sum p^2 = sum b^2 = 1/4 + 2/16; I = H_A = log 2,
    # H_B = (log 2) / 2 + (log 4) / 2.
    assert partition_scores(truth, np.array([7, 1, 1, 2, 0])) == pytest.approx(
        (2 * 0.375 / (0.5 + 0.375), 2 / (1 + 1.5))
    )
    # Two dam pixels are two segments, not one.
    assert partition_scores(truth, np.array([1, 1, 1, 0, 0])) == pytest.approx(
        partition_scores(truth, np.array([1, 1, 1, 2, 3]))
    )
    # One cell, one segment: nothing to tell apart, and equal.
    assert partition_scores(np.ones(4, int), np.ones(4, int)) == (1.0, 1.0)


def test_how_scikit_image_differs():
    truth, segments = np.array([1, 1, 2, 2]), np.array([1, 1, 2, 3])
    rand, info = partition_scores(truth, segments)
    # adapted_rand_error leaves out the pairs of a pixel with itself: 4 pixels here.
    assert rand == pytest.approx(2 * 6 / (8 + 6))
    assert 1 - adapted_rand_error(truth, segments)[0] == pytest.approx(2 * (6 - 4) / (8 + 6 - 8))
    # variation_of_information is in bits; V_info has no unit, but its parts must have one.
    bits = sum(variation_of_information(truth, segments))
    entropies = math.log(2) + 1.5 * math.log(2)
    assert info == pytest.approx(1 - bits * math.log(2) / entropies)


def test_flat_membranes_thin_to_one_pixel_dams():
    for width in range(1, 8):
        cells = np.ones((9, 20), dtype=bool)
        cells[:, 6 : 6 + width] = False
        segments = thin(cells)
        assert (np.count_nonzero(segments == 0, axis=1) == 1).all()
        assert len(np.unique(segments[segments > 0])) == 2
        dam = int(np.argmin(segments[0]))
        assert abs(dam - (6 + (width - 1) / 2)) <= 0.5


def test_a_membrane_with_a_hole_vanishes():
    cells = np.ones((9, 9), dtype=bool)
    cells[:8, 3:6] = False
    assert (thin(cells) == 1).all()


def test_cells_that_touch_at_a_corner_are_two():
    segments = thin(np.array([[1, 0], [0, 1]], dtype=bool))
    assert segments[0, 0] != segments[1, 1]


def test_cells_of_the_truth_are_four_connected():
    corners = np.array([[1, 0], [0, 1]])
    scores = thinned_scores([corners], [corners.astype(float)])
    assert (scores.v_rand, scores.v_info) == pytest.approx((1, 1))


def test_a_picture_of_membrane_is_one_segment():
    assert (thin(np.zeros((4, 5), dtype=bool)) == 1).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 0.9))
def test_thinning_keeps_cells_apart(seed, share):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(24, 24)), 1)
    cells = noise < np.quantile(noise, share)
    segments = thin(cells)
    expected, count = ndimage.label(cells)
    assert (segments[cells] > 0).all()
    assert len(np.unique(segments[segments > 0])) == count
    for number in range(1, count + 1):
        assert len(np.unique(segments[expected == number])) == 1
    for a, b in (
        (segments[1:], segments[:-1]),
        (segments[:, 1:], segments[:, :-1]),
    ):
        assert ((a == b) | (a == 0) | (b == 0)).all()


def rooms(thickness):
    """Four rooms between walls, `[32, 32]`; the walls' centre does not move."""
    cells = np.ones((33, 33), dtype=bool)
    cells[16 - thickness // 2 : 17 + thickness // 2] = False
    cells[:, 16 - thickness // 2 : 17 + thickness // 2] = False
    return cells


def test_thickness_costs_nothing_and_a_hole_does():
    truth = rooms(3)
    for thickness in (1, 3, 5, 9):
        scores = thinned_scores([truth], [rooms(thickness).astype(float)])
        assert (scores.v_rand, scores.v_info) == pytest.approx((1, 1))
    holed = rooms(3)
    holed[4, :] = True
    scores = thinned_scores([truth], [holed.astype(float)])
    # Of four equal rooms two are one: 2 (1/4) / (1/4 + 3/8).
    assert scores.v_rand == pytest.approx(0.8, abs=0.02)
    assert scores.v_info < 0.9


def test_mean_over_slices_then_largest_over_thresholds():
    truth = rooms(3)
    low = np.where(truth, 0.35, 0.05)  # right for thresholds 0.1, 0.2 and 0.3
    high = np.where(truth, 0.95, 0.25)  # right for thresholds 0.3 to 0.9
    scores = thinned_scores([truth, truth], [low, high])
    whole = partition_scores(ndimage.label(truth)[0], np.ones(truth.shape, int))[0]
    expected = np.full(11, (1 + whole) / 2)
    expected[[0, 10]], expected[3] = whole, 1
    np.testing.assert_allclose(scores.rand, expected)
    assert scores.v_rand == pytest.approx(1)
    worst = thinned_scores([truth, truth], [low, np.where(truth, 0.95, 0.45)])
    assert worst.v_rand == pytest.approx((1 + whole) / 2)


def test_thresholds_and_comparison():
    assert len(THRESHOLDS) == 11
    assert THRESHOLDS[0] == 0
    assert THRESHOLDS[-1] < 1
    np.testing.assert_allclose(THRESHOLDS, np.arange(11) / 10)
    # Certain pixels are cells at every threshold, also as float32.
    scores = thinned_scores([rooms(3)], [rooms(3).astype(np.float32)])
    np.testing.assert_allclose(scores.rand, 1)


def test_truth_may_be_cell_numbers_without_membrane():
    truth = np.repeat([[1, 2]], 4, axis=0)
    assert thinned_scores([truth], [np.ones((4, 2))]).v_rand == pytest.approx(2 / 3)


def test_faults_are_refused():
    cells, good = np.ones((4, 4), int), np.ones((4, 4))
    with pytest.raises(ValueError, match="slice 1: the truth has no cell"):
        thinned_scores([cells, 0 * cells], [good, good])
    with pytest.raises(ValueError, match=r"slice 0: .*\[0, 1\]"):
        thinned_scores([cells], [good * np.nan])
    with pytest.raises(ValueError, match="of one size"):
        thinned_scores([cells], [good[:3]])
    with pytest.raises(ValueError, match="integer or bool"):
        thinned_scores([good], [good])
    with pytest.raises(ValueError, match="shorter"):
        thinned_scores([cells, cells], [good])
    with pytest.raises(ValueError, match="no slice"):
        thinned_scores([], [])


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(UserError, match=r'pip install "ddpm-unet\[metrics\]"'):
        thin(np.ones((2, 2), dtype=bool))

import numpy as np
import pytest

from ddpm_unet.evaluation.boundary import boundary_f, hausdorff, outline, outline_distances


def square(size, low, high, dims=2):
    region = np.zeros((size,) * dims, dtype=bool)
    region[(slice(low, high),) * dims] = True
    return region


def blob(seed, shape=(14, 17)):
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2) > 0


def test_outline_by_hand():
    expected = square(7, 1, 6)
    expected[2:5, 2:5] = False
    assert (outline(square(7, 1, 6)) == expected).all()
    assert (
        outline(np.ones((3, 3), bool)) == np.pad(np.zeros((1, 1), bool), 1, constant_values=True)
    ).all()


@pytest.mark.parametrize("spacing", [1.0, (0.5, 3.0)])
def test_distances_by_brute_force(spacing):
    ours, theirs = blob(1), blob(2)
    scale = np.broadcast_to(spacing, 2)
    p, t = (np.argwhere(outline(x)) * scale for x in (ours, theirs))
    table = np.linalg.norm(p[:, None] - t[None], axis=2)
    there, back = outline_distances(ours, theirs, spacing)
    np.testing.assert_allclose(there, table.min(axis=1))
    np.testing.assert_allclose(back, table.min(axis=0))
    expected = max(np.percentile(table.min(axis=1), 95), np.percentile(table.min(axis=0), 95))
    assert hausdorff(ours, theirs, spacing) == pytest.approx(expected)


def test_full_hausdorff_equals_the_libraries():
    metrics = pytest.importorskip("skimage.metrics")
    ours, theirs = blob(3), blob(4)
    value = hausdorff(ours, theirs, percentile=100)
    assert value == pytest.approx(metrics.hausdorff_distance(outline(ours), outline(theirs)))


def test_shifted_square():
    a, b = square(40, 10, 30), np.roll(square(40, 10, 30), 3, axis=1)
    assert hausdorff(a, b, percentile=100) == 3
    assert hausdorff(a, b) == 3
    assert hausdorff(a, b, spacing=(1, 2)) == 6
    assert boundary_f(a, a) == 1
    assert boundary_f(a, b, tolerance=3) == 1
    # Of 76 outline pixels within 2: 19 in each of the rows in common, 4 of the near column.
    assert boundary_f(a, b, tolerance=2) == pytest.approx((2 * 19 + 4) / 76)
    assert boundary_f(a, b, spacing=(1, 2), tolerance=6) == 1


def test_volumes():
    a, b = square(12, 3, 9, dims=3), np.roll(square(12, 3, 9, dims=3), 2, axis=0)
    assert hausdorff(a, b, percentile=100) == 2
    assert hausdorff(a, b, percentile=100, spacing=(5, 1, 1)) == 10


def test_outliers_move_the_percentile_little():
    a = square(60, 10, 50)
    b = a.copy()
    b[0, 0] = True
    assert hausdorff(b, a, percentile=100) == pytest.approx(np.hypot(10, 10))
    assert hausdorff(b, a) == 0


def test_outlines_that_never_meet():
    assert boundary_f(square(20, 1, 4), square(20, 12, 18)) == 0


def test_empty_regions():
    a, none = square(8, 2, 6), np.zeros((8, 8), bool)
    assert hausdorff(none, none) == 0
    assert hausdorff(a, none) == hausdorff(none, a) == np.inf
    assert boundary_f(none, none) == 1
    assert boundary_f(a, none) == boundary_f(none, a) == 0


def test_faults_are_refused():
    with pytest.raises(ValueError, match="bool"):
        hausdorff(np.zeros((3, 3)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="one shape"):
        boundary_f(np.zeros((3, 3), bool), np.zeros((3, 4), bool))

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ddpm_unet.data.masks import (
    balanced_weights,
    border_weights,
    connected_cells,
    small_object,
    two_nearest,
)


def brute_force(cells):
    """Distances to the nearest and second nearest cell, from a transform per cell."""
    each = [ndimage.distance_transform_edt(cells != n) for n in np.unique(cells[cells > 0])]
    far = np.full(cells.shape, np.inf)
    return np.sort([far, far, *each], axis=0)[:2]


def random_cells(seed, shape=(48, 61), count=9):
    rng = np.random.default_rng(seed)
    seeds = np.zeros(shape, int)
    places = rng.choice(seeds.size, count, replace=False)
    seeds.flat[places] = rng.permutation(np.arange(1, 3 * count))[:count]
    reached, index = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    return np.where(reached < rng.uniform(2, 9), seeds[tuple(index)], 0)


@given(st.integers(0, 10_000), st.sampled_from([np.inf, 30.0, 9.0]))
@settings(max_examples=25, deadline=None)
def test_two_nearest_is_brute_force_in_the_background(seed, reach):
    cells = random_cells(seed)
    wanted = brute_force(cells)
    d1, d2 = two_nearest(cells, reach)
    background = cells == 0
    np.testing.assert_allclose(d1[background], wanted[0][background])
    within = background & (wanted.sum(0) <= reach)
    np.testing.assert_allclose(d2[within], wanted[1][within])
    assert np.isinf(d2[~within]).all()


@pytest.mark.parametrize("count", [0, 1])
def test_without_two_cells_there_is_no_border(count):
    cells = np.zeros((20, 20), int)
    cells[:3, :3] = count
    weights = border_weights((cells > 0).astype(int), cells, np.ones(2))
    assert (weights == 1).all()


def test_weights_are_equation_2():
    cells = random_cells(3)
    classes = (cells > 0).astype(np.int16)
    classes[0, :5] = -100
    class_weights = np.array([1.7, 0.4])
    d1, d2 = brute_force(cells)
    wanted = class_weights[classes.clip(0)] + (cells == 0) * 10 * np.exp(-((d1 + d2) ** 2) / 50)
    wanted[classes < 0] = 0
    weights = border_weights(classes, cells, class_weights)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, wanted, atol=2e-6)


def test_connected_cells_joins_sides_not_corners_and_keeps_classes_apart():
    classes = np.array([[1, 1, 0, 1], [0, 0, 1, 0], [2, 2, 2, 0]])
    cells = connected_cells(classes, [1, 2])
    assert len(np.unique(cells[cells > 0])) == 4
    assert cells[0, 0] == cells[0, 1] != cells[0, 3]
    assert cells[1, 2] != cells[2, 2]
    assert ((cells > 0) == (classes > 0)).all()
    assert connected_cells(classes, [2]).max() == 1


def test_balanced_weights_give_every_class_the_same_sum():
    counts = np.array([900, 0, 90, 10])
    weights = balanced_weights(counts)
    np.testing.assert_allclose((weights * counts)[[0, 2, 3]], 1000 / 3)
    assert weights[1] == 0


def test_a_small_object_has_the_area_that_a_twentieth_are_below():
    lines = [np.repeat(np.arange(1, 51), np.arange(1, 51) + first) for first in (0, 50)]
    images = [np.append(line, [0] * 7)[None] for line in lines]  # areas of 1 to 100, and background
    assert small_object(iter(images)) == 5
    assert small_object([np.zeros((2, 3), int)]) == 0

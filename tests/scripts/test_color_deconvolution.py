import numpy as np
import pytest
from color_deconvolution import STAINS, grey_curve, haematoxylin, linear_map, mapped


def stained(amounts):
    """`uint8 [H, W, 3]` of amounts `[H, W, 2]` of haematoxylin and eosin (Beer-Lambert)."""
    stains = np.array(STAINS) / np.linalg.norm(STAINS, axis=1, keepdims=True)
    return (256 * np.exp(-amounts @ stains) - 1).round().clip(0, 255).astype(np.uint8)


def test_the_haematoxylin_of_a_mixture_is_found_whatever_the_eosin():
    amounts = np.random.default_rng(0).uniform(0, 1.2, (24, 24, 2))
    found = haematoxylin(stained(amounts))
    alone = haematoxylin(stained(amounts * [1, 0]))
    assert found.shape == (24, 24, 1)
    assert np.abs(found.astype(int) - alone).max() <= 6
    strongest = np.max(STAINS[0]) / np.linalg.norm(STAINS[0])
    expected = 256 * np.exp(-amounts[..., :1] * strongest) - 1
    assert np.abs(found - expected).max() <= 6
    assert haematoxylin(np.full((2, 2, 3), 255, np.uint8)).min() == 255


def test_it_is_the_separation_of_scikit_image():
    color = pytest.importorskip("skimage.color")
    image = stained(np.random.default_rng(1).uniform(0, 1.5, (16, 16, 2)))
    light = haematoxylin(image)[..., 0].astype(float)
    ours = -np.log((light + 1) / 256)
    theirs = color.rgb2hed(image)[..., 0]
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.99


def test_a_linear_map_is_found():
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (9, 7, 2)).astype(np.uint8) for _ in range(2)]
    weights = np.array([[0.5, 0.1], [0.2, -0.3], [10, 120]])
    targets = [image @ weights[:2] + weights[2] for image in images]
    found = linear_map(images, targets)
    np.testing.assert_allclose(found, weights, atol=1e-9)
    assert np.abs(mapped(images[0], found) - targets[0]).max() < 0.501


def test_the_curve_is_the_mean_of_each_grey_value():
    image = np.array([[[10], [10], [12]]], np.uint8)
    found = grey_curve([image], [np.array([[[20], [40], [50]]])])
    assert found[[10, 11, 12, 255]].tolist() == [30, 40, 50, 50]

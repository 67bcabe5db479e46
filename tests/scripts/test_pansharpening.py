import numpy as np
import pytest
from pansharpening import bicubic, brovey, enlarged, grey, reduced, wald_pair
from scipy import ndimage

RNG = np.random.default_rng(0)


@pytest.fixture
def scene():
    smooth = ndimage.gaussian_filter(RNG.random((45, 62, 3)), (3, 3, 0))
    low, high = smooth.min(), smooth.max()
    return (20 + 200 * (smooth - low) / (high - low)).round().astype(np.uint8)


@pytest.mark.parametrize("ratio", [3, 4])
def test_the_input_is_the_truth_reduced_and_its_grey(scene, ratio):
    image, truth = wald_pair(scene, ratio)
    assert truth.shape == (45 // ratio * ratio, 62 // ratio * ratio, 3)
    np.testing.assert_array_equal(truth, scene[: truth.shape[0], : truth.shape[1]])
    coarse = reduced(truth.astype(float), ratio)
    assert coarse.shape == (truth.shape[0] // ratio, truth.shape[1] // ratio, 3)
    # Taken at the coarse pixels' centres, the input's colours are those of the coarse sensor.
    places = [(np.arange(n) * ratio + (ratio - 1) / 2) for n in coarse.shape[:2]]
    grid = np.meshgrid(*places, indexing="ij")
    for channel in range(3):
        found = ndimage.map_coordinates(image[..., channel].astype(float), grid, order=3)
        assert np.abs(found - coarse[..., channel])[1:-1, 1:-1].max() < 1.5
    assert np.abs(image[..., 3:] - grey(truth)).max() <= 0.5
    np.testing.assert_array_equal(bicubic(image), image[..., :3])


def test_reducing_keeps_what_is_constant_and_linear():
    x = np.arange(64.0)
    ramp = np.broadcast_to(3 * x[None, :, None] + x[:, None, None] + 5, (64, 64, 1))
    coarse = reduced(ramp, 4)
    centres = 4 * np.arange(16) + 1.5
    expected = 3 * centres[None, :] + centres[:, None] + 5
    np.testing.assert_allclose(coarse[3:-3, 3:-3, 0], expected[3:-3, 3:-3], atol=1e-6)
    back = enlarged(coarse, 4)
    np.testing.assert_allclose(back[24:40, 24:40], ramp[24:40, 24:40], atol=0.1)


def test_brovey_gives_the_grey_and_keeps_the_colours(scene):
    image, _ = wald_pair(scene, 4)
    found = brovey(image).astype(float)
    inside = (found.max(-1) < 255)[..., None]
    assert np.abs((grey(found) - image[..., 3:]) * inside).max() < 1
    colours = image[..., :3].astype(float)
    shares = [c / c.sum(-1, keepdims=True) for c in (found, colours)]
    assert np.abs((shares[0] - shares[1]) * inside).max() < 0.02

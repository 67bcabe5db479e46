"""Channels, value ranges and resizing of pixel values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ddpm_unet.data.pixels import convert_channels, to_unit
from ddpm_unet.errors import UserError

RNG = np.random.default_rng(0)


def pixels(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("have", [1, 2, 3, 4])
@pytest.mark.parametrize("want", [1, 3, 4])
def test_channels(have, want, dtype):
    floats = dtype is np.float32
    picture = RNG.random((3, 4, have), np.float32) if floats else pixels(3, 4, have, dtype=dtype)
    opaque = 1 if floats else np.iinfo(dtype).max
    found = convert_channels(picture, want, "a.png")
    assert found.dtype == dtype
    assert found.shape == (3, 4, want)
    if have >= 3 and want == 1:
        luma = 0.299 * picture[..., 0] + 0.587 * picture[..., 1] + 0.114 * picture[..., 2]
        np.testing.assert_allclose(found[..., 0], luma, atol=1e-6 if floats else 0.51)
    else:
        colour = picture[..., : 1 if have < 3 else 3]
        shown = found[..., : 1 if want == 1 else 3]
        np.testing.assert_array_equal(shown, np.broadcast_to(colour, shown.shape))
    if want == 4:
        alpha = picture[..., -1] if have in (2, 4) else opaque
        np.testing.assert_array_equal(found[..., 3], np.broadcast_to(alpha, (3, 4)))


def test_many_channels_are_no_colours():
    with pytest.raises(UserError, match=r"a\.tif.*5 channels"):
        convert_channels(pixels(2, 2, 5), 3, "a.tif")
    assert convert_channels(pixels(2, 2, 5), None, "a.tif").shape == (2, 2, 5)


def test_unit_range_ends():
    assert to_unit(np.array([0, 255], np.uint8)).tolist() == [-1, 1]
    assert to_unit(np.array([0, 65535], np.uint16)).tolist() == [-1, 1]
    assert to_unit(np.array([0, 0.5, 1], np.float32)).tolist() == [-1, 0, 1]
    camera = np.array([0, 100, 2148, 4196, 65535], np.uint16)
    assert to_unit(camera, (100, 4196)).tolist() == [-1, -1, 0, 1, 1]
    for outside in (-0.1, 1.1):
        with pytest.raises(UserError, match=r"a\.tif.*data\.value_range"):
            to_unit(np.array([0.5, outside], np.float32), name="a.tif")


@settings(deadline=None)
@given(arrays.arrays(st.sampled_from([np.uint8, np.uint16]), st.integers(1, 20)))
def test_unit_range_is_exact_and_invertible(values):
    full = np.iinfo(values.dtype).max
    unit = to_unit(values)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, values.astype(np.float64) * 2 / full - 1, atol=1.2e-7)
    back = np.rint((unit.astype(np.float64) + 1) / 2 * full)
    np.testing.assert_array_equal(back, values)

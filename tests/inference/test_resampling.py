import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from ddpm_unet.data.pixels import linear_taps
from ddpm_unet.inference.tiles import (
    Resampled,
    Tiling,
    predict_scaled,
    predict_tiles,
    resample_bands,
    weighted,
)

TILING = Tiling(tile=40, margin=8, overlap=8, step=8)


def resized(planes, size):
    return interpolate(planes[None], size, mode="bilinear", antialias=True)[0]


@pytest.mark.parametrize(("length", "new"), [(37, 18), (37, 11), (20, 43), (7, 1), (1, 5), (9, 9)])
def test_the_weights_are_those_of_torch(length, new):
    planes = torch.rand(2, length, 8)
    index, weight = linear_taps(length, new)
    torch.testing.assert_close(weighted(planes, 1, index, weight), resized(planes, (new, 8)))


def test_any_rows_are_those_of_the_whole_picture_resampled():
    picture = torch.rand(53, 31, 2)
    source = Resampled(picture.numpy(), (23, 40))
    expected = resized(picture.movedim(-1, 0), (23, 40)).movedim(0, -1)
    assert source.shape == (23, 40, 2)
    for rows in (slice(0, 23), slice(0, 5), slice(7, 8), slice(20, 23)):
        torch.testing.assert_close(source[rows], expected[rows])


@pytest.mark.parametrize("new", [(47, 21), (9, 11), (20, 12)])
def test_bands_add_up_to_the_whole_resampled(new):
    whole = torch.rand(3, 20, 12)
    bands = list(resample_bands(iter(whole.split([1, 7, 2, 10], dim=1)), (20, 12), new))
    torch.testing.assert_close(torch.cat(bands, dim=1), resized(whole, new))
    assert len(bands) > 1


@pytest.mark.parametrize("scale", [0.5, 0.37, 1.7, 1.0])
def test_tiles_give_what_one_pass_over_the_whole_resampled_picture_gives(scale):
    """The network is a convolution wider than a pixel: tiles that were resampled one by one
    would differ at their borders."""
    rng = np.random.default_rng(0)
    picture = rng.random((150, 113, 3), dtype=np.float32)
    kernel = torch.from_numpy(rng.normal(size=(2, 3, 9, 9)).astype(np.float32))

    def predict(tiles):
        return torch.nn.functional.conv2d(tiles, kernel, padding=4)

    small = [round(n * scale) for n in picture.shape[:2]]
    scaled = resized(torch.from_numpy(picture).movedim(-1, 0), small)
    mirrored = torch.nn.functional.pad(scaled, (4, 4, 4, 4), mode="reflect")
    whole = torch.nn.functional.conv2d(mirrored[None], kernel)[0]
    bands = list(predict_scaled(predict, picture, scale, TILING))
    assert len(bands) > 1
    torch.testing.assert_close(
        torch.cat(bands, dim=1), resized(whole, (150, 113)), atol=1e-3, rtol=0
    )


def test_volumes_are_resampled_along_all_axes():
    volume = torch.rand(12, 20, 14, 1)
    tiling = Tiling(tile=24, margin=4, overlap=4, step=4)
    (band,) = predict_scaled(lambda tiles: tiles * 2, volume, 0.5, tiling)
    small = interpolate(volume.movedim(-1, 0)[None], (6, 10, 7), mode="nearest")
    assert band.shape == (1, 12, 20, 14)
    assert small.mean() * 2 == pytest.approx(float(band.mean()), rel=0.2)


def test_at_scale_1_nothing_is_resampled():
    picture = torch.rand(60, 50, 1)
    bands = list(predict_scaled(lambda tiles: tiles, picture, 1.0, TILING))
    whole = predict_tiles(lambda tiles: tiles, picture.movedim(-1, 0), TILING)
    assert torch.equal(torch.cat(bands, dim=1), whole)

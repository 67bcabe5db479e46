from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small import noise
from torch import nn
from torch.nn.functional import interpolate

from ddpm_unet.config import ClassicConfig
from ddpm_unet.data.pixels import linear_taps
from ddpm_unet.inference.predictor import tta
from ddpm_unet.inference.tiles import (
    Resampled,
    Tiling,
    plan,
    predict_bands,
    predict_scaled,
    predict_tiles,
    resample_bands,
    weighted,
)
from ddpm_unet.models.classic import ClassicUNet


class SmallUNet(nn.Module):
    """Two levels of pooling. Without padding it takes 4 n + 2 pixels and loses 10 on a side."""

    def __init__(self, padding, dims=2):
        super().__init__()
        torch.manual_seed(0)
        conv, up = (nn.Conv2d, nn.ConvTranspose2d) if dims == 2 else (nn.Conv3d, nn.ConvTranspose3d)
        self.pool = F.max_pool2d if dims == 2 else F.max_pool3d
        self.down = nn.ModuleList(
            conv(i, o, 3, padding=padding) for i, o in ((2, 4), (4, 6), (6, 8))
        )
        self.rise = nn.ModuleList(up(i, o, 2, stride=2) for i, o in ((8, 6), (6, 4)))
        self.join = nn.ModuleList(conv(i, o, 3, padding=padding) for i, o in ((12, 6), (8, 3)))

    @torch.no_grad()
    def forward(self, x):
        skips = []
        for level, layer in enumerate(self.down):
            x = layer(self.pool(x, 2) if level else x).relu()
            skips.append(x)
        for rise, join, skip in zip(self.rise, self.join, skips[-2::-1], strict=True):
            x = rise(x)
            for dim in range(2, x.dim()):
                skip = skip.narrow(dim, (skip.shape[dim] - x.shape[dim]) // 2, x.shape[dim])
            x = join(torch.cat([skip, x], dim=1))
        return x


def mirrored(image, margin, remainder=0):
    """The whole image with a mirrored border, enlarged at the end to a size 4 n + remainder."""
    pads = [(margin, margin + (remainder - 2 * margin - n) % 4) for n in image.shape[1:]]
    return torch.from_numpy(np.pad(image.numpy(), [(0, 0), *pads], mode="reflect"))


@pytest.mark.parametrize("size", [(36, 36), (37, 90), (120, 121), (7, 150), (1, 3)])
def test_seams_without_padding_are_exact(size):
    network, image = SmallUNet(padding=0), noise(2, *size)
    tiling = Tiling(tile=62, margin=10, overlap=0, step=4)
    tiled = predict_tiles(network, image, tiling, batch_size=3)
    whole = network(mirrored(image, 10, 2)[None])[0, :, : size[0], : size[1]]
    assert tiled.shape == (3, *size)
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-6)


def test_seams_would_show_off_the_pooling_grid():
    network, image = SmallUNet(padding=0), noise(2, 126, 126)  # three tiles of 42
    whole = network(mirrored(image, 10, 2)[None])[0, :, :126, :126]
    off = predict_tiles(network, image, Tiling(62, 10, 0, step=1))
    assert (off - whole).abs().max() > 1e-3


def test_published_tiles_of_2015():
    """The real network at its real size, only narrower."""
    torch.manual_seed(0)
    network = ClassicUNet(ClassicConfig(base_width=2, dropout=0)).eval().double()
    assert (network.margin, network.step) == (92, 16)
    sizes = set()

    def predict(tiles):
        sizes.add(tuple(tiles.shape[2:]))
        return network(tiles)

    tiling = Tiling(tile=572, margin=92, overlap=0, step=16)
    image = noise(1, 760, 388).double()  # which no smaller tiles cover
    tiled = predict_tiles(predict, image, tiling)
    assert sizes == {(572, 572)}
    # One pass over the whole mirrored image, of a size that the network takes.
    pads = [(92, network.valid_size(n + 184) - n - 92) for n in image.shape[1:]]
    padded = torch.from_numpy(np.pad(image.numpy(), [(0, 0), *pads], mode="reflect"))
    with torch.no_grad():
        whole = network(padded[None])[0, :, :760, :388]
    torch.testing.assert_close(tiled, whole.float(), rtol=1e-5, atol=1e-6)
    # 388 is no multiple of 16: neighbours are at most 384 apart.
    (axis,) = plan([1500], tiling)
    assert axis.kept == 388
    assert np.diff(axis.starts).max() <= 384


def test_padded_network_is_seamless_beyond_its_reach():
    """The margin hides the padding: as one pass over the image mirrored so far."""
    network, image = SmallUNet(padding=1), noise(2, 150, 90)
    whole = network(mirrored(image, 24)[None])[0, :, 24:174, 24:114]
    tiled = predict_tiles(network, image, Tiling(tile=72, margin=24, overlap=8, step=4))
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.integers(24, 50),
    st.integers(0, 5),
    st.integers(0, 9),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.integers(1, 5),
)
def test_any_size_comes_back(size, tile, margin, overlap, step, even, batch_size):
    image = noise(2, *size)
    tiling = Tiling(tile, margin, overlap, step, even)
    result = predict_tiles(lambda x: 2 * x[:, :1], image, tiling, batch_size)
    torch.testing.assert_close(result, 2 * image[:1], rtol=1e-5, atol=1e-6)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 3000),
    st.integers(64, 600),
    st.integers(0, 8),
    st.integers(0, 16),
    st.sampled_from([1, 4, 16]),
    st.booleans(),
)
def test_tiles_of_a_given_size(length, tile, margin, overlap, step, even):
    tiling = Tiling(tile, margin, overlap, step, even)
    (axis,) = plan([length], tiling)
    starts, kept = axis.starts, axis.kept
    assert starts[0] == 0
    assert starts[-1] + kept >= length
    assert starts[-1] < length
    assert all(start % step == 0 for start in starts)
    gaps = np.diff(starts)
    assert (gaps <= kept - overlap).all()
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= step
    assert axis.tile == kept + 2 * margin <= tile
    assert (tile - axis.tile) % step == 0
    # Fewer tiles could not cover it, and (even) neither could smaller ones.
    stride = (tile - 2 * margin - overlap) // step * step
    assert len(starts) == 1 or (len(starts) - 2) * stride + tile - 2 * margin < length
    total = torch.zeros(starts[-1] + kept)
    for start, weights in zip(starts, axis.weights, strict=True):
        total[start : start + kept] += weights
    torch.testing.assert_close(total, torch.ones_like(total))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 700), min_size=1, max_size=2),
    st.sampled_from([(64, 8, 8, 8), (48, 8, 0, 16), (62, 10, 0, 4)]),
    st.integers(64**2, 60_000),
)
def test_grown_tiles_compute_least(lengths, kind, pixels):
    """Every number of tiles is tried, up to that of the least tile, at the least size for it."""
    tile, margin, overlap, step = kind
    axes = plan(lengths, Tiling(*kind, pixels=pixels))
    assert all((axis.tile - tile) % step == 0 for axis in axes)

    least = 2 * margin + ((tile - 2 * margin) % step or step)

    def smallest(length, most):  # tile for each number of tiles
        found = {}
        for size in range(least, length + tile, step):
            kept = size - 2 * margin
            stride = (kept - overlap) // step * step
            if kept >= length or stride > 0:
                count = 1 + max(0, -(-(length - kept) // stride) if kept < length else 0)
                if count <= most:
                    found.setdefault(count, size)
        return found.items()

    base = plan(lengths, Tiling(*kind))
    bound = max(pixels, np.prod([axis.tile for axis in base]))
    best = min(
        np.prod([count * size for count, size in chosen])
        for chosen in product(
            *(smallest(n, len(axis.starts)) for n, axis in zip(lengths, base, strict=True))
        )
        if np.prod([size for _, size in chosen]) <= bound
    )
    area = np.prod([axis.tile for axis in axes])
    assert area <= bound
    assert np.prod([len(axis.starts) for axis in axes]) * area == best


def test_no_call_gets_more_pixels_than_allowed():
    seen = []

    def network(tiles):
        seen.append(tuple(tiles.shape))
        return tiles

    image = noise(1, 300, 40)
    tiling = Tiling(tile=32, margin=4, overlap=4, step=4, pixels=10_000)
    result = predict_tiles(network, image, tiling, batch_size=8)
    torch.testing.assert_close(result, image)
    assert max(np.prod(shape) for shape in seen) <= 10_000
    assert len({shape[2:] for shape in seen}) == 1
    # One tile of 40 + 8 across; so few down that they hardly share.
    assert seen[0][3] == 48
    assert sum(np.prod(shape) for shape in seen) < 1.4 * 300 * 48


def test_borders_are_mirrored_as_often_as_needed():
    image = noise(1, 3, 1)
    tiles = []
    predict_tiles(lambda x: tiles.append(x) or x, image, Tiling(20, 8, 0, 1))
    expected = np.pad(image[0].numpy(), 8, mode="reflect")
    np.testing.assert_array_equal(tiles[0][0, 0], expected)


def test_blending_is_a_gaussian_mean():
    """Tiles that contradict each other: their mean by bells of deviation kept / 8."""
    values = iter(range(100))
    image = torch.zeros(1, 1, 80)
    tiling = Tiling(tile=(1, 48), margin=0, overlap=16, step=1)
    result = predict_tiles(lambda x: torch.full_like(x, next(values)), image, tiling, batch_size=1)[
        0, 0
    ]
    bell = np.exp(-0.5 * ((np.arange(48) - 23.5) / 6) ** 2)
    share = bell[:16] / (bell[:16] + bell[32:])
    np.testing.assert_allclose(result[32:48], share, rtol=1e-5)
    assert (result[:32] == 0).all()
    assert (result[48:] == 1).all()


def test_bands_come_from_top_to_bottom():
    image = noise(200, 50, 1)
    tiling = Tiling(tile=40, margin=4, overlap=8, step=4)
    for batch_size in (1, 2, 7, 100):
        bands = list(predict_bands(lambda x: x, image, tiling, batch_size))
        torch.testing.assert_close(torch.cat(bands, dim=1), image.movedim(-1, 0))
        if batch_size < 7:
            assert max(band.shape[1] for band in bands) <= 40
    assert len(bands) == 1


def test_only_rows_under_tiles_are_read():
    class Source:
        shape = (500, 30, 1)
        tallest = 0

        def __getitem__(self, rows):
            assert 0 <= rows.start < rows.stop <= 500
            Source.tallest = max(Source.tallest, rows.stop - rows.start)
            return np.zeros((rows.stop - rows.start, 30, 1), np.uint16)

    tiling = Tiling(tile=32, margin=4, overlap=4, step=4)
    bands = list(predict_bands(lambda x: x.float(), Source(), tiling))
    assert sum(band.shape[1] for band in bands) == 500
    assert Source.tallest <= 32


def test_volumes():
    network, image = SmallUNet(padding=0, dims=3), noise(2, 13, 30, 41)
    tiled = predict_tiles(network, image, Tiling((34, 42, 38), 10, 0, 4), batch_size=2)
    whole = network(mirrored(image, 10, 2)[None])[0, :, :13, :30, :41]
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-6)


def test_half_precision_is_summed_in_float32():
    image = noise(1, 60, 60)
    result = predict_tiles(lambda x: x.bfloat16(), image, Tiling(32, 0, 8, 1))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, image.bfloat16().float())


def test_mean_over_turns():
    network, image = SmallUNet(padding=1), noise(1, 2, 24, 20)
    mean = tta(network)
    result = mean(image)
    # The group acts on the input as on the output.
    torch.testing.assert_close(mean(image.flip(-1)), result.flip(-1))
    torch.testing.assert_close(mean(torch.rot90(image, 1, (2, 3))), torch.rot90(result, 1, (2, 3)))
    assert (network(image.flip(-1)) - network(image).flip(-1)).abs().max() > 1e-2
    # All eight are there, once: the top edge's pixel is seen at the top by two.
    edge = torch.zeros(1, 1, 3, 3)
    edge[..., 0, 1] = 1
    top = tta(lambda x: x[..., 0, 1][..., None, None].expand_as(x))
    torch.testing.assert_close(top(edge), torch.full((1, 1, 3, 3), 2 / 8))


def test_faults_are_refused():
    image = noise(1, 100, 100)
    with pytest.raises(ValueError, match="too small"):
        predict_tiles(lambda x: x, image, Tiling(tile=40, margin=10, overlap=10, step=16))
    with pytest.raises(ValueError, match="gave \\(30, 30\\)"):
        predict_tiles(lambda x: x[..., 5:-5, 5:-5], image, Tiling(40, 3, 0, 1))
    with pytest.raises(ValueError, match="3 axes for an image of 2"):
        predict_tiles(lambda x: x, image, Tiling(tile=(40, 40, 40)))


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

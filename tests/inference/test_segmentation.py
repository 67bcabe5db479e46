import numpy as np
import pytest
import tifffile
import torch
from ddpm_unet.inference.files import FileSegmenter
from PIL import Image
from torch.nn.functional import interpolate, pad

from ddpm_unet.config import ClassicConfig, HeadConfig, PredictConfig, UNetConfig
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.errors import UserError
from ddpm_unet.inference.overlay import class_colors
from ddpm_unet.inference.predictor import class_probabilities, dimensions, tiling
from ddpm_unet.inference.tiles import predict_tiles
from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.segmenter import Segmenter
from ddpm_unet.models.unet import UNet


def classic(**settings):
    torch.manual_seed(0)
    settings = {"depth": 3, "base_width": 4, "num_classes": 3} | settings
    return ClassicUNet(ClassicConfig(**settings)).eval()


def small_unet(dims=2):
    return UNet(
        UNetConfig(
            dims=dims,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            add_attention=False,
            layers_per_block=1,
            norm_num_groups=4,
        )
    )


@torch.inference_mode()
def test_probabilities_are_the_softmax_and_one_score_means_two_classes():
    tiles = torch.randn(2, 1, 60, 60)
    three, one = classic(), classic(num_classes=1)
    torch.testing.assert_close(class_probabilities(three)(tiles), three(tiles).softmax(1))
    background, foreground = class_probabilities(one)(tiles).unbind(1)
    torch.testing.assert_close(foreground, one(tiles)[:, 0].sigmoid())
    torch.testing.assert_close(background, 1 - foreground)


@torch.inference_mode()
def test_turns_treat_all_directions_alike():
    tiles = torch.randn(1, 1, 60, 60)
    predict = class_probabilities(classic(), average=True)
    turned = predict(tiles.rot90(1, (2, 3)).flip(2)).flip(2).rot90(-1, (2, 3))
    torch.testing.assert_close(turned, predict(tiles))


@torch.inference_mode()
@pytest.mark.parametrize("tile", [30, 60, 100])
def test_without_padding_the_tiles_join_exactly(tile):
    model = classic()
    image = torch.randn(1, 77, 90)
    tiles = tiling(model, PredictConfig(tile, overlap=32))
    found = predict_tiles(class_probabilities(model), image, tiles)
    side = model.margin
    height, width = (model.valid_size(n + 2 * side) - 2 * side for n in image.shape[1:])
    border = (side, side + width - 90, side, side + height - 77)
    whole = model(pad(image[None], border, mode="reflect")).softmax(1)[0, :, :77, :90]
    torch.testing.assert_close(found, whole)


def test_the_published_tiles():
    model = ClassicUNet(ClassicConfig(base_width=1))
    tiles = tiling(model, PredictConfig(tile=572))
    assert (tiles.tile, tiles.tile - 2 * tiles.margin, tiles.overlap) == (572, 388, 0)


@pytest.mark.parametrize(("tile", "overlap"), [(64, 32), (95, 32), (256, -1), (256, 250)])
def test_tiles_of_nothing_but_border_are_refused(tile, overlap):
    model = classic(padding="same")
    with pytest.raises(UserError, match="a tile of at least"):
        tiling(model, PredictConfig(tile, overlap))
    assert tiling(model, PredictConfig(96, 32)).tile == 96


def test_dimensions():
    assert dimensions(classic()) == 2
    assert dimensions(Segmenter(small_unet(dims=3), HeadConfig())) == 3


def test_preparation_is_kept_in_the_model_folder(tmp_path):
    model = classic()
    assert Preprocessing.read(tmp_path, model.in_channels) == Preprocessing(channels=1)
    kept = Preprocessing(3, 0.5, (10, 3000))
    kept.write(tmp_path)
    assert Preprocessing.read(tmp_path, model.in_channels) == kept
    (file,) = tmp_path.iterdir()
    wrong = {
        "{": "is not readable",
        '{"size": 3}': "unknown key 'size'",
        "[1]": "holds no settings",
    }
    wrong['{"channels": 3, "value_range": [5, 5]}'] = "must be two numbers, black below white"
    for text, message in wrong.items():
        file.write_text(text)
        with pytest.raises(UserError, match=rf"preparation\.json: .*?{message}"):
            Preprocessing.read(tmp_path, model.in_channels)


def test_preparation_of_any_depth():
    deep = np.array([[[0], [1500], [3000], [65535]]], np.uint16)
    ranged = Preprocessing(3, value_range=(0, 3000)).pixels(deep, "deep")
    np.testing.assert_allclose(ranged, np.repeat([[[-1], [0], [1], [1]]], 3, axis=2), atol=1e-6)
    full = Preprocessing(1).pixels(deep, "deep")
    assert full[0, 3, 0] == 1
    assert full[0, 1, 0] == pytest.approx(2 * 1500 / 65535 - 1)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_a_large_tiff_at_half_scale_is_segmented_in_windows_as_in_one_piece(tmp_path, padding):
    """16 bits, read row by row, resampled, tiled, blended and enlarged: as all at once."""
    model = classic(padding=padding, depth=2)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 4096, (40, 34), np.uint16)
    picture = np.kron(coarse, np.ones((8, 8), np.uint16))[:315, :270]
    tifffile.imwrite(tmp_path / "a.tif", picture, rowsperstrip=16, compression="zlib")
    (tmp_path / "out").mkdir()
    preparation = Preprocessing(1, 0.5, (0, 4095))
    segmenter = FileSegmenter(
        predict=class_probabilities(model),
        prepare=preparation.pixels,
        channels=1,
        colors=class_colors(3),
        scale=0.5,
        tiling=tiling(model, PredictConfig(80, 8)),
        probabilities="tiff",
        stream_above=0.01,
    )
    counts = segmenter.write(tmp_path / "a.tif", tmp_path / "out", "a")

    unit = torch.from_numpy(picture / np.float32(4095) * 2 - 1)[None, None].float()
    half = interpolate(unit, (158, 135), mode="bilinear", antialias=True)
    side = model.margin or 16  # padded, the network reaches 8 and the pooling must fit
    height, width = (model.valid_size(n + 2 * side) - 2 * side for n in (158, 135))
    border = (side, side + width - 135 + width % 2, side, side + height - 158)
    with torch.inference_mode():
        scores = model(pad(half, border, mode="reflect"))
    if padding == "same":
        scores = scores[:, :, side:-side, side:-side]
    small = scores.softmax(1)[:, :, :158, :135]
    whole = interpolate(small, (315, 270), mode="bilinear", antialias=True)[0]
    found = tifffile.imread(tmp_path / "out" / "a_probabilities.tif")
    mask = tifffile.imread(tmp_path / "out" / "a_mask.tif")
    assert found.shape == (3, 315, 270)
    np.testing.assert_allclose(found, whole, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(mask, found.argmax(axis=0))
    assert counts.tolist() == np.bincount(mask.ravel(), minlength=3).tolist()
    assert Image.open(tmp_path / "out" / "a_overlay.png").size == (270, 315)

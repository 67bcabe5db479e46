import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.nn.functional import interpolate, pad

from ddpm_unet.config import ClassicConfig, PredictConfig
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.errors import UserError
from ddpm_unet.inference.objects import label_objects
from ddpm_unet.inference.overlay import class_colors
from ddpm_unet.inference.predictor import Predictor, add_residual, class_probabilities, tiling
from ddpm_unet.inference.results import write_masks
from ddpm_unet.inference.tiles import Tiling, predict_tiles
from ddpm_unet.inference.writers import output_names
from ddpm_unet.models.classic import ClassicUNet


def classic(**settings):
    torch.manual_seed(0)
    settings = {"depth": 3, "base_width": 4, "num_classes": 3} | settings
    return ClassicUNet(ClassicConfig(**settings)).eval()


@torch.inference_mode()
def test_probabilities_are_the_softmax_and_one_score_means_two_classes():
    tiles = torch.randn(2, 1, 60, 60)
    three, one = classic(), classic(num_classes=1)
    torch.testing.assert_close(class_probabilities(three)(tiles), three(tiles).softmax(1))
    background, foreground = class_probabilities(one)(tiles).unbind(1)
    torch.testing.assert_close(foreground, one(tiles)[:, 0].sigmoid())
    torch.testing.assert_close(background, 1 - foreground)


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


@pytest.mark.parametrize(("tile", "overlap"), [(64, 32), (95, 32), (256, -1), (256, 250)])
def test_tiles_of_nothing_but_border_are_refused(tile, overlap):
    model = classic(padding="same")
    with pytest.raises(UserError, match="a tile of at least"):
        tiling(model, PredictConfig(tile, overlap))
    assert tiling(model, PredictConfig(96, 32)).tile == 96


def test_tiles_by_default():
    volumes = ClassicUNet(ClassicConfig(dims=3, depth=3, base_width=2, padding="same"))
    assert tiling(volumes, PredictConfig()) == Tiling(96, 8, 16, step=4, pixels=96**3)
    own = PredictConfig(tile=40, overlap=0, margin=2)
    assert tiling(volumes, own) == Tiling(tile=40, margin=2, overlap=0, step=4)
    images = ClassicUNet(ClassicConfig(depth=3, base_width=2, padding="same"))
    assert tiling(images, PredictConfig()) == Tiling(256, 16, 32, step=32, pixels=768**2)
    with pytest.raises(UserError, match="a tile of at least 36"):
        tiling(volumes, PredictConfig(tile=32))


def test_a_residual_of_nothing_is_the_image_without_its_lost_border():
    images = torch.randn(2, 4, 12, 10)
    found = add_residual(torch.zeros(2, 3, 8, 6), images)
    assert torch.equal(found, images[:, :3, 2:-2, 2:-2])


def test_preprocessing_is_kept_in_the_model_folder(tmp_path):
    assert Preprocessing.read(tmp_path, 1) == Preprocessing(channels=1)
    (tmp_path / "preparation.json").write_text('{"channels": 3, "scale": 0.5}')  # earlier runs
    assert Preprocessing.read(tmp_path, 1) == Preprocessing(3, 0.5)
    kept = Preprocessing(3, 0.5, (10, 3000), dtype="uint16", spacing=(2.0, 1.0, 1.0))
    kept.write(tmp_path)
    assert Preprocessing.read(tmp_path, 1) == kept
    wrong = {
        "{": "is not readable",
        '{"size": 3}': "unknown key 'size'",
        "[1]": "holds no settings",
        '{"channels": 3, "value_range": [5, 5]}': "must be two numbers, black below white",
    }
    for text, message in wrong.items():
        (tmp_path / "preprocessing.json").write_text(text)
        with pytest.raises(UserError, match=rf"preprocessing\.json: .*?{message}"):
            Preprocessing.read(tmp_path, 1)


def test_pixels_of_any_depth_there_and_back():
    deep = np.array([[[0], [1500], [3000], [65535]]], np.uint16)
    ranged = Preprocessing(3, value_range=(0, 3000), dtype="uint16")
    unit = ranged.to_unit(deep, "deep")
    np.testing.assert_allclose(unit, np.repeat([[[-1], [0], [1], [1]]], 3, axis=2), atol=1e-6)
    back = ranged.to_pixels(unit)
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back[0, :, 0], [0, 1500, 3000, 3000])
    full = Preprocessing(1).to_unit(deep, "deep")
    assert full[0, 1, 0] == pytest.approx(2 * 1500 / 65535 - 1)
    hounsfield = Preprocessing(1, value_range=(-1000.0, 500.0), dtype="float32")
    np.testing.assert_allclose(hounsfield.to_pixels(np.array([-1.0, 1.0])), [-1000, 500])


@pytest.mark.parametrize(
    ("trained", "dtype", "highest", "known"),
    [
        ({"dtype": "uint16", "value_range": (0, 4095)}, "uint16", 4095, True),
        ({"dtype": "uint16", "value_range": (0, 4095)}, "uint8", 255, False),
        ({"dtype": "uint8"}, "uint16", 4095, False),  # 12 bits or 16
        ({"dtype": "uint8"}, "uint16", 60000, True),  # nothing less than 16 bits
        ({"dtype": "uint8"}, "uint16", None, False),  # not read whole
        ({"dtype": "uint16"}, "uint8", 255, True),
        ({"dtype": "uint8"}, "float32", 1.0, True),
        ({"dtype": "uint16", "value_range": "percentiles"}, "uint8", 255, True),
        ({}, "uint16", 4095, True),  # a folder of an earlier run does not say
    ],
)
def test_black_and_white_are_known_or_asked_for(trained, dtype, highest, known):
    own = Preprocessing(1, **trained)
    if known:
        own.check_depth(np.dtype(dtype), highest, "a.tif")
        return
    with pytest.raises(UserError, match=f"a.tif: has pixels of {dtype}, .* with value_range"):
        own.check_depth(np.dtype(dtype), highest, "a.tif")


def of_colour(**preprocessing):
    """Class 1 where the mean of the channels is above the middle."""
    model = classic(padding="same", num_classes=2, in_channels=3)
    model.forward = lambda x: torch.cat([-x.mean(1, True), x.mean(1, True)], 1)
    return Predictor(model, Preprocessing(3, **preprocessing))


def test_every_kind_of_image_gives_the_same(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    predictor = of_colour()
    found = predictor(array)
    assert (found.mask.shape, found.probabilities.shape) == ((20, 31), (2, 20, 31))
    np.testing.assert_array_equal(found.mask, array.mean(-1) > 127.5)
    first = np.ascontiguousarray(array.transpose(2, 0, 1))
    others = [
        tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(array), first,
        torch.from_numpy(array), torch.from_numpy(first), array / np.float64(255),
        array.astype(np.uint16) * 257,
    ]  # fmt: skip
    for other in others:
        np.testing.assert_allclose(
            predictor(other).probabilities, found.probabilities, atol=1e-6, rtol=0
        )
    grey = np.full((20, 31), 200, np.uint8)
    assert predictor(grey).mask.all()
    assert found.objects[0].mean_intensity == pytest.approx(
        array[label_objects(found.mask) == 1].mean(0)
    )


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 20, 3), np.uint8), "could have its channels first or last"),
        (np.zeros((7, 20, 30), np.uint8), "has other channels, the model takes 3"),
        (np.zeros((1, 3, 20, 30), np.uint8), "give one image"),
        (np.zeros((20, 30), np.int64), "the array is int64; give uint8, uint16 or float32"),
        (np.full((20, 30), 7, np.float32), "say what is black and white with value_range"),
    ],
)
def test_arrays_that_are_not_known_are_named(array, message):
    with pytest.raises(UserError, match=message):
        of_colour()(array)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_a_large_tiff_at_half_scale_is_segmented_in_windows_as_in_one_piece(tmp_path, padding):
    """16 bits, read row by row, resampled, tiled, blended and enlarged: as all at once."""
    model = classic(padding=padding, depth=2)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 4096, (40, 34), np.uint16)
    picture = np.kron(coarse, np.ones((8, 8), np.uint16))[:315, :270]
    tifffile.imwrite(tmp_path / "a.tif", picture, rowsperstrip=16, compression="zlib")
    (tmp_path / "out").mkdir()
    predictor = Predictor(
        model, Preprocessing(1, 0.5, (0, 4095)), tile=80, overlap=8, stream_above=0.01
    )
    with predictor.open(tmp_path / "a.tif") as source:
        base = tmp_path / "out" / "a"
        counts = write_masks(source, base, class_colors(3), probabilities="tiff")

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


@pytest.mark.parametrize(("channels", "alpha"), [(2, False), (2, True), (3, False), (4, False)])
def test_channels_that_are_no_colours_are_not_mixed(tmp_path, channels, alpha):
    stored = np.random.default_rng(0).integers(0, 256, (channels, 20, 30), np.uint8)
    options = {"extrasamples": ["unassalpha"]} if alpha else {}
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack",
                     planarconfig="separate", **options)  # fmt: skip
    predictor = Predictor(classic(), Preprocessing(1))
    assert predictor(np.zeros((20, 30, 1), np.uint8)).mask.shape == (20, 30)
    if alpha:
        grey = predictor(stored[0][..., None]).probabilities
        np.testing.assert_array_equal(predictor(tmp_path / "a.tif").probabilities, grey)
        assert predictor.changes(tmp_path / "a.tif") == " (2 channels made 1)"
        return
    for use in (predictor, predictor.look):
        with pytest.raises(UserError, match=f"has {channels} channels that are no colours, 1 is"):
            use(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("highest", "most", "told"),
    [(4095, 4095, False), (4095, 255, True), (4095, 60000, True), (4095, 0, False),
     (None, 255, False), (4095, 1000, False)],
)  # fmt: skip
def test_values_far_from_those_of_the_training_are_told(highest, most, told, recwarn):
    own = Preprocessing(1, value_range=(0.0, 4095.0), dtype="uint16", highest=highest)
    Predictor(classic(), own)(np.full((20, 30), most, np.uint16))
    said = [str(w.message) for w in recwarn if w.category is UserWarning]
    expected = f"the array: values up to {most}, in training up to 4095; see value_range"
    assert said == [expected] * told


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_an_image_in_a_file_per_channel(tmp_path, ending):
    """As the array of all its channels, and named without their numbers."""
    array = np.random.default_rng(0).integers(0, 256, (20, 24, 2), np.uint8)
    for number in range(2):
        name = tmp_path / f"case_000{number}.{ending}"
        write = tifffile.imwrite if ending == "tif" else lambda p, a: Image.fromarray(a).save(p)
        write(name, np.ascontiguousarray(array[..., number]))
    own = Preprocessing(2, channel_files=("0000", "0001"))
    (path,) = own.images(sorted(tmp_path.iterdir()))
    assert output_names([path], tmp_path / "out") == ["case"]
    predictor = Predictor(classic(in_channels=2), own)
    wanted = predictor(array).probabilities
    assert (predictor(path).probabilities == wanted).all()
    with predictor.open(path) as file:
        assert (next(file.parts)[3][0] == wanted).all()
    with pytest.raises(UserError, match="has 1 channel, which cannot become 2"):
        predictor(tmp_path / f"case_0000.{ending}")
    Image.fromarray(array[:9, :, 0]).save(tmp_path / f"case_0001.{ending}")
    with pytest.raises(UserError, match="has not the size and type of"):
        predictor.look(path)

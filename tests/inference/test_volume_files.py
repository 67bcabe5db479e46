"""Segmenting volume files: the mask lies where the input lies, in its format."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from ddpm_unet.inference.files import FileSegmenter
from PIL import Image

from ddpm_unet.config import ClassicConfig, PredictConfig
from ddpm_unet.data.pixels import normalised, to_unit
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.errors import UserError
from ddpm_unet.inference.overlay import class_colors, displayable, draw_overlay, side_by_side
from ddpm_unet.inference.predictor import class_probabilities, tiling
from ddpm_unet.inference.tiles import Tiling
from ddpm_unet.inference.writers import output_names
from ddpm_unet.models.classic import ClassicUNet

AFFINE = np.array([[0, -2.0, 0, 10], [1.0, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model() -> ClassicUNet:
    torch.manual_seed(0)
    return ClassicUNet(ClassicConfig(dims=3, num_classes=3, depth=2, base_width=4)).eval()


def segmenter(model: ClassicUNet, **changes) -> FileSegmenter:
    preparation = Preprocessing(1, value_range="percentiles")
    settings = {
        "predict": class_probabilities(model),
        "prepare": preparation.pixels,
        "whole": preparation.whole,
        "channels": 1,
        "colors": class_colors(3),
        "dims": 3,
        "tiling": tiling(model, PredictConfig(tile=24)),
        "probabilities": "tiff",
    }
    return FileSegmenter(**{**settings, **changes})


def expected(model: ClassicUNet, volume: np.ndarray) -> np.ndarray:
    """Probabilities `[K, D, H, W]` in one pass over the mirrored volume."""
    image = torch.from_numpy(to_unit(normalised(volume[..., None], "percentiles"))[None, ..., 0])
    margin = model.margin
    sizes = [model.valid_size(n + 2 * margin) - n - 2 * margin for n in volume.shape]
    widths = [n for extra in reversed(sizes) for n in (margin, margin + extra)]
    padded = torch.nn.functional.pad(image[None], widths, mode="reflect")
    with torch.no_grad():
        z, y, x = volume.shape
        return model(padded).softmax(1)[0, :, :z, :y, :x].numpy()


def test_a_nifti_mask_has_the_affine_of_its_input(model, tmp_path):
    array = RNG.normal(100, 30, (26, 21, 17)).astype(np.float32)
    nibabel.Nifti1Image(array, AFFINE).to_filename(tmp_path / "a.nii.gz")
    out = tmp_path / "out"
    out.mkdir()
    counts = segmenter(model).write(tmp_path / "a.nii.gz", out, "a")
    wanted = expected(model, array.T)
    mask, chances = (nibabel.load(out / f"a_{x}.nii.gz") for x in ("mask", "probabilities"))
    np.testing.assert_array_equal(mask.affine, AFFINE)
    np.testing.assert_array_equal(chances.affine, AFFINE)
    assert (mask.get_data_dtype(), chances.get_data_dtype()) == (np.uint8, np.float32)
    assert chances.shape == (26, 21, 17, 3)
    np.testing.assert_allclose(chances.get_fdata().transpose(3, 2, 1, 0), wanted, atol=1e-5)
    classes = np.asarray(mask.dataobj)
    np.testing.assert_array_equal(classes, chances.get_fdata().argmax(-1))
    assert counts.tolist() == [(classes == k).sum() for k in range(3)]
    overlay = tifffile.imread(out / "a_overlay.tif")
    assert (overlay.shape, len(list(out.iterdir()))) == ((17, 26, 21, 3), 3)


def test_a_tiff_volume_gives_tiff(model, tmp_path):
    array = RNG.integers(0, 255, (11, 20, 13)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", array)
    segmenter(model).write(tmp_path / "a.tif", tmp_path, "a")
    wanted = expected(model, array)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a_mask.tif"), wanted.argmax(0))


def test_a_picture_is_no_volume(model, tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: is no volume; give NIfTI"):
        segmenter(model).write(tmp_path / "a.png", tmp_path, "a")


def test_percentiles_of_pictures_are_those_of_the_whole(tmp_path):
    pages = RNG.normal(size=(2, 40, 30)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", pages)
    preparation = Preprocessing(1, value_range="percentiles")
    FileSegmenter(
        predict=lambda x: torch.cat([-x, x], dim=1),
        prepare=preparation.pixels,
        whole=preparation.whole,
        channels=1,
        colors=class_colors(2),
        tiling=Tiling(tile=24, margin=4, overlap=4, step=4),
        probabilities="tiff",
        stream_above=1e-4,
    ).write(tmp_path / "a.tif", tmp_path, "a")
    unit = np.stack([to_unit(normalised(page[..., None], "percentiles"))[..., 0] for page in pages])
    written = tifffile.imread(tmp_path / "a_probabilities.tif")
    np.testing.assert_allclose(written[:, 1], unit, atol=1e-6)


def test_names_of_nifti_files():
    paths = [Path(name) for name in ("x/a.nii.gz", "x/b.nii", "y/b.nii.gz")]
    assert output_names(paths, Path("out")) == ["a", "b.nii", "b.nii.gz"]


def test_tiles_of_volumes_by_default():
    volumes = ClassicUNet(ClassicConfig(dims=3, depth=3, base_width=2, padding="same"))
    assert tiling(volumes, PredictConfig()) == Tiling(96, 8, 16, step=4, pixels=96**3)
    own = PredictConfig(tile=40, overlap=0, margin=2)
    assert tiling(volumes, own) == Tiling(tile=40, margin=2, overlap=0, step=4)
    pictures = ClassicUNet(ClassicConfig(depth=3, base_width=2, padding="same"))
    assert tiling(pictures, PredictConfig()) == Tiling(256, 16, 32, step=32, pixels=768**2)
    with pytest.raises(UserError, match="a tile of at least 36"):
        tiling(volumes, PredictConfig(tile=32))


def test_slices_side_by_side():
    volume = RNG.integers(0, 255, (12, 100, 60, 1)).astype(np.uint8)
    masks = [np.zeros((12, 100, 60), np.uint8) for _ in range(2)]
    masks[0][3:9, 10:30, 10:30] = 1
    colors = class_colors(2)
    shown = side_by_side(volume, masks, colors, most=2)
    assert shown.shape == (2 * 200, 2 * 120, 3)
    large = volume[6].repeat(2, axis=0).repeat(2, axis=1)
    wanted = draw_overlay(large, masks[0][6].repeat(2, axis=0).repeat(2, axis=1), colors)
    np.testing.assert_array_equal(shown[200:, :120], wanted)
    np.testing.assert_array_equal(shown[200:, 120:], displayable(large))
    flat = side_by_side(volume[0], [mask[0] for mask in masks], colors)
    assert flat.shape == (100, 120, 3)

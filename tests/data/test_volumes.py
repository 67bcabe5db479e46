"""Volume files: NIfTI and TIFF read and written, and the range of their values."""

import nibabel
import numpy as np
import pytest
import tifffile
from data_files import AFFINE, save

from ddpm_unet.data.pixels import normalised, to_unit
from ddpm_unet.data.reading import image_info, read_image, volume_space
from ddpm_unet.data.volumes import write_nifti
from ddpm_unet.errors import UserError

RNG = np.random.default_rng(0)


def canonical(array):
    """[X, Y, Z] of AFFINE, whose x goes to the front and y to the left, as [D, H, W] of RAS."""
    return array.transpose(2, 0, 1)[:, :, ::-1]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("stored", "read"),
    [("uint8", "uint8"), ("uint16", "uint16"), ("int16", "float32"), ("float64", "float32")],
)
def test_nifti_is_read_slices_first_in_its_own_depth(tmp_path, ending, stored, read):
    array = RNG.integers(0, 200, (4, 5, 6)).astype(stored)
    path = save(tmp_path / f"a{ending}", array)
    volume, info = read_image(path, 3), image_info(path, 3)
    assert (volume.shape, volume.dtype) == ((6, 4, 5, 1), read)
    np.testing.assert_array_equal(volume[..., 0], canonical(array))
    assert (*info.size, info.channels, info.dtype) == (*volume.shape, volume.dtype)
    assert volume_space(path).spacing == (3, 1, 2)


def test_channels_slope_and_flat_files(tmp_path):
    several = save(tmp_path / "a.nii", RNG.random((2, 3, 4, 5)).astype(np.float32))
    assert read_image(several, 3).shape == (4, 2, 3, 5)
    scaled = save(tmp_path / "b.nii", np.full((2, 3, 4), 10, np.int16), scale=(0.5, -2))
    assert image_info(scaled, 3).dtype == read_image(scaled, 3).dtype == np.float32
    raw = nibabel.load(scaled).dataobj.get_unscaled()
    np.testing.assert_allclose(read_image(scaled, 3)[..., 0], canonical(raw) * 0.5 - 2)
    assert read_image(save(tmp_path / "c.nii", np.ones((2, 3), np.uint8)), 3).shape == (1, 2, 3, 1)


def test_a_tiff_is_a_volume_of_its_pages(tmp_path):
    pages = RNG.integers(0, 9, (5, 6, 7)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pages)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", 3)[..., 0], pages)
    assert image_info(tmp_path / "a.tif", 3).size == (5, 6, 7)
    assert volume_space(tmp_path / "a.tif") is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no volume" * 99), "a.nii: is damaged or truncated"),
        (lambda path: path.write_bytes(b""), "a.nii: is damaged or truncated"),
        (lambda path: None, "a.nii: no such file"),
        (lambda path: save(path, np.full((2, 2, 2), np.nan)), "8 values are NaN"),
        (lambda path: save(path, np.zeros((200, 200, 30), np.uint8)), "over the limit"),
        (lambda path: save(path, np.zeros((2, 2, 2, 2, 2), np.uint8)), "has 5 axes"),
        (lambda path: save(path, np.zeros((2, 2, 2), np.complex64)), "holds complex64 values"),
        (lambda path: save(path, np.full((2, 2, 2), 2**25, np.int32)), "more than float32"),
    ],
)
def test_faults_are_named(tmp_path, make, message):
    make(tmp_path / "a.nii")
    with pytest.raises(UserError, match=message) as caught:
        read_image(tmp_path / "a.nii", 3, max_pixels=1)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_named(tmp_path):
    path = save(tmp_path / "a.nii.gz", RNG.integers(0, 255, (20, 20, 20)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"a\.nii\.gz: is damaged or truncated"):
        read_image(path, 3)


def test_what_is_written_is_read_again_where_it_lay(tmp_path):
    space = volume_space(save(tmp_path / "a.nii", np.zeros((2, 3, 4), np.int16)))
    volume = RNG.integers(0, 3, (4, 3, 2)).astype(np.uint8)
    for name in ("b.nii.gz", "c.nii.gz"):
        write_nifti(tmp_path / name, volume, space)
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()
    np.testing.assert_array_equal(read_image(tmp_path / "b.nii.gz", 3)[..., 0], volume)
    written = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(written.affine, AFFINE)
    assert written.get_data_dtype() == np.uint8
    assert written.header["sform_code"] == nibabel.load(tmp_path / "a.nii").header["sform_code"]
    several = RNG.random((5, 4, 3, 2), np.float32)
    write_nifti(tmp_path / "d.nii.gz", several)
    np.testing.assert_array_equal(read_image(tmp_path / "d.nii.gz", 3), np.moveaxis(several, 0, -1))


def test_percentiles_are_those_of_each_channel_of_the_whole():
    volume = RNG.normal(100, 20, (5, 40, 50, 2)).astype(np.float32) * [1, 1000]
    unit = normalised(volume, "percentiles")
    assert (unit.dtype, unit.min(), unit.max()) == (np.float32, 0, 1)
    for channel in range(2):
        low, high = np.percentile(volume[..., channel], [0.5, 99.5])
        wanted = ((volume[..., channel] - low) / (high - low)).clip(0, 1)
        np.testing.assert_allclose(unit[..., channel], wanted, atol=1e-5)
    np.testing.assert_array_equal(to_unit(unit, "percentiles"), to_unit(unit))
    np.testing.assert_allclose(normalised(volume * 7 + 3, "percentiles"), unit, atol=1e-5)
    assert normalised(volume, (0, 1)) is volume
    assert not normalised(np.full((2, 2, 1), 7, np.uint8), "percentiles").any()

import numpy as np
import pytest
import tifffile
from PIL import Image

from ddpm_unet.data.reading import is_tiff, read_image
from ddpm_unet.errors import UserError
from ddpm_unet.inference.readers import PlaneRows, Prepared, open_planes


def pixels(*shape, dtype=np.uint8, seed=0):
    values = np.random.default_rng(seed).integers(0, 200, shape)
    return values.astype(dtype)


STORED = {
    "plain": {},
    "strips": {"rowsperstrip": 7},
    "zlib strips": {"rowsperstrip": 7, "compression": "zlib"},
    "predictor": {"rowsperstrip": 5, "compression": "zlib", "predictor": True},
    "tiles": {"tile": (32, 16)},
    "zlib tiles": {"tile": (16, 48), "compression": "zlib"},
    "big-endian": {"byteorder": ">"},
    "bigtiff": {"bigtiff": True, "tile": (32, 16)},
}


SHAPES = {"grey": (101, 53), "rgb": (101, 53, 3), "z": (3, 50, 20), "zrgb": (4, 45, 30, 3)}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("kind", SHAPES)
def test_any_rows_equal_the_whole(tmp_path, stored, kind):
    """Of three depths in turn; tifffile alone has no predictor for floats."""
    shape, turn = SHAPES[kind], [*STORED].index(stored) + [*SHAPES].index(kind)
    dtype = (np.uint8, np.uint16, np.float32)[turn % (2 if stored == "predictor" else 3)]
    array = pixels(*shape, dtype=dtype)
    path = tmp_path / "a.tif"
    colour = "rgb" if shape[-1] == 3 else "minisblack"
    tifffile.imwrite(path, array, photometric=colour, **STORED[stored])
    whole = read_image(path, 3)
    with open_planes(path, stream_above=1e-4) as planes:
        assert len(planes) == len(whole)
        for plane, expected in zip(planes, whole, strict=True):
            assert isinstance(plane, PlaneRows)
            assert plane.shape == expected.shape
            height = plane.shape[0]
            for low, high in ((0, height), (0, 1), (height - 1, height), (13, 29), (16, 32)):
                rows = plane[low:high]
                assert rows.dtype == expected.dtype
                np.testing.assert_array_equal(rows, expected[low:high])


def test_rows_of_chosen_channels(tmp_path):
    array = pixels(2, 60, 40, 3)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", tile=(16, 16))
    with open_planes(tmp_path / "a.tif", stream_above=1e-4, channels=("2", "0")) as planes:
        assert [type(plane) for plane in planes] == [PlaneRows] * 2
        np.testing.assert_array_equal(planes[1][20:37], array[1, 20:37][..., [2, 0]])


def test_small_files_are_read_whole(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pixels(2, 20, 30))
    Image.fromarray(pixels(20, 30, 3)).save(tmp_path / "b.png")
    with open_planes(tmp_path / "a.tif") as planes:
        assert [type(p) for p in planes] == [np.ndarray] * 2
        assert planes[1].shape == (20, 30, 1)
    with open_planes(tmp_path / "b.png") as planes:
        np.testing.assert_array_equal(planes[0], pixels(20, 30, 3))
    assert is_tiff(tmp_path / "a.tif")
    assert not is_tiff(tmp_path / "b.png")
    assert not is_tiff(tmp_path / "none.tif")


CONVERTED = {
    "palette": {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
    "negative": {"photometric": "miniswhite"},
    "turned": {"extratags": [(274, 3, 1, 6, True)]},
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_what_needs_conversion_is_read_whole(tmp_path, kind):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels(40, 30), **CONVERTED[kind])
    with open_planes(path, stream_above=1e-4) as planes:
        np.testing.assert_array_equal(planes, read_image(path, 3))


def test_channel_planes_and_wide_integers_are_read_whole(tmp_path):
    tifffile.imwrite(
        tmp_path / "c.tif", pixels(3, 40, 30), metadata={"axes": "CYX"}, photometric="minisblack"
    )
    tifffile.imwrite(tmp_path / "i.tif", pixels(40, 30, dtype=np.int32))
    for name, shape in (("c.tif", (40, 30, 3)), ("i.tif", (40, 30, 1))):
        with open_planes(tmp_path / name, stream_above=1e-4) as planes:
            assert isinstance(planes[0], np.ndarray)
            assert planes[0].shape == shape


def test_faults_name_the_file(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels(200, 50, seed=1), compression="zlib", rowsperstrip=10)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.tif: .*damaged"), open_planes(path, stream_above=1e-4):
        pass
    path.write_bytes(whole)
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].dataoffsets[12]
    path.write_bytes(whole[:place] + b"\0\0\0\0" + whole[place + 4 :])
    with open_planes(path, stream_above=1e-4) as planes:
        planes[0][0:100]
        with pytest.raises(UserError, match=r"a\.tif: is damaged"):
            planes[0][100:140]
    values = pixels(200, 50, dtype=np.float32)
    values[150, 7] = np.nan
    tifffile.imwrite(path, values)
    with (
        open_planes(path, stream_above=1e-4) as planes,
        pytest.raises(UserError, match=r"a\.tif: 1 values are NaN .* row 150, column 7"),
    ):
        planes[0][140:160]
    with (
        pytest.raises(UserError, match=r"none\.tif: no such file"),
        open_planes(tmp_path / "none.tif"),
    ):
        pass


def test_prepared_rows():
    source = Prepared(pixels(10, 4, 1), lambda a: np.repeat(a, 3, axis=-1) / 255, channels=3)
    assert source.shape == (10, 4, 3)
    np.testing.assert_array_equal(source[2:5][..., 1], pixels(10, 4, 1)[2:5, :, 0] / 255)

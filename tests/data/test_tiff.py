"""TIFF of every depth, layout and fault."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from ddpm_unet.data.pictures import picture_info, read_picture, read_stack
from ddpm_unet.errors import UserError

RNG = np.random.default_rng(0)


def values(dtype: str, *shape: int) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return RNG.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return RNG.integers(max(info.min, -(2**24)), min(info.max, 2**24), shape).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        ("uint8", "uint8"),
        ("uint16", "uint16"),
        ("int8", "float32"),
        ("int16", "float32"),
        ("uint32", "float32"),
        ("int32", "float32"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float32"),
    ],
)
@pytest.mark.parametrize("layout", ["grey", "contiguous", "separate"])
def test_depths_and_layouts(tmp_path: Path, dtype: str, result: str, layout: str) -> None:
    path = tmp_path / "a.tif"
    picture = values(dtype, 6, 9, 1 if layout == "grey" else 5)
    if layout == "separate":
        tifffile.imwrite(
            path, picture.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"
        )
    else:
        contiguous = picture[..., 0] if layout == "grey" else picture
        planar = None if layout == "grey" else "contig"
        tifffile.imwrite(path, contiguous, photometric="minisblack", planarconfig=planar)
    found, info = read_picture(path), picture_info(path)
    assert found.dtype == result == info.dtype
    np.testing.assert_array_equal(found, picture.astype(result))
    assert found.shape == (info.height, info.width, info.channels)


def test_imagej_channels_are_channels_and_pages_are_not(tmp_path: Path) -> None:
    planes = values("uint16", 3, 6, 9)
    tifffile.imwrite(tmp_path / "c.tif", planes, imagej=True, metadata={"axes": "CYX"})
    np.testing.assert_array_equal(read_picture(tmp_path / "c.tif"), planes.transpose(1, 2, 0))
    tifffile.imwrite(tmp_path / "z.tif", planes, photometric="minisblack")
    for read in (read_picture, picture_info):
        with pytest.raises(UserError, match=r"z\.tif: has 3 pages"):
            read(tmp_path / "z.tif")
    np.testing.assert_array_equal(read_stack(tmp_path / "z.tif"), planes[..., None])


def test_stacks(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    colour = values("uint8", 4, 6, 9, 3)
    tifffile.imwrite(path, colour, photometric="rgb")
    np.testing.assert_array_equal(read_stack(path), colour)
    tifffile.imwrite(path, colour[0], photometric="rgb")
    np.testing.assert_array_equal(read_stack(path), colour[:1])
    frames = [Image.fromarray(page) for page in colour]
    frames[0].save(path, save_all=True, append_images=frames[1:], compression="tiff_lzw")
    np.testing.assert_array_equal(read_stack(path), colour)
    with pytest.raises(UserError, match="million pixels"):
        read_stack(path, max_pixels=200e-6)
    tifffile.imwrite(path, values("uint8", 2, 3, 6, 9), imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(UserError, match="axes TZYX"):
        read_stack(path)
    with tifffile.TiffWriter(path) as file:
        file.write(colour[0], photometric="rgb")
        file.write(colour[0, ::2], photometric="rgb")
    with pytest.raises(UserError, match="2 pictures of different shapes"):
        read_stack(path)


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits"])
def test_compressions_of_8_bits(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(values("uint8", 16, 16, 3)).save(path, compression=compression)
    np.testing.assert_array_equal(read_picture(path), np.asarray(Image.open(path)))


def test_lzw_never_cuts_16_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    picture = values("uint16", 16, 16)
    Image.fromarray(picture).save(path, compression="tiff_lzw")
    np.testing.assert_array_equal(read_picture(path)[..., 0], picture)


def test_white_is_zero_is_turned_round(tmp_path: Path) -> None:
    picture = values("uint8", 6, 9)
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="miniswhite")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif")[..., 0], 255 - picture)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_not_finite(tmp_path: Path, bad: float, dtype: str) -> None:
    picture = values(dtype, 6, 9)
    picture[2, 7] = bad
    tifffile.imwrite(tmp_path / "scan 3.tif", picture)
    with pytest.raises(UserError, match=r"scan 3\.tif: 1 values are NaN.*row 2, column 7"):
        read_picture(tmp_path / "scan 3.tif")


def test_what_float32_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.full((4, 4), 2**24 + 1, np.uint32))
    with pytest.raises(UserError, match="16777217"):
        read_picture(path)
    tifffile.imwrite(path, np.full((4, 4), 1e300))
    with pytest.raises(UserError, match="infinite"):
        read_picture(path)
    tifffile.imwrite(path, np.ones((4, 4), np.complex64))
    with pytest.raises(UserError, match="complex64"):
        read_picture(path)


def test_odd_colour_spaces_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values("uint8", 6, 9, 3), photometric="cielab")
    with pytest.raises(UserError, match="CIELAB"):
        read_picture(tmp_path / "a.tif")

"""Reading back exactly what was written, and one line for what cannot be read."""

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps

from ddpm_unet.data.pictures import picture_info, read_picture, read_stack
from ddpm_unet.data.pixels import convert_channels, to_unit
from ddpm_unet.errors import UserError

RNG = np.random.default_rng(0)


def pixels(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def write_deep_png(path: Path, picture: np.ndarray) -> None:
    """16-bit PNG of 1 to 4 channels, which Pillow cannot write: PNG specification, section 5."""
    height, width, channels = picture.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in picture)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(kind + body))
        data += struct.pack(">I", len(body)) + kind + body + check
    path.write_bytes(data)


def assert_reads(path: Path, expected: np.ndarray) -> None:
    picture = read_picture(path)
    assert picture.dtype == expected.dtype
    np.testing.assert_array_equal(picture, expected)
    assert picture.flags.writeable
    info = picture_info(path)
    assert (info.height, info.width, info.channels) == expected.shape
    assert info.dtype == expected.dtype


def fault(path: Path, *words: str, **options: float) -> None:
    """Reading fails with one line that names the file and has these words."""
    with pytest.raises(UserError) as caught:
        read_picture(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert re.search(word, message), f"{word!r} not in {message!r}"


@pytest.mark.parametrize(
    ("suffix", "channels"),
    [(suffix, channels) for suffix in ("png", "tif") for channels in (1, 2, 3, 4)]
    + [("webp", 3), ("webp", 4), ("bmp", 1), ("bmp", 3)],
)
def test_8_bit_files_come_back(tmp_path: Path, suffix: str, channels: int) -> None:
    picture = pixels(5, 7, channels)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture.squeeze()).save(path, lossless=True)
    assert_reads(path, picture)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_keeps_its_depth(tmp_path: Path, channels: int) -> None:
    picture = pixels(6, 5, channels, dtype=np.uint16)
    write_deep_png(tmp_path / "a.png", picture)
    assert_reads(tmp_path / "a.png", picture)


def test_jpeg_is_what_pillow_decodes(tmp_path: Path) -> None:
    for name, mode in (("grey.jpg", "L"), ("colour.jpg", "RGB")):
        Image.fromarray(pixels(16, 24, 3)).convert(mode).save(tmp_path / name)
        expected = np.atleast_3d(np.asarray(Image.open(tmp_path / name)))
        assert_reads(tmp_path / name, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"a.{suffix}"
    image = Image.fromarray(pixels(16, 24, 3))
    exif = Image.Exif()
    exif[274] = orientation
    if suffix == "tif":
        image.save(path, tiffinfo={274: orientation})
    else:
        image.save(path, exif=exif, lossless=True)
    assert_reads(path, np.asarray(ImageOps.exif_transpose(Image.open(path))))


def test_palettes_become_colours_or_stay_indices(tmp_path: Path) -> None:
    indices = pixels(4, 6, 1) % 3
    colours = pixels(3, 3)
    image = Image.fromarray(indices[..., 0], mode="P")
    image.putpalette(colours.tobytes())
    for name in ("a.png", "a.gif", "a.tif"):
        image.save(tmp_path / name)
        assert_reads(tmp_path / name, colours[indices[..., 0]])
        kept = read_picture(tmp_path / name, keep_palette=True)
        np.testing.assert_array_equal(kept, indices)
    image.save(tmp_path / "clear.png", transparency=1)
    clear = read_picture(tmp_path / "clear.png")
    np.testing.assert_array_equal(clear[..., 3:], np.where(indices == 1, 0, 255))
    assert picture_info(tmp_path / "clear.png").channels == 4


def test_bilevel_becomes_0_and_255(tmp_path: Path) -> None:
    bits = pixels(9, 11, 1) > 127
    for name in ("a.png", "a.tif"):
        Image.fromarray(bits[..., 0]).save(tmp_path / name)
        assert_reads(tmp_path / name, bits.astype(np.uint8) * 255)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    fault(tmp_path / "none.png", "no such file")
    fault(tmp_path, "is a folder")
    path = tmp_path / "ünter weg 1.png"
    path.write_bytes(b"")
    fault(path, "empty")
    path.write_bytes(b"#!/bin/sh\necho hello\n" * 20)
    fault(path, "not an image")
    Image.fromarray(pixels(64, 64, 3)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fault(path, "damaged or truncated")
    path.write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
    fault(path, "damaged or truncated")
    jpeg = tmp_path / "a.jpg"
    Image.fromarray(pixels(64, 64, 3)).save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[:-500])
    fault(jpeg, "damaged or truncated")


def test_forbidden_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr("builtins.open", refuse)
    fault(tmp_path / "a.png", "permissions")


def test_every_cut_of_a_file_is_refused_or_read_whole(tmp_path: Path) -> None:
    """No length of a truncated file gives a wrong picture."""
    picture = pixels(8, 8, 3)
    for suffix in ("png", "jpg", "tif", "webp"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(picture).save(path)
        whole, expected = path.read_bytes(), read_picture(path)
        for length in range(0, len(whole), max(1, len(whole) // 60)):
            path.write_bytes(whole[:length])
            try:
                found = read_picture(path)
            except UserError:
                continue
            np.testing.assert_array_equal(found, expected)


def test_cmyk_and_animations_are_refused(tmp_path: Path) -> None:
    for suffix in ("jpg", "tif"):
        Image.new("CMYK", (8, 8)).save(tmp_path / f"a.{suffix}")
        fault(tmp_path / f"a.{suffix}", "CMYK|SEPARATED", "convert")
    frames = [Image.fromarray(pixels(8, 8, 3)) for _ in range(3)]
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"film.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        fault(path, "animated")
        with pytest.raises(UserError, match="animated"):
            picture_info(path)


def test_size_limit_is_checked_on_the_header(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 200_000, 100_000, 8, 0, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    start = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + header + check
    bomb.write_bytes(start + b"\0\0\0\1IDAT")
    fault(bomb, "20,000 million pixels", "data.max_pixels")
    Image.new("L", (1000, 1000)).save(tmp_path / "a.png")
    fault(tmp_path / "a.png", "limit of 0.5", max_pixels=0.5)
    assert read_picture(tmp_path / "a.png", max_pixels=1.0).shape == (1000, 1000, 1)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.zeros((1000, 1000), np.uint8), compression="zlib")
    fault(tmp_path / "a.tif", "limit of 0.5", max_pixels=0.5)


def test_stacks_are_tiffs_only(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="not a TIFF"):
        read_stack(tmp_path / "a.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("have", [1, 2, 3, 4])
@pytest.mark.parametrize("want", [1, 3, 4])
def test_channels(have: int, want: int, dtype: type) -> None:
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


def test_many_channels_are_no_colours() -> None:
    with pytest.raises(UserError, match=r"a\.tif.*5 channels"):
        convert_channels(pixels(2, 2, 5), 3, "a.tif")
    assert convert_channels(pixels(2, 2, 5), None, "a.tif").shape == (2, 2, 5)


def test_unit_range_ends() -> None:
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
def test_unit_range_is_exact_and_invertible(values: np.ndarray) -> None:
    full = np.iinfo(values.dtype).max
    unit = to_unit(values)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, values.astype(np.float64) * 2 / full - 1, atol=1.2e-7)
    back = np.rint((unit.astype(np.float64) + 1) / 2 * full)
    np.testing.assert_array_equal(back, values)

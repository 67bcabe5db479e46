"""A plain header read at once is what Pillow reads; whatever is not plain is left to it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ddpm_unet.data import png_header
from ddpm_unet.data.pictures import picture_info, read_picture


def png(array: np.ndarray, mode: str | None = None, **options) -> bytes:
    image = Image.fromarray(array)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, "PNG", **options)
    return file.getvalue()


RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)


def text(length: int) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * length)
    return info


def with_header(depth: int, colour: int, interlaced: int = 0, width: int = 7) -> bytes:
    """The same file, claiming another kind of pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, 5, depth, colour, 0, 0, interlaced)
    data = png(RGB)
    return data[:12] + body + struct.pack(">I", zlib.crc32(body)) + data[33:]


@pytest.mark.parametrize(
    "data",
    [
        png(RGB),
        png(RGB, "L"),
        png(RGB, "LA"),
        png(RGB, "RGBA"),
        png(RGB[..., 0].astype(np.uint16)),
        png(RGB, dpi=(72, 72), pnginfo=text(9)),
        with_header(16, 2),
        with_header(16, 4),
    ],
)
def test_plain_pictures(data, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(data)
    found = png_header.plain_info(data)
    assert picture_info(tmp_path / "a.png") == found
    monkeypatch.setattr(png_header, "plain_info", lambda start: None)
    assert picture_info(tmp_path / "a.png") == found


@pytest.mark.parametrize(
    "data",
    [
        png(RGB, "P"),
        png(RGB, "1"),
        png(RGB, transparency=(1, 2, 3)),
        png(RGB, pnginfo=text(5000)),
        png(RGB, save_all=True, append_images=[Image.fromarray(255 - RGB)]),
        with_header(16, 2, interlaced=1),
        with_header(8, 5),
        with_header(8, 2, width=0),
        png(RGB)[:40],
        png(RGB)[:20] + b"x" + png(RGB)[21:],
        png(RGB, dpi=(72, 72)).replace(b"pHYs\0", b"pHYs\1"),
        b"",
        b"GIF89a",
    ],
)
def test_what_is_not_plain(data):
    assert png_header.plain_info(data[: png_header.ENOUGH]) is None


def test_a_turned_png_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    data = png(RGB, exif=exif)
    assert png_header.plain_info(data) is None
    (tmp_path / "a.png").write_bytes(data)
    info = picture_info(tmp_path / "a.png")
    assert (info.height, info.width) == (7, 5)
    assert read_picture(tmp_path / "a.png").shape == (7, 5, 3)

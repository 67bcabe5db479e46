"""Reads one image, stack or volume, exactly and with every fault named.

Depth is never cut: 8 bits stay uint8, 9 to 16 bits uint16, floats float32. Pillow decodes PNG,
JPEG, WebP, GIF and BMP; imagecodecs decodes 16-bit colour PNG, which Pillow cuts to 8 bits (and
on damage in which torchvision's decoder crashes the process); tifffile with imagecodecs decodes
TIFF.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile
from PIL import ExifTags, Image

from ddpm_unet.data.metadata import Metadata
from ddpm_unet.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".svs"))
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_JPEGS, _APERIO_YCBCR = (6, 7), 33003
_LARGEST_EXACT = 2**24  # integers up to here are exact in float32
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # we name the faults


@dataclass(frozen=True)
class ImageInfo:
    """The shape and type that reading a file gives, from its header; volumes have a depth.

    Of `in_pieces` images windows are read alone, so they may be of any size.
    """

    height: int
    width: int
    channels: int
    dtype: np.dtype
    depth: int | None = None
    in_pieces: bool = False
    spacing: tuple[float, ...] | None = None
    """Millimetres along (planes,) rows and columns, where OME, ImageJ or NIfTI say it."""
    colors: bool = True
    """Whether the channels are grey or colours and transparency, which have a conversion."""

    @property
    def size(self) -> tuple[int, ...]:
        """(Depth,) height and width."""
        depth = () if self.depth is None else (self.depth,)
        return (*depth, self.height, self.width)

    def along(self, dims: int) -> tuple[float, ...] | None:
        """The spacing along so many axes, None where it is not known of all."""
        found = (self.spacing or ())[-dims:]
        return found if len(found) == dims else None


def read_image(
    path: str | Path,
    max_pixels: float = 200.0,
    keep_palette: bool = False,
    data: bytes | BinaryIO | None = None,
    channels: Sequence[str] = (),
) -> np.ndarray:
    """Decode one image, whose content decides the format, not its name.

    EXIF and TIFF orientation are applied. Palettes become RGB, or RGBA where the palette has
    transparency. 1, 2 and 4 bits of grey become 0 to 255; 9 to 15 bits keep their values. Of an
    MPO photograph (a JPEG with a preview) the main image is read.

    Args:
        path: The file.
        max_pixels: Refuse images of more than so many million pixels before decoding them.
        keep_palette: Return a palette image's indices, `[H, W, 1]`, instead of its colours.
        data: What the file holds, where it is none; `path` is then for messages.
        channels: Names or numbers of those wanted, see `Metadata.numbers`; empty for all.

    Returns:
        `[H, W, C]` uint8, uint16 or float32 (finite), C = 1 grey, 2 grey and alpha, 3 RGB,
        4 RGBA, or any number in a TIFF.

    Raises:
        UserError: Damaged, too large, CMYK or of another colour space that has no single
            conversion to RGB, animated or of many pages, NaN or infinite.
    """
    with faults_named(path), _file(path, data) as file:
        if is_tiff_file(file, path):
            return read_tiff(path, max_pixels, keep_palette, file=file, channels=channels)[0]
        with _opened(file, path, max_pixels) as image:
            if _deep_channels(image):
                if image.info.get("interlace"):
                    raise UserError(f"{path}: is an interlaced 16-bit PNG; save it without that")
                import imagecodecs

                file.seek(0)
                pixels = imagecodecs.png_decode(file.read())
            else:
                pixels = _pixels(image, keep_palette)
            numbers = Metadata().numbers(channels, pixels.shape[-1], path)
            return orient(pixels[..., numbers] if numbers else pixels, _orientation(image))


def image_info(
    path: str | Path,
    max_pixels: float = 200.0,
    data: bytes | BinaryIO | None = None,
    channels: Sequence[str] = (),
) -> ImageInfo:
    """Shape and type of an image from its header alone, with the errors it can show."""
    with faults_named(path), _file(path, data) as file:
        if is_tiff_file(file, path):
            return tiff_info(path, max_pixels, file=file, channels=channels)
        with _opened(file, path, max_pixels) as image:
            width, height = image.size
            if _orientation(image) >= 5:
                width, height = height, width
            mode = _target_mode(image, keep_palette=False)
            deep = _deep_channels(image)
            dtype = np.dtype(np.uint16 if deep or mode.startswith("I") else np.uint8)
            count = deep or Image.getmodebands(mode)
            numbers = Metadata().numbers(channels, count, path)
            return ImageInfo(height, width, len(numbers) if numbers else count, dtype)


def image_array(image: object, name: str) -> np.ndarray:
    """`[H, W, C]` of what a library's data set gives: a Pillow image or such an array."""
    if isinstance(image, Image.Image):
        _check_mode(image, name)
        return _pixels(image, keep_palette=False)
    array = np.asarray(image)
    if array.dtype not in (np.uint8, np.uint16, np.float32) or array.ndim not in (2, 3):
        raise UserError(
            f"{name}: is a {type(image).__name__}, not an image; choose a data set of images"
        )
    return array.reshape(*array.shape[:2], -1)


def orient(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn `[..., H, W, C]` upright: EXIF / TIFF tag 274, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(-3, -2)
    if orientation in (3, 4, 7, 8):
        array = array[..., ::-1, :, :]
    if orientation in (2, 3, 6, 7):
        array = array[..., ::-1, :]
    return np.ascontiguousarray(array)


def check_pixels(
    path: str | Path, shape: tuple[int, ...], max_pixels: float, cure: str = ""
) -> None:
    """Refuse shapes `[..., H, W, C]` without pixels, or of more than max_pixels million of them, or
    four times so many values. `cure` is said behind the message.
    """
    pixels = math.prod(shape[:-1])
    if not pixels * shape[-1]:
        raise UserError(f"{path}: has no pixels; replace or remove the file")
    if pixels > max_pixels * 1e6 or pixels * shape[-1] > 4e6 * max_pixels:
        raise UserError(
            f"{path}: {' x '.join(map(str, shape))} is {pixels / 1e6:,.0f} million pixels, over "
            f"the limit of {max_pixels:g}; if the file can be trusted, raise max_pixels{cure}"
        )


@contextmanager
def faults_named(path: str | Path) -> Iterator[None]:
    """Turn whatever a decoder raises on a bad file into one line that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error...
        known: dict[type[Exception], str] = {
            FileNotFoundError: "no such file; mend the link or the name",
            PermissionError: "may not be read; check its permissions",
            IsADirectoryError: "is a folder, not an image",
            Image.UnidentifiedImageError: "is not an image in a known format (PNG, JPEG, WebP, "
            "TIFF, GIF, BMP), or its header is damaged; replace or remove the file",
        }
        if fault := known.get(type(error)):
            raise UserError(f"{path}: {fault}") from None
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if "imagecodecs" in cause:
            raise UserError(f"{path}: needs another decoder; pip install -U imagecodecs") from error
        raise UserError(
            f"{path}: is damaged or truncated ({cause}); replace or remove the file"
        ) from error


def _file(path: str | Path, data: bytes | BinaryIO | None) -> BinaryIO:
    if data is None:
        return open(path, "rb", opener=without_waiting)
    return BytesIO(data) if isinstance(data, bytes) else data


def without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe, which has no image yet and perhaps never, gives nothing."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


# Pillow: PNG, JPEG, WebP, GIF, BMP


_KNOWN_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L"))
_PILLOW_LIMIT = threading.Lock()


@contextmanager
def _opened(file: BinaryIO, path: str | Path, max_pixels: float) -> Iterator[Image.Image]:
    """The header, with our size limit in place of Pillow's."""
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        check_pixels(path, (image.height, image.width, 1), max_pixels)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":
            raise UserError(
                f"{path}: is animated ({frames} frames); save the wanted frames as images"
            )
        _check_mode(image, path)
        yield image


def _check_mode(image: Image.Image, name: str | Path) -> None:
    if image.mode not in _KNOWN_MODES:
        raise _no_conversion(name, image.mode)


def _no_conversion(name: str | Path, space: str) -> UserError:
    return UserError(
        f"{name}: its colour space {space} has no single conversion to RGB; "
        "convert the file to grey, RGB or RGBA first"
    )


def _target_mode(image: Image.Image, keep_palette: bool) -> str:
    if image.mode == "1":
        return "L"
    if image.mode == "P" and not keep_palette:
        return "RGBA" if "transparency" in image.info else "RGB"
    return "RGBA" if image.mode == "PA" else image.mode


def _pixels(image: Image.Image, keep_palette: bool) -> np.ndarray:
    mode = _target_mode(image, keep_palette)
    image.load()
    array = np.array(image if image.mode == mode else image.convert(mode))
    array = array.astype(np.uint16 if array.dtype.itemsize > 1 else np.uint8, copy=False)
    return array.reshape(*array.shape[:2], -1)


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif() would decode the whole file to look behind the pixels
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def _deep_channels(image: Image.Image) -> int:
    """Channels of a 16-bit colour PNG, else 0."""
    if image.format != "PNG" or not getattr(image, "tile", None):
        return 0
    return {"LA;16B": 2, "RGB;16B": 3, "RGBA;16B": 4}.get(str(image.tile[0][3]), 0)  # type: ignore[attr-defined]


# tifffile


def is_tiff_file(file: BinaryIO, path: str | Path) -> bool:
    """Whether an open file is a TIFF by its first bytes; refuse an empty one."""
    head = file.read(4)
    if not head:
        raise UserError(f"{path}: is empty (0 bytes); replace or remove the file")
    file.seek(0)
    return head in TIFF_MAGIC


def read_tiff(
    path: str | Path,
    max_pixels: float,
    keep_palette: bool = False,
    stack: bool = False,
    file: BinaryIO | None = None,
    channels: Sequence[str] = (),
) -> np.ndarray:
    """`[N, H, W, C]` uint8, uint16 or float32; N = 1 unless a stack, whose pixels all count.

    Half and double floats and integers of other types become float32, where that is exact for
    integers.
    """
    with tifffile.TiffFile(file or path) as tiff:
        series, page = tiff_series(tiff, path)
        shape = _tiff_shape(series, path, stack)
        check_pixels(path, shape, max_pixels)
        result_type(series.dtype, path)
        array = series.asarray()
        axes = "".join(axis for axis in series.axes if axis not in "YXSC") + "YX"
        axes += "".join(axis for axis in series.axes if axis in "SC")
        array = array.transpose([series.axes.index(axis) for axis in axes]).reshape(shape)
        array = page_values(array, page, path, keep_palette)
        numbers = Metadata.of_tiff(tiff).numbers(channels, array.shape[-1], path)
        return orient(array[..., numbers] if numbers else array, tiff_orientation(page))


def page_values(
    array: np.ndarray, page: tifffile.TiffPage, path: str | Path, keep_palette: bool = False
) -> np.ndarray:
    """What the stored values `[N, H, W, C]` of a page, or of a part of it, mean; not turned."""
    bits = page.bitspersample
    if page.photometric == _PALETTE:
        array = array.astype(np.uint8 if bits <= 8 else np.uint16)
        if not keep_palette:
            colors = np.asarray(page.colormap)  # of 16 bits, but some writers fill only 8 of them
            array = (colors >> 8 * (colors.max() > 255)).astype(np.uint8).T[array[..., 0]]
    else:
        if page.photometric == _WHITE_IS_ZERO:
            if bits == 1 and keep_palette and page.software.startswith("tifffile"):
                raise UserError(
                    f"{path}: tifffile wrote Boolean values with 0 as white, which programs read "
                    "as their opposite; save them as uint8"
                )
            array = ~array if bits == 1 else array.dtype.type(2**bits - 1) - array
        if bits in (2, 4):
            array = array * np.uint8(255 // (2**bits - 1))
    return plain_type(array, path)


def tiff_info(
    path: str | Path,
    max_pixels: float,
    stack: bool = False,
    file: BinaryIO | None = None,
    channels: Sequence[str] = (),
) -> ImageInfo:
    """What `read_tiff` gives, from the header."""
    with tifffile.TiffFile(file or path) as tiff:
        series, page = tiff_series(tiff, path)
        pages, height, width, count = _tiff_shape(series, path, stack)
        check_pixels(path, (*[pages] * stack, height, width, count), max_pixels)
        about = Metadata.of_tiff(tiff)
        spacing = about.spacing
        if tiff_orientation(page) >= 5:
            height, width = width, height
            spacing = spacing and (*spacing[:-2], spacing[-1], spacing[-2])
        dtype = result_type(series.dtype, path)
        if page.photometric == _PALETTE:
            count, dtype = 3, np.dtype(np.uint8)
        numbers = about.numbers(channels, count, path)
        count = len(numbers) if numbers else count
        depth, colors = pages if stack else None, are_colors(page, count)
        return ImageInfo(height, width, count, dtype, depth, spacing=spacing, colors=colors)


def are_colors(page: tifffile.TiffPage, channels: int) -> bool:
    """Whether a page's channels are grey or colours and transparency."""
    alpha = tuple(page.extrasamples or ()) in ((1,), (2,))
    return channels == 1 or page.photometric != _BLACK_IS_ZERO or (channels == 2 and alpha)


def tiff_series(
    file: tifffile.TiffFile, path: str | Path
) -> tuple[tifffile.TiffPageSeries, tifffile.TiffPage]:
    """The image or stack that a TIFF holds, and its first page."""
    if not file.series:
        raise UserError(f"{path}: holds no image; replace or remove the file")
    if len(file.series) != 1 and not file.is_svs:  # whose others are a thumbnail and labels
        raise UserError(
            f"{path}: holds {len(file.series)} images of different shapes; "
            "save each as a file of its own"
        )
    series = file.series[0]
    page = series.keyframe
    name = getattr(page.photometric, "name", str(page.photometric))
    if page.photometric == _YCBCR and page.compression not in _JPEGS:
        raise _no_conversion(path, f"{name} without JPEG compression")
    if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR):
        raise _no_conversion(path, name)
    if page.compression == _APERIO_YCBCR and page.photometric != _BLACK_IS_ZERO:
        raise _no_conversion(path, "YCbCr of Aperio's JPEG 2000")
    if page.photometric == _WHITE_IS_ZERO and series.dtype.kind not in "bu":
        raise UserError(
            f"{path}: says that 0 is white, but not which of its {series.dtype} values is black; "
            "save it with photometric MINISBLACK"
        )
    return series, page


def _tiff_shape(
    series: tifffile.TiffPageSeries, path: str | Path, stack: bool
) -> tuple[int, int, int, int]:
    """`[N, H, W, C]`, after refusing what is not an image or a stack of them."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    if not {"Y", "X"} <= set(sizes):
        raise UserError(f"{path}: has axes {series.axes}, not those of an image")
    channels = sizes.get("S", 1) * sizes.get("C", 1)
    extra = {axis: n for axis, n in sizes.items() if axis not in "YXSC" and n > 1}
    pages = int(np.prod(list(extra.values()), dtype=int))
    if pages > 1 and not stack:
        raise UserError(
            f"{path}: has {pages} pages; save each as an image of its own, store channels as "
            "samples of one page, or set data.dims 3 for a volume"
        )
    if len(extra) > 1:
        raise UserError(f"{path}: has axes {series.axes}; a stack may have one besides Y, X, C")
    return pages, sizes["Y"], sizes["X"], channels


def tiff_orientation(page: tifffile.TiffPage) -> int:
    """How it lies, see `orient`."""
    tag = page.tags.get(274)
    return int(tag.value) if tag else 1


def result_type(dtype: np.dtype, path: str | Path) -> np.dtype:
    """The type that values of another come in: uint8, uint16 or float32."""
    if dtype.kind not in "buif":
        raise UserError(f"{path}: holds {dtype} values; save it as uint8, uint16 or float32")
    if dtype in (np.bool_, np.uint8):
        return np.dtype(np.uint8)
    return np.dtype(np.uint16 if dtype == np.uint16 else np.float32)


def plain_type(array: np.ndarray, path: str | Path) -> np.ndarray:
    """Values `[N, H, W, C]` as their `result_type`; bits become 0 and 255."""
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    target = result_type(array.dtype, path)
    if array.dtype.kind in "ui" and target == np.float32 and array.itemsize > 2:
        largest = max(abs(int(array.min())), abs(int(array.max())))
        if largest > _LARGEST_EXACT:
            raise UserError(
                f"{path}: holds {array.dtype} values up to {largest}, more than float32 can keep "
                "exactly; save it as uint16 or float32"
            )
    with np.errstate(over="ignore"):
        array = array.astype(target, copy=False)
    if target == np.float32 and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        row, column = bad[0][1:3]
        raise UserError(
            f"{path}: {len(bad)} values are NaN or infinite, the first at row {row}, column "
            f"{column}; mend or remove the file"
        )
    return array

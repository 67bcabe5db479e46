"""Reading one picture file, exactly and with every fault named.

Depth is never cut: 8 bits stay uint8, 16 bits uint16, floats float32. PNG, JPEG, WebP, GIF
and BMP are decoded by Pillow, except for 16-bit colour PNG (`deep_png.py`), and TIFF by
tifffile (`tiff.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngImageFile

from ddpm_unet.data import deep_png, png_header, tiff
from ddpm_unet.data.header import PictureInfo, check_pixels, orient
from ddpm_unet.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".gif", ".bmp"))
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_picture(
    path: str | Path, max_pixels: float = 200.0, keep_palette: bool = False
) -> np.ndarray:
    """Decode one picture.

    EXIF orientation is applied. Palettes become RGB, or RGBA where the palette has transparency.
    1-bit pictures become 0 and 255. Of an MPO photograph (a JPEG with a preview) the main picture
    is read.

    Args:
        path: The file; its content decides the format, not its name.
        max_pixels: Refuse pictures of more than so many million pixels before decoding them.
        keep_palette: Return a palette picture's indices, `[H, W, 1]`, instead of its colours.

    Returns:
        `[H, W, C]` uint8, uint16 or float32 (finite), C = 1 grey, 2 grey and alpha, 3 RGB,
        4 RGBA, or any number in a TIFF.

    Raises:
        UserError: Missing, empty, truncated, not an image, too large, CMYK or another colour
            space that has no single conversion to RGB, animated or of many pages (for those
            see `read_stack`), NaN or infinite values. One line that names file and cure.
    """
    with faults_named(path), open(path, "rb", opener=_without_waiting) as file:
        if _is_tiff(file, path):
            return tiff.read(path, max_pixels, keep_palette)[0]
        with _opened(file, path, max_pixels) as image:
            orientation = _orientation(image)
            if _deep_channels(image):
                array = deep_png.decode(Path(path).read_bytes())
            else:
                array = _pixels(image, keep_palette)
    return orient(array, orientation)


def picture_array(picture: object, name: str) -> np.ndarray:
    """`[H, W, C]` of what a library's data set gives: a Pillow image or such an array.

    Raises:
        UserError: Anything else.
    """
    if isinstance(picture, Image.Image):
        _check_mode(picture, name)
        return _pixels(picture, keep_palette=False)
    array = np.asarray(picture)
    if array.dtype not in (np.uint8, np.uint16, np.float32) or array.ndim not in (2, 3):
        raise UserError(
            f"{name}: is a {type(picture).__name__}, not a picture; choose a data set of images"
        )
    return array.reshape(*array.shape[:2], -1)


def read_stack(path: str | Path, max_pixels: float = 200.0) -> np.ndarray:
    """Decode a TIFF of one or more pages of equal shape.

    Args:
        path: The file.
        max_pixels: Refuse stacks of more than so many million pixels in all.

    Returns:
        `[N, H, W, C]`, types as `read_picture`.

    Raises:
        UserError: As `read_picture`; also when the file is no TIFF.
    """
    with faults_named(path), open(path, "rb", opener=_without_waiting) as file:
        if not _is_tiff(file, path):
            raise UserError(f"{path}: is not a TIFF; stacks are read from multi-page TIFF files")
        return tiff.read(path, max_pixels, keep_palette=False, stack=True)


def picture_info(path: str | Path, max_pixels: float = 200.0) -> PictureInfo:
    """Shape and type of a picture from its header alone, with the errors it can show."""
    with faults_named(path), open(path, "rb", opener=_without_waiting) as file:
        start = file.read(png_header.ENOUGH)
        plain = png_header.plain_info(start)
        if plain:
            check_pixels(path, (plain.height, plain.width, 1), max_pixels)
            return plain
        if start:
            file.seek(0)
        if _is_tiff(file, path):
            return tiff.info(path, max_pixels)
        with _opened(file, path, max_pixels) as image:
            width, height = image.size
            if _orientation(image) >= 5:
                width, height = height, width
            if deep := _deep_channels(image):
                return PictureInfo(height, width, deep, np.dtype(np.uint16))
            mode = _target_mode(image, keep_palette=False)
            dtype = np.dtype(np.uint16 if mode.startswith("I") else np.uint8)
            return PictureInfo(height, width, Image.getmodebands(mode), dtype)


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe, which has no picture yet and perhaps never, gives nothing."""
    return os.open(path, flags | os.O_NONBLOCK)


def _is_tiff(file: BinaryIO, path: str | Path) -> bool:
    head = file.read(4)
    if not head:
        raise UserError(f"{path}: is empty (0 bytes); replace or remove the file")
    file.seek(0)
    return head in TIFF_MAGIC


@contextmanager
def faults_named(path: str | Path) -> Iterator[None]:
    """Turn whatever a decoder raises on a bad file into one line that names it."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; mend the link or the name") from None
    except PermissionError:
        raise UserError(f"{path}: may not be read; check its permissions") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a picture") from None
    except Image.UnidentifiedImageError:
        raise UserError(
            f"{path}: is not an image in a known format (PNG, JPEG, WebP, TIFF, GIF, BMP), "
            "or its header is damaged; replace or remove the file"
        ) from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error...
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{path}: is damaged or truncated ({cause}); replace or remove the file"
        ) from error


@contextmanager
def _opened(file: BinaryIO, path: str | Path, max_pixels: float) -> Iterator[Image.Image]:
    """The header, with our size limit in place of Pillow's."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(file, formats=FORMATS) as image:
            check_pixels(path, (image.height, image.width, 1), max_pixels)
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":
                raise UserError(
                    f"{path}: is animated ({frames} frames); save the wanted frames as pictures"
                )
            _check_mode(image, path)
            yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


_KNOWN_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L"))


def _check_mode(image: Image.Image, name: str | Path) -> None:
    if image.mode not in _KNOWN_MODES:
        raise UserError(
            f"{name}: its colour mode {image.mode} has no single conversion to RGB; "
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
    if not isinstance(image, PngImageFile) or not image.tile:
        return 0
    return {"LA;16B": 2, "RGB;16B": 3, "RGBA;16B": 4}.get(str(image.tile[0][3]), 0)

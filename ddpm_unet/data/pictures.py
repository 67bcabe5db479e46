"""Reading one picture file, exactly and with every fault named.

Depth is never cut: 8 bits stay uint8, 16 bits uint16, floats float32. PNG, JPEG, WebP, GIF
and BMP are decoded by Pillow, except for 16-bit colour PNG (`deep_png.py`), and TIFF by
tifffile (`tiff.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngImageFile

from ddpm_unet.data import deep_png
from ddpm_unet.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".gif", ".bmp"))
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class PictureInfo:
    """What the header tells: the shape and type that reading will give."""

    height: int
    width: int
    channels: int
    dtype: np.dtype


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
    with _faults_named(path), open(path, "rb") as file:
        if _is_tiff(file, path):
            from ddpm_unet.data import tiff

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
    with _faults_named(path), open(path, "rb") as file:
        if not _is_tiff(file, path):
            raise UserError(f"{path}: is not a TIFF; stacks are read from multi-page TIFF files")
        from ddpm_unet.data import tiff

        return tiff.read(path, max_pixels, keep_palette=False, stack=True)


def picture_info(path: str | Path, max_pixels: float = 200.0) -> PictureInfo:
    """Shape and type of a picture from its header alone, with the errors it can show."""
    with _faults_named(path), open(path, "rb") as file:
        if _is_tiff(file, path):
            from ddpm_unet.data import tiff

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


def orient(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn `[H, W, C]` upright: EXIF / TIFF tag 274, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def convert_channels(picture: np.ndarray, channels: int | None, name: str) -> np.ndarray:
    """Give a picture the wanted number of channels.

    Grey from RGB is ITU-R 601 luma, RGB from grey repeats it, a missing alpha is opaque, an
    alpha that is not wanted is dropped (not composited).

    Args:
        picture: `[H, W, C]` uint8, uint16 or float32 (1.0 is opaque).
        channels: 1, 3 or 4; None or C itself leaves the picture as it is.
        name: For the message.

    Raises:
        UserError: More than four channels, which have no meaning as colours.
    """
    have = picture.shape[-1]
    if channels is None or channels == have:
        return picture
    if have > 4:
        raise UserError(
            f"{name}: has {have} channels, which cannot become {channels}; set data.channels null"
        )
    colour = picture[..., : 1 if have <= 2 else 3]
    if channels == 1 and colour.shape[-1] == 3:
        luma = colour @ np.array([0.299, 0.587, 0.114])
        colour = (luma if picture.dtype.kind == "f" else luma.round())[..., None]
    elif channels >= 3:
        colour = np.broadcast_to(colour, (*picture.shape[:2], 3))
    if channels == 4:
        opaque = 1 if picture.dtype.kind == "f" else np.iinfo(picture.dtype).max
        alpha = picture[..., 1:] if have == 2 else np.full_like(picture[..., :1], opaque)
        colour = np.concatenate([colour, alpha], axis=-1)
    return colour.astype(picture.dtype)


def to_unit(
    array: np.ndarray, value_range: tuple[float, float] | None = None, name: str = "the image"
) -> np.ndarray:
    """Map pixel values linearly to the training range, float32 in [-1, 1].

    Args:
        array: Any shape, uint8, uint16 or float32.
        value_range: The values that become -1 and 1; values outside are clipped to it. None is
            the full range of the type: 0 to 255, 0 to 65535, and for floats 0 to 1, where
            values outside are an error.
        name: For the message.

    Raises:
        UserError: Floats outside 0 to 1 and no value_range.
    """
    if value_range is not None:
        low, high = value_range
        array = array.clip(low, high).astype(np.float32)
        return (array - np.float32(low)) * np.float32(2 / (high - low)) - 1
    if array.dtype.kind == "u":
        return array / np.float32(np.iinfo(array.dtype).max / 2) - 1
    if array.size and (array.min() < 0 or array.max() > 1):
        raise UserError(
            f"{name}: float values from {array.min():g} to {array.max():g}, not within 0 to 1; "
            "say what is black and white with data.value_range, for instance "
            f"[{array.min():g}, {array.max():g}]"
        )
    return array.astype(np.float32) * 2 - 1


def check_pixels(path: str | Path, shape: tuple[int, ...], max_pixels: float) -> None:
    """Refuse more than max_pixels million pixels, or four times so many values.

    Args:
        path: For the message.
        shape: `[..., H, W, C]`.
        max_pixels: Million pixels.
    """
    pixels = math.prod(shape[:-1])
    if pixels > max_pixels * 1e6 or pixels * shape[-1] > 4e6 * max_pixels:
        raise UserError(
            f"{path}: {' x '.join(map(str, shape))} is {pixels / 1e6:,.0f} million pixels, over "
            f"the limit of {max_pixels:g}; if the file can be trusted, raise data.max_pixels"
        )


def _is_tiff(file: BinaryIO, path: str | Path) -> bool:
    head = file.read(4)
    file.seek(0)
    if not head:
        raise UserError(f"{path}: is empty (0 bytes); replace or remove the file")
    return head in TIFF_MAGIC


@contextmanager
def _faults_named(path: str | Path) -> Iterator[None]:
    """Turn whatever a decoder raises on a bad file into one line that names it."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
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

"""What an image file gives, its faults by name, and the formats of Pillow.

Depth is never cut: 8 bits stay uint8, 9 to 16 bits uint16, floats float32. Pillow decodes PNG,
JPEG, WebP, GIF and BMP; imagecodecs decodes 16-bit colour PNG, which Pillow cuts to 8 bits (and
on damage in which torchvision's decoder crashes the process).
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image
from typing_extensions import Self, override

from ddpm_unet.errors import UserError, cause_of

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_KNOWN_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L"))
_PILLOW_LIMIT = threading.Lock()
_LARGEST_EXACT = 2**24  # integers up to here are exact in float32


@dataclass(frozen=True)
class ImageInfo:
    """The shape and type that reading a file gives, from its header.

    Of `in_pieces` images windows are read alone, so they may be of any size.
    """

    size: tuple[int, ...]
    """(Depth,) height and width."""
    channels: int
    dtype: np.dtype
    in_pieces: bool = False
    spacing: tuple[float, ...] | None = None
    """Millimetres along (planes,) rows and columns, where OME, ImageJ or NIfTI say it."""
    colors: bool = True
    """Whether the channels are grey or colours and transparency, which have a conversion."""

    def along(self, dims: int) -> tuple[float, ...] | None:
        """The spacing along so many axes, None where it is not known of all."""
        found = (self.spacing or ())[-dims:]
        return found if len(found) == dims else None


class ImageFile(ABC):
    """An open image, stack or volume, whose header passed its checks.

    A format says what it stores; what all have in common is done here: channels are chosen, types
    made plain, and what lies turned is turned upright.

    Attributes:
        path: For messages.
        shape: As it is stored, `[N, H, W, C]`.
        info: What `read` and `window` give.
        names: Of all channels, where the file says them.
        orientation: EXIF / TIFF tag 274.
        resolution: Millimetres along rows and columns by a TIFF's tags, which may be of printing.
        streams: Whether rows of any plane can be read alone.
    """

    path: str | Path
    shape: tuple[int, ...]
    info: ImageInfo
    names: tuple[str, ...] = ()
    orientation = 1
    resolution: tuple[float, ...] | None = None
    streams = False
    source: BinaryIO | None = None

    def choose(self, channels: Sequence[str]) -> Self:
        """Take some channels only; errors as `channel_numbers`."""
        self.every = range(self.info.channels)
        self.numbers = channel_numbers(channels, self.names, len(self.every), self.path)
        chosen, one = len(self.numbers), len(self.numbers) == 1
        self.info = replace(self.info, channels=chosen, colors=self.info.colors or one)
        return self

    def read(self, keep_palette: bool = False) -> np.ndarray:
        """Decode, upright: `[N, H, W, C]` uint8, uint16 or float32 (finite)."""
        array = plain_type(self._chosen(self._decode(keep_palette)), self.path)
        return orient(array, self.orientation)

    def window(self, corner: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """`[(D,) H, W, C]` from the pixel `corner` on, of what is in pieces."""
        lengths = self.info.size[-len(size) :]
        if any(start + n > most for start, n, most in zip(corner, size, lengths, strict=True)):
            raise UserError(f"{self.path}: has changed while it was in use; start again")
        planes = range(corner[0], corner[0] + size[0]) if len(size) == 3 else range(1)
        array = self._chosen(self._part(planes, corner[-2:], size[-2:]))
        array = plain_type(array, self.path, corner[-2:])
        return array if len(size) == 3 else array[0]

    @abstractmethod
    def _decode(self, keep_palette: bool) -> np.ndarray:
        """What is stored, `[N, H, W, C]`, or of a palette the indices, C = 1."""

    def _part(self, planes: range, corner: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """What is stored in the same window of some planes."""
        raise NotImplementedError

    def _chosen(self, array: np.ndarray) -> np.ndarray:
        """The chosen channels of all; indices of a palette stay."""
        if self.numbers == list(self.every) or array.shape[-1] != len(self.every):
            return array
        return array[..., self.numbers]

    def check(self, max_pixels: float, dims: int) -> None:
        """Errors as `check_pixels`, of a stack in all."""
        check_pixels(self.path, self.shape if dims == 3 else self.shape[1:], max_pixels)

    def close(self) -> None:
        """Let go of the file."""
        if self.source is not None:
            self.source.close()


def channel_numbers(
    wanted: Sequence[str], names: Sequence[str], count: int, path: str | Path
) -> list[int]:
    """Where the wanted channels lie among the `count` of a file, which perhaps names them.

    They are named, or numbered from 0; none are all. A file that names none, of as many channels
    as are wanted, is taken as it is.

    Raises:
        UserError: One is not there, or twice.
    """
    if not wanted or (not names and len(wanted) == count):
        return list(range(count))
    found = []
    for name in wanted:
        places = [number for number, own in enumerate(names) if own == name]
        if not places and name.isdecimal() and int(name) < count:
            places = [int(name)]
        if len(places) != 1:
            named = f"the channels {', '.join(names)}"
            named = named if names else f"{count} channels without names"
            fault = "not one of them" if not places else "more than one of them"
            raise UserError(f"{path}: has {named}; {name} is {fault}, see data.channels")
        found += places
    return found


def orient(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn `[..., H, W, C]` upright: EXIF / TIFF tag 274, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(-3, -2)
    if orientation in (3, 4, 7, 8):
        array = array[..., ::-1, :, :]
    if orientation in (2, 3, 6, 7):
        array = array[..., ::-1, :]
    return np.ascontiguousarray(array)


def check_pixels(path: str | Path, shape: Sequence[int], max_pixels: float, cure: str = "") -> None:
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
        cause = cause_of(f"{type(error).__name__}: {error}")
        if "imagecodecs" in cause:
            raise UserError(f"{path}: needs another decoder; pip install -U imagecodecs") from error
        raise UserError(
            f"{path}: is damaged or truncated ({cause}); replace or remove the file"
        ) from error


def result_type(dtype: np.dtype, path: str | Path) -> np.dtype:
    """The type that values of another come in: uint8, uint16 or float32."""
    if dtype.kind not in "buif":
        raise UserError(f"{path}: holds {dtype} values; save it as uint8, uint16 or float32")
    if dtype in (np.bool_, np.uint8):
        return np.dtype(np.uint8)
    return np.dtype(np.uint16 if dtype == np.uint16 else np.float32)


def plain_type(array: np.ndarray, path: str | Path, corner: Sequence[int] = (0, 0)) -> np.ndarray:
    """Values `[N, H, W, C]` as their `result_type`; bits become 0 and 255.

    `corner` is the row and the column of the image where they begin, for messages.
    """
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
        row, column = bad[0][1:3] + corner
        raise UserError(
            f"{path}: {len(bad)} values are NaN or infinite, the first at row {row}, column "
            f"{column}; mend or remove the file"
        )
    return array


def no_conversion(name: str | Path, space: str) -> UserError:
    """The fault of a colour space that is neither grey nor RGB."""
    return UserError(
        f"{name}: its colour space {space} has no single conversion to RGB; "
        "convert the file to grey, RGB or RGBA first"
    )


class PillowFile(ImageFile):
    """An open PNG, JPEG, WebP, GIF or BMP. Of an MPO (a JPEG with a preview) the main image."""

    def __init__(self, file: BinaryIO, path: str | Path) -> None:
        self.source, self.path = file, path
        with _PILLOW_LIMIT:  # ours is in its place
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                self.image = image = Image.open(file, formats=FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":
            raise UserError(
                f"{path}: is animated ({frames} frames); save the wanted frames as images"
            )
        if image.mode not in _KNOWN_MODES:
            raise no_conversion(path, image.mode)
        mode, tiles = _target_mode(image, keep_palette=False), getattr(image, "tile", None)
        layout = str(tiles[0][3]) if image.format == "PNG" and tiles else ""
        self.deep = {"LA;16B": 2, "RGB;16B": 3, "RGBA;16B": 4}.get(layout, 0)
        """Channels of a 16-bit colour PNG."""
        count = self.deep or Image.getmodebands(mode)
        self.shape = (1, image.height, image.width, count)
        # Of a PNG getexif() would decode the whole file to look behind the pixels.
        known = image.format != "PNG" or "exif" in image.info
        self.orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1)) if known else 1
        dtype = np.dtype(np.uint16 if self.deep or mode.startswith("I") else np.uint8)
        self.info = ImageInfo(image.size[:: 1 if self.orientation >= 5 else -1], count, dtype)

    @override
    def _decode(self, keep_palette: bool) -> np.ndarray:
        if not self.deep:
            return _pixels(self.image, keep_palette)[None]
        if self.image.info.get("interlace"):
            raise UserError(f"{self.path}: is an interlaced 16-bit PNG; save it without that")
        import imagecodecs

        assert self.source is not None
        self.source.seek(0)
        return imagecodecs.png_decode(self.source.read())[None]


def image_array(image: object, name: str) -> np.ndarray:
    """`[H, W, C]` of what a library's data set gives: a Pillow image or such an array."""
    if isinstance(image, Image.Image):
        if image.mode not in _KNOWN_MODES:
            raise no_conversion(name, image.mode)
        return _pixels(image, keep_palette=False)
    array = np.asarray(image)
    if array.dtype not in (np.uint8, np.uint16, np.float32) or array.ndim not in (2, 3):
        raise UserError(
            f"{name}: is a {type(image).__name__}, not an image; choose a data set of images"
        )
    return array.reshape(*array.shape[:2], -1)


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

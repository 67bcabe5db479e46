"""TIFF through tifffile and imagecodecs: images, stacks, pyramids, and windows of a part.

Of several resolutions (OME-TIFF, SVS, generic pyramids) one level is read.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID
from xml.etree import ElementTree

import numpy as np
import tifffile
from tifffile import PHOTOMETRIC
from typing_extensions import override

from ddpm_unet.data.images import ImageFile, ImageInfo, no_conversion, result_type
from ddpm_unet.errors import UserError

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LARGEST_PIECE = 2**24
"""Pixels of a strip or tile that memory can hold a few times."""
PIECES = 4
"""What is stored in fewer is decoded whole."""
_WHITE_IS_ZERO, _BLACK_IS_ZERO = PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK
_KNOWN = (_WHITE_IS_ZERO, _BLACK_IS_ZERO, PHOTOMETRIC.RGB, PHOTOMETRIC.PALETTE, PHOTOMETRIC.YCBCR)
_JPEGS, _APERIO_YCBCR = (6, 7), 33003
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # we name the faults
_MICRONS = ("um", "µm", "μm", "\\u00B5m", "micron")  # the micro sign, and the Greek letter
UNITS = dict.fromkeys(_MICRONS, 1e-3) | {"mm": 1.0, "cm": 10.0, "m": 1e3, "nm": 1e-6, "Å": 1e-7}
"""Millimetres of what OME and ImageJ call them."""


Spacing = tuple[float, ...] | None
"""Millimetres from pixel to pixel along (planes,) rows and columns, where a file says it."""


def _metadata(file: tifffile.TiffFile) -> tuple[tuple[str, ...], Spacing, Spacing]:
    """Names of channels, spacing by OME or ImageJ, and by tags of a resolution in cm, perhaps of
    printing.
    """
    page = file.pages.first
    per_x, per_y = page.resolution
    about = file.imagej_metadata or (file.shaped_metadata or ({},))[0]
    unit, depth = UNITS.get(about.get("unit", ""), 0.0), about.get("spacing", 0.0)
    resolution = spacing = None
    if page.resolutionunit == 3 and per_x and per_y:
        resolution = (10 / per_y, 10 / per_x)
    if unit and (resolution or (per_x and per_y)):
        sides = resolution or (unit / per_y, unit / per_x)
        spacing = (*[depth * unit] * bool(depth * unit), *sides)
    channels, sizes = _of_ome(file.ome_metadata or "")
    return channels, sizes or spacing, resolution


def _of_ome(text: str) -> tuple[tuple[str, ...], Spacing]:
    """Names of channels and spacing in OME-XML; of what is damaged nothing."""
    pixels = None
    with suppress(ElementTree.ParseError):
        pixels = ElementTree.fromstring(text).find(".//{*}Pixels")
    if pixels is None:
        return (), None
    names = tuple(channel.get("Name", "") for channel in pixels.iterfind("{*}Channel"))
    lengths = [
        float(pixels.get(f"PhysicalSize{axis}") or 0)
        * UNITS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), 0.0)
        for axis in "ZYX"
    ]
    return names if any(names) else (), known_spacing(lengths)


def known_spacing(lengths: Sequence[float]) -> Spacing:
    """The spacing along (planes,) rows and columns, of which 0 are not known."""
    spacing = tuple(lengths[0 if lengths[0] > 0 else 1 :])
    return spacing if min(spacing) > 0 else None


class TiffFile(ImageFile):
    """A level of the image or stack in an open TIFF.

    Args:
        source: The file.
        path: For messages.
        stack: Take several pages as the planes of a stack; else they are a fault.
        level: Of several resolutions, 0 the finest.
    """

    def __init__(
        self, source: BinaryIO, path: str | Path, stack: bool = False, level: int = 0
    ) -> None:
        self.source, self.path, self._lock = source, path, threading.Lock()
        self.file = tifffile.TiffFile(source)
        finest = self._checked_series()
        if level >= len(finest.levels):
            raise UserError(
                f"{path}: has {len(finest.levels)} resolutions, no level {level}; lower data.level"
            )
        self.series = finest.levels[level]
        self.page: Any = self.series.keyframe
        page = self.page
        self.shape = self._stored_shape(stack)
        pages, height, width, count = self.shape
        self.names, spacing, self.resolution = _metadata(self.file)
        self.orientation = int(page.tags[274].value) if 274 in page.tags else 1
        dtype, turned = result_type(self.series.dtype, path), self.orientation >= 5
        if spacing:
            coarser = finest.keyframe.imagelength / height, finest.keyframe.imagewidth / width
            sides = [length * n for length, n in zip(spacing[-2:], coarser, strict=True)]
            spacing = (*spacing[:-2], *sides[:: -1 if turned else 1])
        size = (width, height) if turned else (height, width)
        if page.photometric == PHOTOMETRIC.PALETTE:
            count, dtype = 3, np.dtype(np.uint8)
        # Whether one upright page is the image, so that its pieces are windows of it.
        alone = self.series.size == page.size and page.axes in ("YX", "YXS", "SYX")
        alone &= self.orientation == 1
        alpha = count == 2 and tuple(page.extrasamples or ()) in ((1,), (2,))
        self.info = ImageInfo(
            (pages, *size) if stack else size, count, dtype,
            in_pieces=alone and not stack and math.prod(self._pieces) >= PIECES, spacing=spacing,
            colors=count == 1 or alpha or page.photometric != _BLACK_IS_ZERO,
        )  # fmt: skip

    @override
    def close(self) -> None:
        if hasattr(self, "file"):
            self.file.close()
        super().close()

    __del__ = close

    @override
    def _decode(self, keep_palette: bool) -> np.ndarray:
        array, stored = self.series.asarray(), self.series.axes
        axes = "".join(axis for axis in stored if axis not in "YXSC") + "YX"
        axes += "".join(axis for axis in stored if axis in "SC")
        array = array.transpose([stored.index(axis) for axis in axes]).reshape(self.shape)
        return self._meant(array, keep_palette)

    @override
    def _part(self, planes: range, corner: Sequence[int], size: Sequence[int]) -> np.ndarray:
        return self._meant(np.stack([self._stored(number, corner, size) for number in planes]))

    @property
    @override
    def streams(self) -> bool:  # type: ignore[override]
        """Whether rows can be read alone: plain values, of planes that are there to their end."""
        page, series, end = self.page, self.series, self.file.filehandle.size
        leading = series.axes.removesuffix(page.axes)
        plain = (
            (self.orientation, self.info.dtype) == (1, page.dtype)
            and page.axes in ("YX", "YXS")
            and len(leading) < 2
            and leading not in ("C", "S")
            and page.photometric in (_BLACK_IS_ZERO, PHOTOMETRIC.RGB)
            and page.bitspersample > 4
        )
        if offset := plain and series.dataoffset:  # the planes lie one after the other
            return offset + series.nbytes <= end
        if not plain:
            return False
        parts: list[Any] = list(series.pages)
        if math.prod(page.chunks[:2]) > LARGEST_PIECE or len(parts) != self.shape[0]:
            return False
        ends = (o + n for p in parts for o, n in zip(p.dataoffsets, p.databytecounts, strict=True))
        return max(ends) <= end

    def _stored(self, number: int, corner: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """The stored values `[H, W, S]` of a window of a plane."""
        page, ends = self.page, [start + n for start, n in zip(corner, size, strict=True)]
        if self.series.dataoffset and page.axes in ("YX", "YXS"):
            row = page.imagewidth * page.samplesperpixel
            start = self.series.dataoffset + number * page.nbytes
            start += corner[0] * row * page.dtype.itemsize
            stored = page.dtype.newbyteorder(self.file.byteorder)
            with self._lock:
                values = self.file.filehandle.read_array(stored, size[0] * row, start)
            values = values.reshape(size[0], page.imagewidth, -1)[:, corner[1] : ends[1]]
            return values.astype(page.dtype, copy=False)
        part: Any = self.series.pages[number]
        (tall, wide), (down, across) = page.chunks[:2], self._pieces
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        rows = range(corner[0] // tall, -(-ends[0] // tall))
        columns = range(corner[1] // wide, -(-ends[1] // wide))
        places = list(product(range(planes), rows, columns))
        numbers = [(plane * down + row) * across + column for plane, row, column in places]
        offsets = [part.dataoffsets[number] for number in numbers]
        counts, read = [part.databytecounts[n] for n in numbers], self.file.filehandle.read_segments
        with self._lock:
            stored = list(read(offsets, counts, indices=numbers, sort=False))
        values = np.full((*size, page.samplesperpixel), page.nodata, page.dtype)
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        for (data, number), (plane, row, column) in zip(stored, places, strict=True):
            piece = page.decode(data, number, **tables)[0]
            if piece is None:  # left out where all is nodata
                continue
            top, left = row * tall - corner[0], column * wide - corner[1]
            target = values[max(top, 0) :, max(left, 0) :]
            source = piece[0, max(-top, 0) :, max(-left, 0) :][: len(target), : target.shape[1]]
            channels = slice(plane, plane + 1) if planes > 1 else slice(None)
            target[: source.shape[0], : source.shape[1], channels] = source
        return values

    @property
    def _pieces(self) -> tuple[int, ...]:
        """Strips or tiles down and across."""
        chunked: tuple[int, ...] = self.page.chunked
        return chunked[-2:] if self.page.planarconfig == 2 else chunked[:2]

    def _meant(self, array: np.ndarray, keep_palette: bool = False) -> np.ndarray:
        """What stored values `[N, H, W, C]`, of the page or of a part of it, mean."""
        page, bits = self.page, self.page.bitspersample
        if page.photometric == PHOTOMETRIC.PALETTE:
            array = array.astype(np.uint8 if bits <= 8 else np.uint16)
            if not keep_palette:
                colors = np.asarray(page.colormap)  # of 16 bits, but some writers fill only 8
                array = (colors >> 8 * (colors.max() > 255)).astype(np.uint8).T[array[..., 0]]
        else:
            if page.photometric == _WHITE_IS_ZERO:
                if bits == 1 and keep_palette and page.software.startswith("tifffile"):
                    raise UserError(
                        f"{self.path}: tifffile wrote Boolean values with 0 as white, which "
                        "programs read as their opposite; save them as uint8"
                    )
                array = ~array if bits == 1 else array.dtype.type(2**bits - 1) - array
            if bits in (2, 4):
                array = array * np.uint8(255 // (2**bits - 1))
        return array

    def _checked_series(self) -> tifffile.TiffPageSeries:
        """The image or stack that the file holds, at its finest."""
        path, count = self.path, len(self.file.series)
        if not count:
            raise UserError(f"{path}: holds no image; replace or remove the file")
        if count != 1 and not self.file.is_svs:  # whose others are a thumbnail and labels
            raise UserError(
                f"{path}: holds {count} images of different shapes; save each as a file of its own"
            )
        series = self.file.series[0]
        page = series.keyframe
        name = getattr(page.photometric, "name", str(page.photometric))
        if page.photometric == PHOTOMETRIC.YCBCR and page.compression not in _JPEGS:
            raise no_conversion(path, f"{name} without JPEG compression")
        if page.photometric not in _KNOWN:
            raise no_conversion(path, name)
        if page.compression == _APERIO_YCBCR and page.photometric != _BLACK_IS_ZERO:
            raise no_conversion(path, "YCbCr of Aperio's JPEG 2000")
        if page.photometric == _WHITE_IS_ZERO and series.dtype.kind not in "bu":
            raise UserError(
                f"{path}: says that 0 is white, but not which of its {series.dtype} values is "
                "black; save it with photometric MINISBLACK"
            )
        return series

    def _stored_shape(self, stack: bool) -> tuple[int, ...]:
        """`[N, H, W, C]`, after refusing what is not an image or a stack of them."""
        path, axes = self.path, self.series.axes
        sizes = dict(zip(axes, self.series.shape, strict=True))
        if not {"Y", "X"} <= set(sizes):
            raise UserError(f"{path}: has axes {axes}, not those of an image")
        extra = [n for axis, n in sizes.items() if axis not in "YXSC" and n > 1]
        pages = math.prod(extra)
        if pages > 1 and not stack:
            raise UserError(
                f"{path}: has {pages} pages; save each as an image of its own, store channels "
                "as samples of one page, or set data.dims 3 for a volume"
            )
        if len(extra) > 1:
            raise UserError(f"{path}: has axes {axes}; a stack may have one besides Y, X, C")
        return pages, sizes["Y"], sizes["X"], sizes.get("S", 1) * sizes.get("C", 1)


def tiff_options(
    path: Path, axes: str, spacing: Sequence[float] | None = None, channels: Sequence[str] = ()
) -> dict[str, Any]:
    """Arguments of `tifffile.imwrite` for an OME-TIFF, which Fiji, napari and others can scale.

    Args:
        path: The file, whose name is its identity, so that the same values give the same bytes.
        axes: A letter for each axis of what is written, such as "ZCYX".
        spacing: Millimetres from pixel to pixel along (planes,) rows and columns; None: not known.
        channels: Names of the channels.
    """
    identity = UUID(bytes=blake2b(os.fsencode(path.name), digest_size=16).digest(), version=4)
    metadata: dict[str, Any] = {"axes": axes, "UUID": str(identity)}
    options: dict[str, Any] = {"ome": True, "metadata": metadata}
    if channels:
        metadata["Channel"] = {"Name": list(channels)}
    if spacing:
        for axis, length in zip("XYZ", reversed(spacing), strict=False):
            if axis in axes:
                micrometres = float(f"{length * 1000:.10g}")
                metadata |= {f"PhysicalSize{axis}": micrometres, f"PhysicalSize{axis}Unit": "µm"}
        options |= {
            "resolution": tuple(10 / np.array(spacing[:-3:-1])),
            "resolutionunit": "CENTIMETER",
        }
    return options

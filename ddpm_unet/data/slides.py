"""Windows of files that are stored in pieces, as whole slides are; no more of them is read.

Of several resolutions (OME-TIFF, SVS, generic pyramids, OME-Zarr) one level is read.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import tifffile

from ddpm_unet.data.bio import Bio, is_bio, open_bio
from ddpm_unet.data.images import (
    ImageInfo,
    are_colors,
    check_pixels,
    faults_named,
    page_values,
    tiff_orientation,
    tiff_series,
)
from ddpm_unet.data.metadata import Metadata
from ddpm_unet.data.volumes import file_info, read_file
from ddpm_unet.errors import UserError

PIECES = 4
"""What is stored in fewer is decoded whole."""


class Slide:
    """An open level of a TIFF, and the channels of it that are wanted."""

    def __init__(self, path: str | Path, level: int, channels: Sequence[str] = ()) -> None:
        self.path, self._lock = path, threading.Lock()
        self.file = tifffile.TiffFile(path)
        series, _ = tiff_series(self.file, path)
        if level >= len(series.levels):
            raise UserError(
                f"{path}: has {len(series.levels)} resolutions, no level {level}; lower data.level"
            )
        found = series.levels[level]
        self.page = page = found.keyframe
        self.planes = page.samplesperpixel if page.planarconfig == 2 else 1
        rows = page.tilelength if page.is_tiled else page.rowsperstrip
        columns = page.tilewidth if page.is_tiled else page.imagewidth
        self.shape = (page.imagelength, page.imagewidth)
        check_pixels(path, (*self.shape, page.samplesperpixel), math.inf)
        self.piece = (min(rows, self.shape[0]), min(columns, self.shape[1]))
        self.counts = [-(-n // piece) for n, piece in zip(self.shape, self.piece, strict=True)]
        alone = found.size == page.size and page.axes in ("YX", "YXS", "SYX")
        alone = alone and tiff_orientation(page) == 1
        self.in_pieces = alone and math.prod(self.counts) >= PIECES
        if level and not alone:
            raise UserError(f"{path}: level {level} is no upright page; set data.level to 0")
        about, finest = Metadata.of_tiff(self.file), series.levels[0].keyframe
        pixel = page_values(np.zeros((1, 1, 1, page.samplesperpixel), page.dtype), page, path)
        self.numbers = about.numbers(channels, pixel.shape[-1], path) if alone else None
        self.dtype, self.channels = pixel.dtype, len(self.numbers or pixel[0, 0, 0])
        self.spacing = about.spacing
        if self.spacing and level:
            coarser = finest.imagelength / self.shape[0], finest.imagewidth / self.shape[1]
            sides = zip(self.spacing[-2:], coarser, strict=True)
            self.spacing = tuple(length * factor for length, factor in sides)

    def info(self) -> ImageInfo:
        """Shape and type of what `window` gives."""
        height, width = self.shape
        colors = are_colors(self.page, self.channels)
        known = (self.dtype, None, self.in_pieces, self.spacing, colors)
        return ImageInfo(height, width, self.channels, *known)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()

    def window(self, corner: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """`[H, W, C]` from the pixel `corner` (top, left) on."""
        page, ends = self.page, [start + n for start, n in zip(corner, size, strict=True)]
        if any(end > n for end, n in zip(ends, self.shape, strict=True)):
            raise UserError(f"{self.path}: has changed while it was in use; start again")
        spans = [
            range(start // piece, -(-end // piece))
            for start, end, piece in zip(corner, ends, self.piece, strict=True)
        ]
        places = list(product(range(self.planes), *spans))
        down, across = self.counts
        numbers = [(plane * down + row) * across + column for plane, row, column in places]
        offsets = [page.dataoffsets[number] for number in numbers]
        counts, read = [page.databytecounts[n] for n in numbers], self.file.filehandle.read_segments
        with self._lock:
            stored = list(read(offsets, counts, indices=numbers, sort=False))
        values = np.full((*size, page.samplesperpixel), page.nodata, page.dtype)
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        for (data, number), (plane, row, column) in zip(stored, places, strict=True):
            piece = page.decode(data, number, **tables)[0]
            if piece is None:  # left out where all is nodata
                continue
            top, left = row * self.piece[0] - corner[0], column * self.piece[1] - corner[1]
            target = values[max(top, 0) :, max(left, 0) :]
            source = piece[0, max(-top, 0) :, max(-left, 0) :][: len(target), : target.shape[1]]
            channels = slice(plane, plane + 1) if self.planes > 1 else slice(None)
            target[: source.shape[0], : source.shape[1], channels] = source
        values = page_values(values[None], page, self.path)[0]
        return values[..., self.numbers] if self.numbers else values


def open_slide(
    path: str | Path, level: int = 0, channels: Sequence[str] = (), dims: int = 2
) -> Slide | Bio | None:
    """A file whose windows can be read alone, or of which another level than 0 is wanted.

    It stays open for a while in each process that asks for it.
    """
    if is_bio(path):
        return open_bio(path, level, channels)
    if dims == 3 or not str(path).lower().endswith((".tif", ".tiff", ".svs")):
        if level:
            raise UserError(f"{path}: has no resolutions to choose from; set data.level to 0")
        return None
    found = os.stat(path)
    version = (os.getpid(), found.st_mtime_ns, found.st_size)
    slide = _opened(path, level, tuple(channels), *version)
    return slide if level or slide.in_pieces else None


@lru_cache(maxsize=16)
def _opened(path: str | Path, level: int, channels: tuple[str, ...], *version: int) -> Slide:
    return Slide(path, level, channels)


@dataclass(frozen=True)
class Source:
    """How images are read: as images or, of 3 dimensions, volumes; a level, and some channels."""

    dims: int = 2
    max_pixels: float = 200.0
    level: int = 0
    channels: tuple[str, ...] = ()

    def _slide(self, path: str | Path) -> Slide | Bio | None:
        return open_slide(path, self.level, self.channels, self.dims)

    def info(self, path: str | Path) -> ImageInfo:
        """As `file_info`; images in pieces may be of any size."""
        with faults_named(path):
            slide = self._slide(path)
            if isinstance(slide, Bio):
                return slide.info(self.dims)
            if slide is not None:
                return slide.info()
        return file_info(path, self.dims, self.max_pixels, self.channels)

    def read(self, path: str | Path) -> np.ndarray:
        """As `read_file`."""
        with faults_named(path):
            slide = self._slide(path) if self.level else None
            if slide is None:
                return read_file(path, self.dims, self.max_pixels, channels=self.channels)
            info = self.info(path)
            check_pixels(path, (*info.size, info.channels), self.max_pixels)
            return slide.window([0] * self.dims, info.size)

    def window(self, path: str | Path, corner: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """`[(D,) H, W, C]`, a window of an image that is `in_pieces`."""
        with faults_named(path):
            slide = self._slide(path)
            if slide is None:
                raise UserError(f"{path}: has changed while it was in use; start again")
            return slide.window(corner, size)

"""Image files as rows: whole in memory, or read from a large TIFF as they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from torch import Tensor

from ddpm_unet.data.images import channel_numbers
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.data.reading import Reading, is_bio, is_tiff, read_image
from ddpm_unet.data.tiff import Metadata
from ddpm_unet.data.volumes import BioFile, BioPlane
from ddpm_unet.errors import UserError
from ddpm_unet.inference.tiles import Rows

_BLACK_IS_ZERO, _RGB = 1, 2
_LARGEST_SEGMENT = 2**24  # pixels of a strip or tile that memory can hold a few times


def lengths_of(path: str | Path) -> tuple[float, ...] | None:
    """Millimetres along (planes,) rows and columns, as OME, ImageJ or a resolution in cm say.

    None where a file does not; a resolution in inches is one of printing.
    """
    if is_bio(path):
        return Reading(3).kept_open(path).info.spacing
    if not is_tiff(path):
        return None
    with tifffile.TiffFile(path) as file:
        about = Metadata.of(file)
    return about.spacing or about.resolution


class Prepared:
    """Rows of another source `[..., C]` after a function of each pixel, to `channels` channels."""

    def __init__(self, source: Rows, prepare: Callable[[np.ndarray], np.ndarray], channels: int):
        self.source, self.prepare = source, prepare
        self.shape = (*source.shape[:-1], channels)

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        return self.prepare(np.asarray(self.source[rows]))


class TiffRows:
    """One page of the only series of an open TIFF, `[H, W, C]`, uint8, uint16 or float32.

    Reading some rows decodes only the strips or tiles they touch.
    """

    def __init__(self, file: tifffile.TiffFile, number: int) -> None:
        series, page = file.series[0], file.series[0].keyframe
        self.path = Path(file.filehandle.path)
        self.shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
        self.dtype = np.dtype(str(page.dtype))
        self._file, self._key = file, page
        # Uncompressed pixels may lie in the file one after the other, page after page.
        self._offset = series.dataoffset and series.dataoffset + number * page.nbytes
        self._page: Any = None if self._offset else series.pages[number]

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        low, high, _ = rows.indices(self.shape[0])
        try:
            if self._offset:
                array = self._stored(self._offset, low, high)
            else:
                array = self._decoded(low, high)
        except Exception as error:  # decoders raise ValueError, zlib.error, struct.error, ...
            cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"{self.path}: is damaged or truncated ({cause}); replace or remove the file"
            ) from error
        if self.dtype.kind == "f" and not np.isfinite(array).all():
            row, column = np.argwhere(~np.isfinite(array))[0][:2]
            raise UserError(
                f"{self.path}: has NaN or infinite values, the first at row {low + row}, column "
                f"{column}; mend or remove the file"
            )
        return array

    def _stored(self, page: int, low: int, high: int) -> np.ndarray:
        _, width, channels = self.shape
        values = width * channels
        array = self._file.filehandle.read_array(
            self.dtype.newbyteorder(self._file.byteorder),
            count=(high - low) * values,
            offset=page + low * values * self.dtype.itemsize,
        )
        return array.reshape(high - low, width, channels)

    def _decoded(self, low: int, high: int) -> np.ndarray:
        key, page = self._key, self._page
        across, tall = key.chunked[1], key.chunks[0]
        first, last = low // tall * across, -(-high // tall) * across
        band = np.zeros((high - low, *self.shape[1:]), dtype=self.dtype)
        segments = self._file.filehandle.read_segments(
            page.dataoffsets[first:last], page.databytecounts[first:last], range(first, last)
        )
        for data, index in segments:
            decoded, (_, _, top, left, _), (_, height, width, _) = key.decode(data, index)
            if decoded is None:  # a sparse file leaves out what is all zero
                continue
            above, below = max(low - top, 0), min(high - top, height)
            right = min(left + width, self.shape[1])
            rows = decoded[0, above:below, : right - left]
            band[top + above - low : top + below - low, left:right] = rows
        return band


@contextmanager
def open_planes(
    path: str | Path,
    max_pixels: float = 200.0,
    stream_above: float = 16.0,
    channels: Sequence[str] = (),
) -> Iterator[Sequence[Rows]]:
    """The planes of an image file: one, or every page of a TIFF, OME-Zarr, CZI or ND2.

    The latter three, and TIFFs whose pixels need no conversion (grey or colour, 8 or 16 bits or
    float32, stored plainly or in moderate strips or tiles), are read row by row where they have
    more than `stream_above` million pixels, and may be of any size.

    Args:
        path: The file.
        max_pixels: Refuse to decode more than so many million pixels at once.
        stream_above: Million pixels.
        channels: Names or numbers of those wanted, see `channel_numbers`; empty for all.

    Yields:
        Per plane rows `[H, W, C]`, uint8, uint16 or float32, to be read within the context.

    Raises:
        UserError: As `Reading.read`; also while reading rows.
    """
    if is_bio(path):
        file = Reading(3, channels=tuple(channels)).kept_open(path)
        if isinstance(file, BioFile) and math.prod(file.shape[:3]) > stream_above * 1e6:
            yield [BioPlane(file, number) for number in range(file.shape[0])]
        else:
            yield list(file.read())
    elif not is_tiff(path):
        yield [read_image(path, max_pixels=max_pixels, channels=channels)]
    else:
        with ExitStack() as stack:
            pages: list[Any] = []
            with suppress(OSError, ValueError, tifffile.TiffFileError):  # reading it says which
                pages = _pages(stack.enter_context(tifffile.TiffFile(path)), stream_above, channels)
            yield pages or list(read_image(path, 3, max_pixels=max_pixels, channels=channels))


def _pages(file: tifffile.TiffFile, stream_above: float, channels: Sequence[str]) -> list[TiffRows]:
    """The pages of a TIFF that can and should be streamed, else an empty list."""
    if len(file.series) != 1:
        return []
    series, page = file.series[0], file.series[0].keyframe
    orientation = page.tags.get("Orientation")
    plain = (
        series.axes in ("YX", "YXS") or (series.axes[1:] in ("YX", "YXS") and series.axes[0] != "C")
    ) and (
        page.axes in ("YX", "YXS")
        and str(page.dtype) in ("uint8", "uint16", "float32")
        and page.bitspersample > 4
        and page.photometric in (_BLACK_IS_ZERO, _RGB)
        and (orientation is None or orientation.value == 1)
    )
    pages = series.size // page.size if plain and page.size else 0
    if pages * page.imagelength * page.imagewidth <= stream_above * 1e6:
        return []
    names, every = Metadata.of(file).channels, list(range(page.samplesperpixel))
    if channel_numbers(channels, names, len(every), file.filehandle.path) != every:
        return []
    if series.dataoffset:
        complete = series.dataoffset + series.nbytes <= file.filehandle.size
        return [TiffRows(file, number) for number in range(pages if complete else 0)]
    parts: list[Any] = list(series.pages)
    if page.chunks[0] * page.chunks[1] > _LARGEST_SEGMENT or len(parts) != pages:
        return []
    ends = (o + n for p in parts for o, n in zip(p.dataoffsets, p.databytecounts, strict=True))
    rows = [TiffRows(file, number) for number in range(pages)]
    try:
        if max(ends) <= file.filehandle.size and rows[0][0:1].size:
            return rows
    except UserError:  # a compression that needs another decoder
        pass
    return []


def read_images(
    paths: Sequence[Path], seen: int | Preprocessing, size: Sequence[int] | None = None
) -> Tensor:
    """Images of one size (None: of the first), `float32 [N, C, H, W]` in [-1, 1].

    Args:
        paths: The files.
        seen: What the network knows of its images, or C alone.
        size: Height and width, pixels.

    Raises:
        UserError: One cannot be read, or is of another size or depth.
    """
    own = Preprocessing(seen) if isinstance(seen, int) else seen
    images = []
    wanted = None if size is None else (size[0], size[-1])
    for path in paths:
        image = read_image(path, channels=own.channel_names)
        own.check_depth(image.dtype, float(image.max()), path.name)
        wanted = wanted or (image.shape[0], image.shape[1])
        if image.shape[:2] != wanted:
            have, want = (" x ".join(map(str, s)) for s in (image.shape[:2], wanted))
            raise UserError(f"{path}: has {have} pixels, not {want}; resize it, or change size")
        image = own.whole(image) if own.whole else image
        images.append(torch.from_numpy(own.to_unit(image, path.name)).movedim(-1, 0))
    return torch.stack(images)


def read_hole(path: Path, size: Sequence[int]) -> Tensor:
    """Where an image is white, `bool [1, 1, H, W]`.

    Raises:
        UserError: It cannot be read, is of another size, or is black everywhere.
    """
    hole = read_images([path], 1, size) > 0
    if not hole.any():
        raise UserError(f"{path}: is black everywhere; make white what is to be painted")
    return hole

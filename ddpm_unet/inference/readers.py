"""Image files as rows: whole in memory, or read from a large TIFF as they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm_unet.data.images import ImageFile, faults_named
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.data.reading import Reading, is_bio, is_tiff, read_image
from ddpm_unet.errors import UserError
from ddpm_unet.inference.tiles import Rows


def lengths_of(path: str | Path) -> tuple[float, ...] | None:
    """Millimetres along (planes,) rows and columns, as OME, ImageJ or a resolution in cm say.

    None where a file does not; a resolution in inches is one of printing.
    """
    if not is_bio(path) and not is_tiff(path):
        return None
    with Reading(3).opened(path) as file:
        return file.info.spacing or file.resolution


class Prepared:
    """Rows of another source `[..., C]` after a function of each pixel, to `channels` channels."""

    def __init__(self, source: Rows, prepare: Callable[[np.ndarray], np.ndarray], channels: int):
        self.source, self.prepare = source, prepare
        self.shape = (*source.shape[:-1], channels)

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        return self.prepare(np.asarray(self.source[rows]))


class PlaneRows:
    """A plane `[H, W, C]` of a file, uint8, uint16 or float32, whose rows are read as needed."""

    def __init__(self, file: ImageFile, number: int) -> None:
        self.file, self.number = file, number
        self.dtype = file.info.dtype
        self.shape = (*file.info.size[-2:], file.info.channels)

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        low, high, _ = rows.indices(self.shape[0])
        with faults_named(self.file.path):
            return self.file.window((self.number, low, 0), (1, high - low, self.shape[1]))[0]


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
    if not is_bio(path) and not is_tiff(path):
        yield [read_image(path, max_pixels=max_pixels, channels=channels)]
        return
    with Reading(3, channels=tuple(channels)).opened(path) as file:
        planes = [PlaneRows(file, number) for number in range(file.shape[0])]
        large = math.prod(file.shape[:3]) > stream_above * 1e6
        if large and file.streams and _decodable(planes[0]):
            yield planes
            return
    yield list(read_image(path, 3, max_pixels=max_pixels, channels=channels))


def _decodable(plane: PlaneRows) -> bool:
    """Whether there is a decoder; where there is none, reading the file whole says so."""
    try:
        return bool(plane[0:1].size)
    except UserError:
        return False


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
        unit = own.to_unit(own.whole(image), path.name)
        images.append(torch.from_numpy(unit).movedim(-1, 0))
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

"""OME-Zarr, CZI and ND2 through bioio (extra `bio`): no more is read than is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_unet.data.images import ImageInfo, check_pixels, faults_named, plain_type, result_type
from ddpm_unet.data.metadata import UNITS, Metadata
from ddpm_unet.errors import UserError

READERS = {".zarr": "bioio_ome_zarr", ".czi": "bioio_czi", ".nd2": "bioio_nd2"}
OPTIONS: dict[str, dict[str, Any]] = {"bioio_czi": {"chunk_dims": ["Y", "X"]}}
"""So that of a CZI planes are read, not stacks."""


class Bio:
    """An open image or volume `[N, H, W, C]`; of several resolutions, one `level`.

    Args:
        path: The file, or the folder of a Zarr.
        level: 0 is the finest.
        channels: Names or numbers of those wanted, see `Metadata.numbers`.
    """

    in_pieces = True

    def __init__(self, path: str | Path, level: int = 0, channels: Sequence[str] = ()) -> None:
        image, self.path = _image(path), path
        if len(image.scenes) != 1:
            raise UserError(
                f"{path}: holds {len(image.scenes)} scenes; save each as a file of its own"
            )
        if level >= len(image.resolution_levels):
            raise UserError(
                f"{path}: has {len(image.resolution_levels)} resolutions, no level {level}; lower "
                "data.level"
            )
        image.set_resolution_level(level)
        sizes = dict(zip(image.dims.order, image.shape, strict=True))
        pages = {axis: n for axis, n in sizes.items() if axis not in "YXCS"}
        if sum(n > 1 for n in pages.values()) > 1:
            raise UserError(
                f"{path}: has axes {image.dims.order}; a stack may have one besides Y, X, C"
            )
        order = [*pages, "Y", "X", *(axis for axis in "CS" if axis in sizes)]
        array = image.dask_data.transpose([image.dims.order.index(axis) for axis in order])
        self.dtype = result_type(array.dtype, path)
        self.array = array.reshape(-1, sizes["Y"], sizes["X"], sizes["C"] * sizes.get("S", 1))
        self.about = Metadata(tuple(map(str, image.channel_names or ())), _spacing(image))
        numbers = self.about.numbers(channels, self.array.shape[-1], path)
        if numbers:
            self.array = self.array[..., numbers]
        self.shape: tuple[int, ...] = tuple(self.array.shape)
        self.colors = self.shape[-1] == 1 or sizes["C"] == 1
        check_pixels(path, self.shape, float("inf"))

    def info(self, dims: int = 2) -> ImageInfo:
        """What `window` and `read` give."""
        pages, height, width, channels = self.shape
        if dims == 2 and pages > 1:
            raise UserError(
                f"{self.path}: has {pages} planes; save each as an image of its own, or set "
                "data.dims 3"
            )
        depth = pages if dims == 3 else None
        known = (self.dtype, depth, True, self.about.spacing, self.colors)
        return ImageInfo(height, width, channels, *known)

    def read(self, *place: slice) -> np.ndarray:
        """Part of the array, `[N, H, W, C]` uint8, uint16 or float32."""
        with faults_named(self.path):
            return plain_type(self.array[place].compute(scheduler="synchronous"), self.path)

    def window(self, corner: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """`[(D,) H, W, C]` from the pixel `corner` on."""
        place = [slice(start, start + n) for start, n in zip(corner, size, strict=True)]
        if len(place) == 3:
            return self.read(*place)
        return self.read(slice(0, 1), *place)[0]


class BioRows:
    """A plane of a `Bio`, `[H, W, C]`, whose rows are read as they are needed."""

    def __init__(self, file: Bio, plane: int) -> None:
        self.file, self.plane = file, plane
        self.shape, self.dtype = file.shape[1:], file.dtype

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        return self.file.read(slice(self.plane, self.plane + 1), rows)[0]


def is_bio(path: str | Path) -> bool:
    """Whether a file, or a folder, is read through bioio, by its name."""
    return str(path).lower().endswith(tuple(READERS))


def open_bio(path: str | Path, level: int = 0, channels: Sequence[str] = ()) -> Bio:
    """A file that bioio reads; it stays open for a while in each process that asks for it."""
    with faults_named(path):
        found = os.stat(path)
        version = (os.getpid(), found.st_mtime_ns, found.st_size)
        return _opened(path, level, tuple(channels), *version)


@lru_cache(maxsize=16)
def _opened(path: str | Path, level: int, channels: tuple[str, ...], *version: int) -> Bio:
    return Bio(path, level, channels)


def _image(path: str | Path) -> Any:
    name = READERS[os.path.splitext(path)[1].lower()]
    try:
        from bioio import BioImage

        reader = import_module(name).Reader
    except ImportError as error:
        raise UserError(
            f"{path}: needs bioio and {name} ({error}); pip install 'ddpm-unet[bio]'"
        ) from None
    return BioImage(path, reader=reader, **OPTIONS.get(name, {}))


def _spacing(image: Any) -> tuple[float, ...] | None:
    """Millimetres along (planes,) rows and columns; without a unit CZI and ND2 count in µm."""
    zarr, lengths = READERS[".zarr"] in type(image.reader).__module__, []
    for axis in "ZYX":
        unit = getattr(getattr(image.dimension_properties, axis), "unit", None)
        if unit is None:
            factor = 0.0 if zarr else UNITS["um"]
        else:  # of pint
            factor = float((1 * unit).to("millimeter").magnitude)
        lengths.append((getattr(image.physical_pixel_sizes, axis) or 0.0) * factor)
    spacing = tuple(lengths[0 if lengths[0] > 0 else 1 :])
    return spacing if min(spacing) > 0 else None

"""OME-Zarr, CZI and ND2 through bioio (extra `bio`): no more is read than is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from ddpm_unet.data.images import (
    ImageFile,
    ImageInfo,
    channel_numbers,
    faults_named,
    plain_type,
    result_type,
    select_channels,
)
from ddpm_unet.data.tiff import UNITS, known_spacing
from ddpm_unet.errors import UserError

READERS = {".zarr": "bioio_ome_zarr", ".czi": "bioio_czi", ".nd2": "bioio_nd2"}
OPTIONS: dict[str, dict[str, Any]] = {"bioio_czi": {"chunk_dims": ["Y", "X"]}}
"""So that of a CZI planes are read, not stacks."""


class BioFile(ImageFile):
    """An open image or volume; of several resolutions one level.

    Args:
        path: The file, or the folder of a Zarr.
        stack: Take several planes as a stack; else they are a fault.
        level: 0 is the finest.
        channels: Names or numbers of those wanted, see `channel_numbers`.
    """

    def __init__(
        self, path: str | Path, stack: bool = False, level: int = 0, channels: Sequence[str] = ()
    ) -> None:
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
        array = array.reshape(-1, sizes["Y"], sizes["X"], sizes["C"] * sizes.get("S", 1))
        if not stack and len(array) > 1:
            raise UserError(
                f"{path}: has {len(array)} planes; save each as an image of its own, or set "
                "data.dims 3"
            )
        names = tuple(map(str, image.channel_names or ()))
        self.array = select_channels(array, channel_numbers(channels, names, array.shape[-1], path))
        self.shape = depth, height, width, count = tuple(self.array.shape)
        self.info = ImageInfo(
            height, width, count, result_type(array.dtype, path), depth if stack else None,
            in_pieces=True, spacing=_spacing(image), colors=count == 1 or sizes["C"] == 1,
        )  # fmt: skip

    @override
    def read(self, keep_palette: bool = False) -> np.ndarray:
        return self._part()

    @override
    def window(self, corner: Sequence[int], size: Sequence[int]) -> np.ndarray:
        place = [slice(start, start + n) for start, n in zip(corner, size, strict=True)]
        return self._part(*place) if len(place) == 3 else self._part(slice(0, 1), *place)[0]

    def _part(self, *place: slice) -> np.ndarray:
        with faults_named(self.path):
            return plain_type(self.array[place].compute(scheduler="synchronous"), self.path)


class BioPlane:
    """A plane of a stack, `[H, W, C]`, whose rows are read as they are needed."""

    def __init__(self, file: BioFile, number: int) -> None:
        self.file, self.number = file, number
        self.shape, self.dtype = file.shape[1:], file.info.dtype

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        top, bottom, _ = rows.indices(self.shape[0])
        corner, size = (self.number, top, 0), (1, bottom - top, self.shape[1])
        return self.file.window(corner, size)[0]


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
    return known_spacing(lengths)

"""Formats of volumes, and where their voxels lie.

nibabel, of the extra `volumes`, decodes NIfTI; bioio, of `bio`, OME-Zarr, CZI and ND2, of which no
more is read than is asked for.
"""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Self, override

from ddpm_unet.data.images import ImageFile, ImageInfo, result_type
from ddpm_unet.data.tiff import UNITS, known_spacing
from ddpm_unet.errors import UserError, from_extra

READERS = {".zarr": "bioio_ome_zarr", ".czi": "bioio_czi", ".nd2": "bioio_nd2"}
OPTIONS: dict[str, dict[str, Any]] = {"bioio_czi": {"chunk_dims": ["Y", "X"]}}
"""So that of a CZI planes are read, not stacks."""


@dataclass(frozen=True)
class Space:
    """Where the voxels of a volume lie in the world.

    `affine` goes from the file's own voxel [x, y, z, 1] to millimetres, `float64 [4, 4]`; `shape`
    are its voxels along its own axes; the header is nibabel's.
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    header: Any = None

    @classmethod
    def of_spacing(cls, spacing: Sequence[float], size: Sequence[int]) -> Space:
        """Canonical axes; spacing in millimetres and size in voxels along slices, rows, columns."""
        depth, height, width = size
        return cls(np.diag([*reversed(spacing), 1.0]), (width, height, depth))

    @property
    def orientation(self) -> np.ndarray:
        """Canonical axis and direction of each of the file's, `[3, 2]` (nibabel's ornt)."""
        from nibabel.orientations import io_orientation

        found = io_orientation(self.affine)
        return np.array([[0, 1], [1, 1], [2, 1]]) if np.isnan(found).any() else found

    @property
    def canonical(self) -> np.ndarray:
        """The affine of the volume as `NiftiFile` turns it."""
        from nibabel.orientations import inv_ornt_aff

        return self.affine @ inv_ornt_aff(self.orientation, self.shape)

    @property
    def size(self) -> tuple[int, int, int]:
        """Slices, rows and columns, as `NiftiFile` turns it."""
        x, y, z = (self.shape[axis] for axis in np.argsort(self.orientation[:, 0]))
        return z, y, x

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres from voxel to voxel along slices, rows and columns, as `NiftiFile`."""
        z, y, x = np.linalg.norm(self.canonical[:3, 2::-1], axis=0).tolist()
        return z, y, x

    def agrees(self, other: Space) -> bool:
        """Whether the same voxels of both volumes lie at the same places, to 1 % of one."""
        tolerance = 0.01 * min(self.spacing)
        return np.allclose(self.canonical, other.canonical, rtol=0, atol=tolerance)


class NiftiFile(ImageFile):
    """A volume brought to one orientation, nibabel's closest canonical (RAS+).

    Slices go from inferior to superior, rows from posterior to anterior, columns from left to
    right. Values are scaled by the file's slope and intercept; a fourth axis is C.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.image = image = from_extra("nibabel", "volumes", f"{path}: is NIfTI").load(path)
        sizes = (*image.shape, *[1] * (4 - len(image.shape)))
        if len(sizes) == 5 and sizes[3] == 1:  # a vector per voxel
            sizes = (*sizes[:3], sizes[4])
        if len(sizes) != 4:
            raise UserError(f"{path}: has {len(sizes)} axes; save volumes of 3, or 4 with channels")
        self.space = Space(image.affine, sizes[:3], image.header)
        self.shape = (*self.space.size, sizes[3])
        scaled = (image.dataobj.slope, image.dataobj.inter) != (1, 0)
        dtype = result_type(np.dtype(np.float32) if scaled else image.get_data_dtype(), path)
        known: Any = {"spacing": self.space.spacing, "colors": sizes[3] == 1}
        self.info = ImageInfo(self.space.size, sizes[3], dtype, **known)

    @override
    def _decode(self, keep_palette: bool) -> np.ndarray:
        from nibabel.orientations import apply_orientation

        array = np.asanyarray(self.image.dataobj).reshape(*self.space.shape, self.shape[-1])
        return apply_orientation(array, self.space.orientation).transpose(2, 1, 0, 3)


class BioFile(ImageFile):
    """An open image or volume; of several resolutions one level.

    Args:
        path: The file, or the folder of a Zarr.
        stack: Take several planes as a stack; else they are a fault.
        level: 0 is the finest.
    """

    streams = True

    def __init__(self, path: str | Path, stack: bool = False, level: int = 0) -> None:
        name, self.path = READERS[os.path.splitext(path)[1].lower()], path
        open_image = from_extra("bioio", "bio", str(path)).BioImage
        reader = from_extra(name, "bio", str(path)).Reader
        image = open_image(path, reader=reader, **OPTIONS.get(name, {}))
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
        self.array = array.reshape(-1, sizes["Y"], sizes["X"], sizes["C"] * sizes.get("S", 1))
        self.shape = tuple(self.array.shape)
        if not stack and len(self.array) > 1:
            raise UserError(
                f"{path}: has {len(self.array)} planes; save each as an image of its own, or set "
                "data.dims 3"
            )
        self.names = tuple(map(str, image.channel_names or ()))
        self.info = ImageInfo(
            self.shape[:3] if stack else self.shape[1:3], self.shape[3],
            result_type(array.dtype, path), in_pieces=True, spacing=_spacing(image),
            colors=sizes["C"] == 1,
        )  # fmt: skip

    @override
    def choose(self, channels: Sequence[str]) -> Self:
        super().choose(channels)
        self.array = super()._chosen(self.array)  # of the others nothing is read
        self.shape = tuple(self.array.shape)
        return self

    @override
    def _chosen(self, array: np.ndarray) -> np.ndarray:
        return array

    @override
    def _decode(self, keep_palette: bool) -> np.ndarray:
        return self.array.compute(scheduler="synchronous")

    @override
    def _part(self, planes: range, corner: Sequence[int], size: Sequence[int]) -> np.ndarray:
        (top, left), (height, width) = corner, size
        place = self.array[planes.start : planes.stop, top : top + height, left : left + width]
        return place.compute(scheduler="synchronous")


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


def write_nifti(path: Path, volume: np.ndarray, space: Space | None = None) -> None:
    """Write a compressed volume `[(C,) D, H, W]`; the same values always give the same bytes.

    C becomes the fourth axis. It is turned back to the orientation of the file of `space`; without
    one, axes are canonical and a voxel is a millimetre.
    """
    import nibabel
    from nibabel.orientations import apply_orientation, ornt_transform

    array = volume.transpose((2, 1, 0) if volume.ndim == 3 else (3, 2, 1, 0))
    space = space or Space(np.eye(4), (1, 1, 1))
    canonical = np.array([[0, 1], [1, 1], [2, 1]])
    array = apply_orientation(array, ornt_transform(canonical, space.orientation))
    image = nibabel.Nifti1Image(array, space.affine, space.header, dtype=volume.dtype)
    image.header["cal_min"] = image.header["cal_max"] = 0  # the window of the source's values
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        image.to_stream(file)


def spacing_of(
    spacings: Sequence[Sequence[float]] | np.ndarray,
    said: float | tuple[float, ...] | None = None,
    dims: int = 3,
) -> tuple[tuple[float, ...] | None, str, bool]:
    """The spacing that is `said` of `dims` axes, else the median of all, None where none is known.

    And the range of all for messages, and whether all have that spacing, to 3 %.
    """
    own = said if isinstance(said, tuple | None) else (float(said),) * dims
    if not len(spacings):
        return own, in_mm(own) if own else "unknown size", True
    found = np.array(spacings)
    low, high = found.min(0), found.max(0)
    shown = in_mm(high)
    if in_mm(low) != shown:
        shown = f"{in_mm(low).removesuffix(' mm')} to {shown}"
    same = alike(own, low) and alike(own, high) if own else alike(low, high)
    return own or tuple(np.median(found, axis=0).tolist()), shown, same


def alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two spacings differ by 3 % at most."""
    return bool((np.abs(np.log(np.divide(one, other))) <= math.log(1.03) + 1e-9).all())


def in_mm(spacing: Sequence[float]) -> str:
    """A spacing for messages, width first."""
    return f"{' x '.join(f'{mm:.3g}' for mm in spacing[::-1])} mm"

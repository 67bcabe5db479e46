"""NIfTI, the format of medical volumes: voxels as `[D, H, W, C]`, and where they lie.

A NIfTI array is [X, Y, Z]; here it is turned to [Z, Y, X], slices first, as the pages of a TIFF
are. nibabel, of the extra `volumes`, does the reading and writing.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_unet.data.header import PictureInfo, check_pixels
from ddpm_unet.data.tiff import plain_type, result_type
from ddpm_unet.errors import UserError

ENDINGS = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Space:
    """Where the voxels of a file lie in the world.

    Args:
        affine: From voxel [x, y, z, 1] to millimetres, `float64 [4, 4]`.
        header: nibabel's, with what else the file says about its axes.
    """

    affine: np.ndarray
    header: Any = None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres from voxel to voxel along slices, rows and columns."""
        z, y, x = np.linalg.norm(self.affine[:3, 2::-1], axis=0).tolist()
        return z, y, x

    def agrees(self, other: Space) -> bool:
        """Whether the same voxels of both files lie at the same places, to a hundredth of one."""
        return np.allclose(self.affine, other.affine, rtol=0, atol=0.01 * min(self.spacing))


def read(path: str | Path, max_pixels: float) -> np.ndarray:
    """Decode a volume.

    Args:
        path: The file.
        max_pixels: Refuse more than so many million voxels before decoding them.

    Returns:
        `[D, H, W, C]`, uint8, uint16 or float32; a fourth axis of the file is C. Values are
        scaled by the file's slope and intercept.

    Raises:
        UserError: More axes, values that are no plain numbers, or nibabel is not installed.
    """
    image = _open(path)
    x, y, z, channels = _shape(image, path)
    check_pixels(path, (z, y, x, channels), max_pixels)
    result_type(image.get_data_dtype(), path)
    array = np.asanyarray(image.dataobj).reshape(x, y, z, channels)
    return np.ascontiguousarray(plain_type(array.transpose(2, 1, 0, 3), path))


def info(path: str | Path, max_pixels: float) -> PictureInfo:
    """Shape and type from the header; errors as `read`."""
    image = _open(path)
    x, y, z, channels = _shape(image, path)
    check_pixels(path, (z, y, x, channels), max_pixels)
    dtype = result_type(image.get_data_dtype(), path)
    if (image.dataobj.slope, image.dataobj.inter) != (1, 0):
        dtype = np.dtype(np.float32)
    return PictureInfo(y, x, channels, dtype, depth=z)


def read_space(path: str | Path) -> Space:
    """Where the voxels lie."""
    image = _open(path)
    return Space(image.affine, image.header)


def write(path: Path, volume: np.ndarray, space: Space | None = None) -> None:
    """Write a compressed volume; the same values always give the same bytes.

    Args:
        path: The file, by any name.
        volume: `[D, H, W]` or `[C, D, H, W]`, also of a memory map; C becomes the fourth axis.
        space: Where its voxels lie; None for one millimetre apart.
    """
    import nibabel

    axes = (2, 1, 0) if volume.ndim == 3 else (3, 2, 1, 0)
    affine, header = (space.affine, space.header) if space else (np.eye(4), None)
    image = nibabel.Nifti1Image(volume.transpose(axes), affine, header, dtype=volume.dtype)
    image.header["cal_min"] = image.header["cal_max"] = 0  # the window of the source's values
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        image.to_stream(file)


def _open(path: str | Path) -> Any:
    try:
        import nibabel
    except ImportError:
        raise UserError(
            f"{path}: NIfTI needs nibabel; pip install 'ddpm-unet[volumes]', or save it as a TIFF"
        ) from None
    return nibabel.load(path)


def _shape(image: Any, path: str | Path) -> tuple[int, int, int, int]:
    """X, Y, Z and channels."""
    sizes = (*image.shape, *[1] * (4 - len(image.shape)))
    if len(sizes) == 5 and sizes[3] == 1:  # a vector per voxel
        sizes = (*sizes[:3], sizes[4])
    if len(sizes) != 4:
        raise UserError(f"{path}: has {len(sizes)} axes; save volumes of 3, or 4 with channels")
    x, y, z, channels = sizes
    return x, y, z, channels

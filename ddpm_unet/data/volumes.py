"""Reads one volume, a NIfTI file or a TIFF whose pages are its slices, and writes NIfTI.

nibabel, of the extra `volumes`, decodes NIfTI; bioio, of `bio`, OME-Zarr, CZI and ND2.
"""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_unet.data.bio import READERS, is_bio, open_bio
from ddpm_unet.data.images import (
    EXTENSIONS,
    ImageInfo,
    check_pixels,
    faults_named,
    image_info,
    is_tiff_file,
    plain_type,
    read_image,
    read_tiff,
    result_type,
    tiff_info,
    without_waiting,
)
from ddpm_unet.data.metadata import Metadata
from ddpm_unet.errors import UserError

NIFTI_EXTENSIONS = (".nii", ".nii.gz")
TIFF_EXTENSIONS = (".tif", ".tiff", ".ome.tif", ".ome.tiff")
BIO_EXTENSIONS = (*READERS, ".ome.zarr")
IMAGE_EXTENSIONS = EXTENSIONS.union(TIFF_EXTENSIONS, BIO_EXTENSIONS)
VOLUME_EXTENSIONS = frozenset((*NIFTI_EXTENSIONS, *TIFF_EXTENSIONS, *BIO_EXTENSIONS))
CHANNEL_FILES = re.compile(r"(.+_)\{([0-9,]+)\}(.*)", re.DOTALL)
"""The path of an image in files of a channel each: case_{0000,0001}.png."""


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
        """The affine of the volume as `read_volume` turns it."""
        from nibabel.orientations import inv_ornt_aff

        return self.affine @ inv_ornt_aff(self.orientation, self.shape)

    @property
    def size(self) -> tuple[int, int, int]:
        """Slices, rows and columns, as `read_volume` turns it."""
        x, y, z = (self.shape[axis] for axis in np.argsort(self.orientation[:, 0]))
        return z, y, x

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres from voxel to voxel along slices, rows and columns, as `read_volume`."""
        z, y, x = np.linalg.norm(self.canonical[:3, 2::-1], axis=0).tolist()
        return z, y, x

    def agrees(self, other: Space) -> bool:
        """Whether the same voxels of both volumes lie at the same places, to 1 % of one."""
        tolerance = 0.01 * min(self.spacing)
        return np.allclose(self.canonical, other.canonical, rtol=0, atol=tolerance)


def read_volume(
    path: str | Path,
    max_pixels: float = 200.0,
    keep_palette: bool = False,
    channels: Sequence[str] = (),
) -> np.ndarray:
    """Decode one volume: NIfTI, OME-Zarr, CZI or ND2, or a TIFF whose pages are its slices.

    NIfTI is brought to one orientation (nibabel's closest canonical, RAS+): slices go from
    inferior to superior, rows from posterior to anterior, columns from left to right. Values are
    scaled by the file's slope and intercept; a fourth axis is C. The file's name decides the
    format; the other arguments, and the errors, are those of `read_image`, but that `max_pixels`
    counts the pixels of all slices.

    Returns:
        `[D, H, W, C]` uint8, uint16 or float32 (finite).
    """
    with faults_named(path):
        if is_bio(path):
            found = open_bio(path, channels=channels)
            check_pixels(path, found.shape, max_pixels)
            return found.read()
        if not is_nifti(path):
            with open(path, "rb", opener=without_waiting) as file:
                if not is_tiff_file(file, path):
                    raise UserError(f"{path}: is not a TIFF, and by its name no other volume")
            return read_tiff(path, max_pixels, keep_palette, stack=True, channels=channels)
        image, space, info = _nifti(path, max_pixels)
        from nibabel.orientations import apply_orientation

        array = np.asanyarray(image.dataobj).reshape(*space.shape, info.channels)
        array = apply_orientation(array, space.orientation).transpose(2, 1, 0, 3)
        numbers = Metadata().numbers(channels, info.channels, path)
        array = array[..., numbers] if numbers else array
        return np.ascontiguousarray(plain_type(array, path))


def volume_info(
    path: str | Path, max_pixels: float = 200.0, channels: Sequence[str] = ()
) -> ImageInfo:
    """Shape and type of a volume from its header alone, with the errors it can show."""
    with faults_named(path):
        if is_bio(path):
            found = open_bio(path, channels=channels).info(3)
            check_pixels(path, (*found.size, found.channels), max_pixels)
            return found
        if not is_nifti(path):
            return tiff_info(path, max_pixels, stack=True, channels=channels)
        info = _nifti(path, max_pixels)[2]
        numbers = Metadata().numbers(channels, info.channels, path)
        return replace(info, channels=len(numbers)) if numbers else info


def volume_space(path: str | Path) -> Space | None:
    """Where the voxels of a NIfTI file lie; None for others, which do not say."""
    path = files_of(path)[0]
    with faults_named(path):
        return _nifti(path, math.inf)[1] if is_nifti(path) else None


def files_of(path: str | Path) -> list[str]:
    """The files of an image: of case_{0000,0001}.png one for each channel."""
    found = CHANNEL_FILES.fullmatch(str(path))
    return [f"{found[1]}{n}{found[3]}" for n in numbers_of(path)] if found else [str(path)]


def numbers_of(path: str | Path) -> tuple[str, ...]:
    """What tells the `files_of` an image apart; empty for one file."""
    found = CHANNEL_FILES.fullmatch(str(path))
    return tuple(found[2].split(",")) if found else ()


def check_together(files: Sequence[str]) -> None:
    """Refuse volumes whose voxels do not lie where those of the first one do."""
    space = volume_space(files[0])
    for path, other in zip(files[1:], map(volume_space, files[1:]), strict=True):
        if space and other and space.size == other.size and not space.agrees(other):
            raise UserError(
                f"{path} ({files[0]}): its voxels lie elsewhere than its image's (the affines "
                "differ); resample it"
            )


def read_file(
    path: str | Path,
    dims: int,
    max_pixels: float = 200.0,
    keep_palette: bool = False,
    channels: Sequence[str] = (),
) -> np.ndarray:
    """`read_image`, or of 3 dimensions `read_volume`, of each of the `files_of` an image."""
    if len(files := files_of(path)) > 1:
        arrays = [read_file(file, dims, max_pixels, keep_palette) for file in files]
        return np.concatenate(arrays, axis=-1)
    if dims == 3:
        return read_volume(path, max_pixels, keep_palette, channels)
    if is_bio(path):
        file_info(path, dims, max_pixels, channels)
        return read_volume(path, max_pixels, channels=channels)[0]
    return read_image(path, max_pixels, keep_palette, channels=channels)


def file_info(
    path: str | Path, dims: int, max_pixels: float = 200.0, channels: Sequence[str] = ()
) -> ImageInfo:
    """`image_info`, or of 3 dimensions `volume_info`, of all of the `files_of` an image."""
    if len(files := files_of(path)) > 1:
        if channels:
            raise UserError(f"{path}: files hold a channel each; choose none by data.channels")
        check_together(files)
        first, *others = (file_info(file, dims, max_pixels) for file in files)
        for file, other in zip(files[1:], others, strict=True):
            if (other.size, other.dtype) != (first.size, first.dtype):
                raise UserError(f"{file}: has not the size and type of {files[0]}; resample it")
        count = first.channels + sum(other.channels for other in others)
        return replace(first, channels=count, colors=False)
    if dims == 3:
        return volume_info(path, max_pixels, channels)
    if is_bio(path):
        with faults_named(path):
            found = open_bio(path, channels=channels).info(2)
        check_pixels(path, (*found.size, found.channels), max_pixels)
        return found
    return image_info(path, max_pixels, channels=channels)


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


def is_nifti(path: str | Path) -> bool:
    """Whether a file is NIfTI by its name."""
    return str(path).lower().endswith(NIFTI_EXTENSIONS)


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


def _nifti(path: str | Path, max_pixels: float) -> tuple[Any, Space, ImageInfo]:
    """Nibabel's image, not decoded; where it lies; and what reading it gives."""
    try:
        import nibabel
    except ImportError:
        raise UserError(
            f"{path}: NIfTI needs nibabel; pip install 'ddpm-unet[volumes]', or save it as a TIFF"
        ) from None
    image: Any = nibabel.load(path)
    sizes = (*image.shape, *[1] * (4 - len(image.shape)))
    if len(sizes) == 5 and sizes[3] == 1:  # a vector per voxel
        sizes = (*sizes[:3], sizes[4])
    if len(sizes) != 4:
        raise UserError(f"{path}: has {len(sizes)} axes; save volumes of 3, or 4 with channels")
    space = Space(image.affine, sizes[:3], image.header)
    dtype = result_type(image.get_data_dtype(), path)
    if (image.dataobj.slope, image.dataobj.inter) != (1, 0):
        dtype = np.dtype(np.float32)
    depth, height, width = space.size
    check_pixels(path, (depth, height, width, sizes[3]), max_pixels)
    return (
        image,
        space,
        ImageInfo(
            height, width, sizes[3], dtype, depth, spacing=space.spacing, colors=sizes[3] == 1
        ),
    )

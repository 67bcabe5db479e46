"""Reading one volume file: NIfTI, or a TIFF whose pages are its slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ddpm_unet.data import nifti, tiff
from ddpm_unet.data.header import PictureInfo
from ddpm_unet.data.pictures import faults_named

ENDINGS = frozenset((*nifti.ENDINGS, ".tif", ".tiff"))


def read_volume(
    path: str | Path, max_pixels: float = 200.0, keep_palette: bool = False
) -> np.ndarray:
    """Decode one volume.

    Args:
        path: The file; its name decides the format.
        max_pixels: Refuse volumes of more than so many million voxels before decoding them.
        keep_palette: Return a palette TIFF's indices instead of its colours.

    Returns:
        `[D, H, W, C]` uint8, uint16 or float32 (finite).

    Raises:
        UserError: Missing, damaged, too large, not a volume, NaN or infinite values. One line
            that names file and cure.
    """
    with faults_named(path):
        if is_nifti(path):
            return nifti.read(path, max_pixels)
        return tiff.read(path, max_pixels, keep_palette, stack=True)


def volume_info(path: str | Path, max_pixels: float = 200.0) -> PictureInfo:
    """Shape and type of a volume from its header alone, with the errors it can show."""
    with faults_named(path):
        if is_nifti(path):
            return nifti.info(path, max_pixels)
        return tiff.info(path, max_pixels, stack=True)


def volume_space(path: str | Path) -> nifti.Space | None:
    """Where the voxels lie; None for a TIFF, which does not say."""
    with faults_named(path):
        return nifti.read_space(path) if is_nifti(path) else None


def is_nifti(path: str | Path) -> bool:
    """Whether a file is NIfTI by its name."""
    return str(path).lower().endswith(nifti.ENDINGS)

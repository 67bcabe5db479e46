"""NIfTI files of arrays."""

from pathlib import Path

import nibabel
import numpy as np

AFFINE = np.array([[0, -2.0, 0, 10], [1.0, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE, scale=(None, None)) -> Path:
    """A NIfTI file of an array `[X, Y, Z, ...]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_slope_inter(*scale)
    image.to_filename(path)
    return path

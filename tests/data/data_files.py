"""Files of arrays, and their faults."""

from contextlib import contextmanager

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from ddpm_unet.errors import UserError

AFFINE = np.array([[0, -2.0, 0, 10], [1.0, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])


def write(path, array):
    """An image `[H, W]` or `[H, W, C]`; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        planes = {"planarconfig": "contig"} if array.ndim == 3 else {}
        tifffile.imwrite(path, array, photometric="minisblack", **planes)
    else:
        Image.fromarray(array).save(path)


def save(path, array, affine=AFFINE, scale=(None, None)):
    """A NIfTI file of an array `[X, Y, Z, ...]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_slope_inter(*scale)
    image.to_filename(path)
    return path


@contextmanager
def refused(message):
    """What is done within raises a UserError of one line, in which the pattern is found."""
    with pytest.raises(UserError, match=message) as caught:
        yield caught
    assert "\n" not in str(caught.value)

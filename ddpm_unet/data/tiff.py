"""TIFF: any depth and number of channels, one picture or a stack of pages, by tifffile.

Pillow (libtiff) steps in for compressions that tifffile cannot read without the package
imagecodecs, unless that would cut the depth.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from ddpm_unet.data.header import PictureInfo, check_pixels, orient
from ddpm_unet.errors import UserError

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # faults are told by us
_LARGEST_EXACT = 2**24  # integers up to here are exact in float32


def info(path: str | Path, max_pixels: float, stack: bool = False) -> PictureInfo:
    """Header of a one-picture TIFF, or of a stack; errors as `read`."""
    with tifffile.TiffFile(path) as file:
        series, page = _series(file, path)
        pages, height, width, channels = _shape(series, path, stack)
        check_pixels(path, (*[pages] * stack, height, width, channels), max_pixels)
        if _orientation(page) >= 5:
            height, width = width, height
        dtype = result_type(series.dtype, path)
        if page.photometric == _PALETTE:
            channels, dtype = 3, np.dtype(np.uint8)
        return PictureInfo(height, width, channels, dtype, depth=pages if stack else None)


def read(
    path: str | Path, max_pixels: float, keep_palette: bool, stack: bool = False
) -> np.ndarray:
    """Decode a TIFF.

    Args:
        path: The file.
        max_pixels: Million pixels allowed, over all pages.
        keep_palette: Return a palette picture's indices instead of its colours.
        stack: Allow more than one page.

    Returns:
        `[N, H, W, C]` uint8, uint16 or float32; N = 1 unless a stack. Half and double floats
        and integers of other types become float32, where that is exact for integers.

    Raises:
        UserError: One line that names file and cure.
    """
    with tifffile.TiffFile(path) as file:
        series, page = _series(file, path)
        shape = _shape(series, path, stack)
        check_pixels(path, shape, max_pixels)
        result_type(series.dtype, path)
        array = _decode(series, path)
        orientation, photometric, colormap = _orientation(page), page.photometric, page.colormap
    order = [series.axes.index(axis) for axis in _ordered_axes(series)]
    array = array.transpose(order).reshape(shape)
    if photometric == _PALETTE and not keep_palette:
        colours = (np.asarray(colormap) >> 8).astype(np.uint8).T  # TIFF palettes have 16 bits
        array = colours[array[..., 0]]
    if photometric == _WHITE_IS_ZERO and array.dtype.kind in "bu":
        array = ~array
    array = plain_type(array, path)
    if orientation == 1:
        return np.ascontiguousarray(array)
    return np.stack([orient(picture, orientation) for picture in array])


def _series(
    file: tifffile.TiffFile, path: str | Path
) -> tuple[tifffile.TiffPageSeries, tifffile.TiffPage]:
    if not file.series:
        raise UserError(f"{path}: holds no picture; replace or remove the file")
    if len(file.series) != 1:
        raise UserError(
            f"{path}: holds {len(file.series)} pictures of different shapes; "
            "save each as a file of its own"
        )
    series = file.series[0]
    page = series.keyframe
    jpeg = page.compression in (6, 7)
    if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE) and not (
        page.photometric == _YCBCR and jpeg
    ):
        name = getattr(page.photometric, "name", page.photometric)
        raise UserError(
            f"{path}: its colour space {name} has no single conversion to RGB; "
            "convert the file to grey, RGB or RGBA first"
        )
    return series, page


def _ordered_axes(series: tifffile.TiffPageSeries) -> str:
    """The axes of the series, pages first, then Y, X and channels."""
    pages = "".join(axis for axis in series.axes if axis not in "YXSC")
    return pages + "YX" + "".join(axis for axis in series.axes if axis in "SC")


def _shape(
    series: tifffile.TiffPageSeries, path: str | Path, stack: bool
) -> tuple[int, int, int, int]:
    """`[N, H, W, C]`, after refusing what is not a picture or a stack of them."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    if not {"Y", "X"} <= set(sizes):
        raise UserError(f"{path}: has axes {series.axes}, not those of a picture")
    channels = sizes.get("S", 1) * sizes.get("C", 1)
    extra = {axis: n for axis, n in sizes.items() if axis not in "YXSC" and n > 1}
    pages = int(np.prod(list(extra.values()), dtype=int))
    if pages > 1 and not stack:
        raise UserError(
            f"{path}: has {pages} pages; save each as a picture of its own, or store channels as "
            "samples of one page"
        )
    if len(extra) > 1:
        raise UserError(f"{path}: has axes {series.axes}; a stack may have one besides Y, X, C")
    return pages, sizes["Y"], sizes["X"], channels


def _decode(series: tifffile.TiffPageSeries, path: str | Path) -> np.ndarray:
    try:
        return series.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
    with Image.open(path, formats=["TIFF"]) as image:
        pages = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            pages.append(np.asarray(image))
    array = np.stack(pages)
    if array.dtype != series.dtype or array.size != series.size:
        name = getattr(series.keyframe.compression, "name", series.keyframe.compression)
        raise UserError(f"{path}: its compression {name} needs `pip install imagecodecs`")
    return array.reshape(series.shape)


def _orientation(page: tifffile.TiffPage) -> int:
    tag = page.tags.get(274)
    return int(tag.value) if tag else 1


def result_type(dtype: np.dtype, path: str | Path) -> np.dtype:
    """The type that values of another come in: uint8, uint16 or float32.

    Raises:
        UserError: Values that are no plain numbers.
    """
    if dtype.kind not in "buif":
        raise UserError(f"{path}: holds {dtype} values; save it as uint8, uint16 or float32")
    if dtype in (np.bool_, np.uint8):
        return np.dtype(np.uint8)
    return np.dtype(np.uint16 if dtype == np.uint16 else np.float32)


def plain_type(array: np.ndarray, path: str | Path) -> np.ndarray:
    """Values as their `result_type`; bits become 0 and 255.

    Args:
        array: `[N, H, W, C]`.
        path: For the message.

    Raises:
        UserError: NaN, infinite values, or integers that float32 cannot keep.
    """
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    target = result_type(array.dtype, path)
    if array.dtype.kind in "ui" and target == np.float32 and array.itemsize > 2:
        largest = max(abs(int(array.min())), abs(int(array.max())))
        if largest > _LARGEST_EXACT:
            raise UserError(
                f"{path}: holds {array.dtype} values up to {largest}, more than float32 can keep "
                "exactly; save it as uint16 or float32"
            )
    with np.errstate(over="ignore"):
        array = array.astype(target, copy=False)
    if target == np.float32 and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        row, column = bad[0][1:3]
        raise UserError(
            f"{path}: {len(bad)} values are NaN or infinite, the first at row {row}, column "
            f"{column}; mend or remove the file"
        )
    return array

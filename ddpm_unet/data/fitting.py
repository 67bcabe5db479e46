"""One picture made ready to be kept: channels, value range of floats, and size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import interpolate

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data.images import ImageInfo, check_pixels
from ddpm_unet.data.pixels import box, convert_channels, normalised, to_unit
from ddpm_unet.errors import UserError


def fitted_info(info: ImageInfo, config: ImageDataConfig, name: str) -> ImageInfo:
    """What `fit_picture` will make of a picture.

    Raises:
        UserError: The picture is smaller than the windows to be cut from it.
    """
    size = [config.size] * len(info.size)
    if config.fit == "crop":
        size = [max(1, round(n * config.scale)) for n in info.size]
        if min(size) < config.size:
            scaled = f" at data.scale {config.scale:g}" if config.scale != 1 else ""
            found, wanted = (
                " x ".join(map(str, n)) for n in (size[::-1], [config.size] * len(size))
            )
            raise UserError(
                f"{name}: {found} pixels{scaled} hold no window of {wanted}; "
                "lower data.size or set data.fit resize"
            )
        check_pixels(name, (*size, info.channels), config.max_pixels)
    *depth, height, width = size
    dtype = np.dtype(np.float32) if config.value_range == "percentiles" else info.dtype
    return ImageInfo(height, width, config.channels or info.channels, dtype, *depth)


def fit_picture(picture: np.ndarray, config: ImageDataConfig, name: str) -> np.ndarray:
    """Convert channels, map floats to [-1, 1], and scale ("crop") or resize and cut the centre.

    Args:
        picture: `[H, W, C]`, or `[D, H, W, C]` of a volume; uint8, uint16 or float32.
        config: The data settings.
        name: For messages.

    Returns:
        `[C, H', W']` (`[C, D', H', W']`), integers of the same depth as they came.
    """
    picture = convert_channels(normalised(picture, config.value_range), config.channels, name)
    if picture.dtype == np.float32:
        picture = to_unit(picture, config.value_range, name)
    lengths = picture.shape[:-1]
    planes = np.moveaxis(picture, -1, 0).copy()
    if config.fit == "crop":
        return resize(planes, *(max(1, round(n * config.scale)) for n in lengths))
    factor = config.size / min(lengths)
    planes = resize(planes, *(max(config.size, round(n * factor)) for n in lengths))
    return planes[box(((n - config.size) // 2 for n in planes.shape[1:]), config.size)]


def resize(planes: np.ndarray, *size: int) -> np.ndarray:
    """Antialiased linear resampling, type kept (16 bits, and volumes, pass through float32).

    No value leaves the range of the old ones, as means by weights that add up to 1 to rounding
    would.

    Args:
        planes: `[C, H, W]` or `[C, D, H, W]`; int16 are classes, which are never mixed.
        size: Its new (depth,) height and width.
    """
    if planes.shape[1:] == size:
        return planes
    if planes.dtype == np.int16:
        return nearest(planes, (len(planes), *size))
    exact = planes.dtype == np.uint8 and len(size) == 2
    *depth, height, width = size
    tensor = torch.from_numpy(planes if exact else planes.astype(np.float32))
    tensor = _bilinear(tensor.reshape(1, -1, *tensor.shape[-2:]), height, width)
    if depth:  # linear interpolation is separable: the slices next, a row for every pixel of one
        tensor = tensor.reshape(1, len(planes), -1, height * width)
        tensor = _bilinear(tensor, depth[0], height * width)
    scaled = tensor.reshape(len(planes), *size).numpy()
    if planes.dtype.kind == "f":
        return scaled.clip(planes.min(), planes.max())
    return scaled if exact else scaled.round().astype(planes.dtype)


def _bilinear(planes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return interpolate(planes, (height, width), mode="bilinear", antialias=True)


def nearest(array: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resample `[(D,) H, W]` without mixing values: the pixel under each new pixel's centre."""
    places = [
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
        for new, old in zip(size, array.shape, strict=True)
    ]
    return np.ascontiguousarray(array[np.ix_(*places)])

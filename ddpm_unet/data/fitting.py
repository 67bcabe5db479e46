"""One picture made ready to be kept: channels, value range of floats, and size."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data.header import PictureInfo
from ddpm_unet.data.pixels import convert_channels, to_unit
from ddpm_unet.errors import UserError


def fitted_info(info: PictureInfo, config: ImageDataConfig, name: str) -> PictureInfo:
    """What `fit_picture` will make of a picture.

    Raises:
        UserError: The picture is smaller than the windows to be cut from it.
    """
    if config.fit == "resize":
        height = width = config.size
    else:
        height, width = (max(1, round(n * config.scale)) for n in (info.height, info.width))
        if min(height, width) < config.size:
            scaled = f" at data.scale {config.scale:g}" if config.scale != 1 else ""
            raise UserError(
                f"{name}: {width} x {height} pixels{scaled} hold no window of {config.size} x "
                f"{config.size}; lower data.size or set data.fit resize"
            )
    return PictureInfo(height, width, config.channels or info.channels, info.dtype)


def fit_picture(picture: np.ndarray, config: ImageDataConfig, name: str) -> np.ndarray:
    """Convert channels, map floats to [-1, 1], and scale ("crop") or resize and cut the centre.

    Args:
        picture: `[H, W, C]` uint8, uint16 or float32.
        config: The data settings.
        name: For messages.

    Returns:
        `[C, H', W']`, integers of the same depth as they came.
    """
    picture = convert_channels(picture, config.channels, name)
    if picture.dtype == np.float32:
        picture = to_unit(picture, config.value_range, name)
    height, width = picture.shape[:2]
    planes = picture.transpose(2, 0, 1).copy()
    if config.fit == "crop":
        scaled = (max(1, round(n * config.scale)) for n in (height, width))
        return resize(planes, *scaled)
    factor = config.size / min(height, width)
    planes = resize(planes, *(max(config.size, round(n * factor)) for n in (height, width)))
    top, left = ((n - config.size) // 2 for n in planes.shape[1:])
    return planes[:, top : top + config.size, left : left + config.size]


def resize(planes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Antialiased bilinear resampling of `[C, H, W]`, type kept (16 bits pass through float32)."""
    if planes.shape[1:] == (height, width):
        return planes
    deep = planes.dtype == np.uint16
    tensor = torch.from_numpy(planes.astype(np.float32) if deep else planes)[None]
    scaled = interpolate(tensor, (height, width), mode="bilinear", antialias=True)[0].numpy()
    return scaled.round().astype(np.uint16) if deep else scaled

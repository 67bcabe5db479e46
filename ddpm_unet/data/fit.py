"""The form that windows are cut from: how images are brought to it, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ddpm_unet.config import ValueRange
from ddpm_unet.data.collection import Collection
from ddpm_unet.data.images import ImageInfo, check_pixels
from ddpm_unet.data.pixels import (
    box,
    check_channels,
    convert_channels,
    normalised,
    resampled,
    resize,
    shown_size,
    to_unit,
)
from ddpm_unet.errors import UserError


@dataclass(frozen=True)
class Fit:
    """How images are brought to the form that windows are cut from.

    The arguments are those of `ImageDataConfig`; `mode` is its "fit".
    """

    size: int
    mode: Literal["crop", "resize"] = "crop"
    scale: float = 1.0
    channels: int | None = None
    value_range: ValueRange = None
    max_pixels: float = 200.0

    def info(self, info: ImageInfo, name: str) -> ImageInfo:
        """What `apply` will make of an image; UserError if too small or large."""
        check_channels(info, self.channels, name)
        by_parts = self.mode == "crop" and self.value_range != "percentiles"
        in_pieces = info.in_pieces and by_parts
        if info.in_pieces and not in_pieces:
            cure = "set fit crop" if self.mode == "resize" else "give value_range two numbers"
            reads = f"; or {cure}, by which windows are read alone"
            check_pixels(name, (*info.size, info.channels), self.max_pixels, reads)
        if in_pieces:
            read = [math.ceil(self.size / self.scale) for _ in info.size]
            coarser = "; or raise level, if the file has coarser ones"
            check_pixels(f"{name}: a window", (*read, info.channels), self.max_pixels, coarser)
        size = [self.size] * len(info.size)
        if self.mode == "crop":
            size = [max(1, round(n * self.scale)) for n in info.size]
            if min(size) < self.size:
                scaled = f" at scale {self.scale:g}" if self.scale != 1 else ""
                raise UserError(
                    f"{name}: {shown_size(size)} pixels{scaled} hold no window of "
                    f"{shown_size([self.size] * len(size))}; lower size or set fit to resize"
                )
            if not in_pieces:
                check_pixels(name, (*size, info.channels), self.max_pixels)
        dtype = np.dtype(np.float32) if self.value_range == "percentiles" else info.dtype
        channels = self.channels or info.channels
        return ImageInfo(tuple(size), channels, dtype, in_pieces, info.spacing)

    def apply(self, image: np.ndarray, name: str, weights: Sequence[np.ndarray] = ()) -> np.ndarray:
        """Convert channels, map floats to [-1, 1], and scale or resize and cut the centre.

        Of `[(D,) H, W, C]`, uint8, uint16 or float32, it is `[C, (D',) H', W']`, integers of the
        same depth as they came. `weights` make a window of a part of the image: `resampling`.
        """
        image = convert_channels(normalised(image, self.value_range), self.channels, name)
        if image.dtype == np.float32:
            image = to_unit(image, self.value_range, name)
        lengths = image.shape[:-1]
        planes = np.moveaxis(image, -1, 0).copy()
        if weights:
            return resampled(planes, weights)
        if self.mode == "crop":
            return resize(planes, *(max(1, round(n * self.scale)) for n in lengths))
        factor = self.size / min(lengths)
        planes = resize(planes, *(max(self.size, round(n * factor)) for n in lengths))
        return planes[box(((n - self.size) // 2 for n in planes.shape[1:]), self.size)]


@dataclass(frozen=True)
class Layout:
    """Shapes of all fitted images; channels and type are the same for all."""

    sizes: np.ndarray
    """(Depth,) height and width of each, `int64 [N, 2]` or `[N, 3]`."""
    channels: int
    dtype: np.dtype
    """uint8, uint16, float32 for values in [-1, 1], or int16 for classes."""
    in_pieces: np.ndarray
    """Whether windows of each can be read alone, `bool [N]`."""
    spacings: np.ndarray
    """Millimetres along (depth,) height and width, of those images whose files say it."""

    @property
    def nbytes(self) -> int:
        """Size of all images decoded."""
        return int(self.sizes.prod(1).sum()) * self.channels * self.dtype.itemsize


def survey(collection: Collection, fit: Fit) -> Layout:
    """Shapes of the fitted images from their headers; errors as `open_collection`."""
    infos, which = collection.infos()
    used, firsts = np.unique(which, return_index=True)
    by_first = sorted(zip(firsts.tolist(), used.tolist(), strict=True))
    first = fit.info(infos[by_first[0][1]], collection.name(0))
    axes = len(first.size)
    sizes, spacings = np.zeros((len(infos), axes), np.int64), np.full((len(infos), axes), np.nan)
    pieces = np.zeros(len(infos), bool)
    for index, kind in by_first:
        name = collection.name(index)
        fitted = fit.info(infos[kind], name)
        cure, other = "convert it, or set channels to 1, 3 or 4", collection.name(0)
        said = f"channels are {fitted.channels}, those of {other} {first.channels}"
        if fitted.channels == first.channels:
            cure = "convert the files to one depth or keep them in separate folders"
            said = f"depth is {fitted.dtype}, that of {other} {first.dtype}"
        if (fitted.channels, fitted.dtype) != (first.channels, first.dtype):
            raise UserError(f"{name}: {said}; {cure}")
        sizes[kind], pieces[kind] = fitted.size, fitted.in_pieces
        spacings[kind] = infos[kind].along(axes) or np.nan
    known = ~np.isnan(spacings).any(1)[which]
    known_spacings = spacings[which[known]]
    return Layout(sizes[which], first.channels, first.dtype, pieces[which], known_spacings)

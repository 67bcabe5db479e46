"""Pixel values: their channels, range and resampling; `Fit` for all three."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import interpolate

from ddpm_unet.config import ValueRange
from ddpm_unet.data.images import ImageInfo, check_pixels
from ddpm_unet.errors import UserError

PERCENTILES = (0.5, 99.5)


def convert_channels(image: np.ndarray, channels: int | None, name: str) -> np.ndarray:
    """Give an image `[..., C]` 1, 3 or 4 channels; None or C itself leaves it as it is.

    Grey from RGB is ITU-R 601 luma, RGB from grey repeats it, a missing alpha is opaque (1.0 in
    floats), an alpha that is not wanted is dropped (not composited).

    Raises:
        UserError: More than four channels, or others to become than those of colours.
    """
    have = image.shape[-1]
    if channels is None or channels == have:
        return image
    if have > 4 or channels not in (1, 3, 4):
        raise UserError(
            f"{name}: has {have} channel{'s' * (have > 1)}, which cannot become {channels}; "
            "convert it, or train with data.channels null"
        )
    colour = image[..., : 1 if have <= 2 else 3]
    if channels == 1 and colour.shape[-1] == 3:
        luma = colour @ np.array([0.299, 0.587, 0.114])
        colour = (luma if image.dtype.kind == "f" else luma.round())[..., None]
    elif channels >= 3:
        colour = np.broadcast_to(colour, (*image.shape[:-1], 3))
    if channels == 4:
        opaque = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
        alpha = image[..., 1:] if have == 2 else np.full_like(image[..., :1], opaque)
        colour = np.concatenate([colour, alpha], axis=-1)
    return colour.astype(image.dtype)


def check_channels(info: ImageInfo, channels: int | None, name: str) -> None:
    """Refuse to make other channels of those of a microscope or scanner, which are no colours."""
    if channels not in (None, info.channels) and not info.colors:
        raise UserError(
            f"{name}: has {info.channels} channels that are no colours, {channels} "
            f"{'is' if channels == 1 else 'are'} wanted; choose them by data.channels in training, "
            "or save them alone"
        )


def box(corner: Iterable[int], size: int | Sequence[int]) -> tuple[Any, ...]:
    """The index of a window of that size (along each of the last axes) from a corner on."""
    lengths = repeat(size) if isinstance(size, int) else size
    return (..., *(slice(start, start + n) for start, n in zip(corner, lengths, strict=False)))


def shown_size(size: Iterable[int]) -> str:
    """How messages give a size: width first."""
    return " x ".join(map(str, list(size)[::-1]))


def normalised(image: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """For a value range "percentiles", each channel stretched between its own; else unchanged.

    Of a whole image `[..., C]` the 0.5 and 99.5 percentiles become 0 and 1, float32, and values
    outside are clipped (as nnU-Net clips before it normalises: Isensee 2021). Scanners differ in
    their units, tissue less so. `to_unit` goes on from there.
    """
    if value_range != "percentiles":
        return image
    axes = tuple(range(image.ndim - 1))
    low, high = np.percentile(image, PERCENTILES, axis=axes).astype(np.float32)
    with np.errstate(over="ignore"):  # where nearly all of a channel is of one value
        unit = (image.astype(np.float32) - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    return unit.clip(0, 1)


def to_unit(
    array: np.ndarray,
    value_range: ValueRange = None,
    name: str = "the image",
    setting: str = "data.value_range",
) -> np.ndarray:
    """Map pixel values linearly to the training range, float32 in [-1, 1].

    Args:
        array: Any shape, uint8, uint16 or float32.
        value_range: The values that become -1 and 1; values outside are clipped to it. None is
            the full range of the type: 0 to 255, 0 to 65535, and for floats 0 to 1, where
            values outside are an error. "percentiles" is None of a `normalised` image.
        name: For the message.
        setting: Which one holds the range, for the message.
    """
    if value_range is not None and value_range != "percentiles":
        low, high = value_range
        array = array.clip(low, high).astype(np.float32)
        return (array - np.float32(low)) * np.float32(2 / (high - low)) - 1
    if array.dtype.kind == "u":
        return array / np.float32(np.iinfo(array.dtype).max / 2) - 1
    if array.size and (array.min() < 0 or array.max() > 1):
        raise UserError(
            f"{name}: float values from {array.min():g} to {array.max():g}, not within 0 to 1; "
            f"say what is black and white with {setting}, for instance "
            f"[{min(array.min(), 0):g}, {array.max():g}]"
        )
    return array.astype(np.float32) * 2 - 1


def resize(planes: np.ndarray, *size: int) -> np.ndarray:
    """Antialiased linear resampling of `[C, (D,) H, W]`, type kept; int16 classes are never mixed.

    No value leaves the range of the old ones, as means by weights that add up to 1 to rounding
    would. 16 bits, and volumes, pass through float32.
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


def linear_taps(
    length: int, new: int, start: int = 0, count: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of `length` pixels make `count` of `new` ones from `start` on, and how much of each.

    A triangle over the new pixel's centre, as wide as a new pixel when they are larger than the
    old ones, else as an old one.

    Returns:
        Indices `int64 [count, taps]`, non-decreasing in every column, and weights
        `float32 [count, taps]` that add up to 1.
    """
    step, stop = length / new, new if count is None else start + count
    reach = max(step, 1.0)
    centre = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * step
    first = (centre - reach + 0.5).floor().long().clamp(min=0)
    index = first[:, None] + torch.arange(math.ceil(2 * reach) + 1)
    weight = (1 - (index + 0.5 - centre[:, None]).abs() / reach).clamp(min=0)
    weight[index >= length] = 0
    weight /= weight.sum(dim=1, keepdim=True)
    return index.clamp(max=length - 1), weight.float()


def resampling(old: int, new: int, start: int, count: int) -> tuple[int, np.ndarray]:
    """How `count` pixels of a line resized from `old` to `new`, from `start` on, come from it.

    Gives the first pixel of the old line that is needed, and the weights `[count, needed]`: those
    of `linear_taps`, as `resize` has them.
    """
    index, weight = linear_taps(old, new, start, count)
    first, last = int(index[0, 0]), int(index[weight > 0].max()) + 1
    weights = torch.zeros(count, last - first)
    weights.scatter_add_(1, (index - first).clamp(max=last - first - 1), weight)
    return first, weights.numpy()


def resampled(planes: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """Planes `[C, (D,) H, W]` by the weights of each axis, type kept: a window of `resize`'s."""
    values = planes.astype(np.float32)
    for axis, each in enumerate(weights, start=1):
        values = np.moveaxis(np.tensordot(each, values, (1, axis)), 0, axis)
    if planes.dtype.kind == "f":
        return np.ascontiguousarray(values.clip(planes.min(), planes.max()))
    return values.round().astype(planes.dtype)


def nearest(array: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resample `[(D,) H, W]` without mixing values: the pixel under each new pixel's centre."""
    places = [
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
        for new, old in zip(size, array.shape, strict=True)
    ]
    return np.ascontiguousarray(array[np.ix_(*places)])


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

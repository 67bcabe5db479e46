"""Prediction at another scale than the image's: resampled in windows, memory of a few rows.

Rows and columns are weighted as torch's bilinear `interpolate` with `antialias` does, wherever a
window begins. So a tile sees the pixels that it would see if the whole image were resampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ddpm_unet.inference.tiles import Predict, Rows, Tiling, predict_bands


def predict_scaled(
    predict: Predict,
    image: Rows,
    scale: float | Sequence[float],
    tiling: Tiling,
    batch_size: int = 4,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """As `predict_bands`, with a network that wants the image resampled by a factor.

    A `scale`, or one for each axis, of 0.5 halves the image, float32; the tiles are in pixels of
    the network, and what is predicted is as large as the image again.
    """
    lengths = tuple(image.shape[:-1])
    factors = [scale] * len(lengths) if isinstance(scale, int | float) else scale
    scaled = tuple(max(1, round(n * f)) for n, f in zip(lengths, factors, strict=True))
    if scaled == lengths:
        return predict_bands(predict, image, tiling, batch_size, device)
    bands = predict_bands(predict, Resampled(image, scaled), tiling, batch_size, device)
    return resample_bands(bands, scaled, lengths)


class Resampled:
    """Rows of another source at another size.

    Args:
        source: `[..., C]`, float32.
        lengths: The new size, without channels.
    """

    def __init__(self, source: Rows, lengths: Sequence[int]) -> None:
        self.source = source
        self.shape = (*lengths, source.shape[-1])
        self._taps = [linear_taps(*n) for n in zip(source.shape[:-1], lengths, strict=True)]

    def __getitem__(self, rows: slice, /) -> Tensor:
        index, weight = (part[rows] for part in self._taps[0])
        low, high = int(index.min()), int(index.max()) + 1
        pixels = weighted(torch.as_tensor(self.source[low:high]), 0, index - low, weight)
        for axis, taps in enumerate(self._taps[1:], start=1):
            pixels = weighted(pixels, axis, *taps)
        return pixels


def resample_bands(
    bands: Iterator[Tensor], lengths: Sequence[int], new: Sequence[int]
) -> Iterator[Tensor]:
    """Bands `[K, rows, ...]` that add up to `lengths`, as bands that add up to `new`."""
    (index, weight), *others = (linear_taps(*n) for n in zip(lengths, new, strict=True))
    last = index.amax(dim=1)
    waiting: Tensor | None = None  # rows from `top` on
    top = done = 0
    for band in bands:
        for axis, taps in enumerate(others, start=2):
            band = weighted(band, axis, *taps)
        waiting = band if waiting is None else torch.cat([waiting, band], dim=1)
        end = int(torch.searchsorted(last, top + waiting.shape[1]))
        if end == done:
            continue
        yield weighted(waiting, 1, index[done:end] - top, weight[done:end])
        done = end
        if done < new[0]:
            first = int(index[done].min())
            waiting, top = waiting[:, first - top :].clone(), first


def linear_taps(length: int, new: int) -> tuple[Tensor, Tensor]:
    """Which of `length` pixels make each of `new` ones, and how much of each.

    A triangle over the new pixel's centre, as wide as a new pixel when they are larger than the
    old ones, else as an old one.

    Returns:
        Indices `int64 [new, taps]`, non-decreasing in every column, and weights
        `float32 [new, taps]` that add up to 1.
    """
    step = length / new
    reach = max(step, 1.0)
    centre = (torch.arange(new, dtype=torch.float64) + 0.5) * step
    first = (centre - reach + 0.5).floor().long().clamp(min=0)
    index = first[:, None] + torch.arange(math.ceil(2 * reach) + 1)
    weight = (1 - (index + 0.5 - centre[:, None]).abs() / reach).clamp(min=0)
    weight[index >= length] = 0
    weight /= weight.sum(dim=1, keepdim=True)
    return index.clamp(max=length - 1), weight.float()


def weighted(array: Tensor, axis: int, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums along an axis: `sum_k weight[:, k] array[index[:, k]]`."""
    shape = [-1 if dim == axis else 1 for dim in range(array.dim())]
    total = torch.zeros(())
    for i, w in zip(index.T.to(array.device), weight.T.to(array.device), strict=True):
        total = array.index_select(axis, i).mul_(w.reshape(shape)).add_(total)
    return total

"""Overlap-tile prediction (Ronneberger 2015, figure 2): images of any size, memory of one tile.

The image is covered by a grid of tiles, mirrored beyond its border. Of each tile's prediction the
outer `margin` pixels are dropped, because there the network saw less than its whole
neighbourhood, and the rest is blended with its neighbours by Gaussian weights. The weights of all
tiles over a pixel add up to one, axis by axis, so that nothing needs dividing afterwards and a
row of pixels is done as soon as the grid has passed it.

At another scale than the image's it is resampled window by window, with the weights of torch's
bilinear `interpolate` with `antialias`: a tile sees what it would of the whole image resampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, product
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ddpm_unet.data.pixels import linear_taps
from ddpm_unet.data.windows import mirrored


@dataclass(frozen=True)
class Tiling:
    """How tiles cover an image.

    Args:
        tile: Pixels the network sees at most, along every axis or per axis: tiles shrink by
            multiples of `step` until they just cover the image. The default takes an image of
            512 x 512 in one piece.
        margin: Context: predictions so near to a tile's border are dropped. For a network
            without padding, the pixels it loses on every side (`ClassicUNet.margin`).
        overlap: Least number of kept pixels that neighbouring tiles share and blend. 0 for a
            network without padding: its seams are exact.
        step: Tiles start at multiples of it. With that of the network's pooling, a tile gives
            the same pixels as a pass over the whole image would, as far as `margin` reaches.
        pixels: If not 0, tiles may grow by multiples of `step`, each axis by itself, where less is
            then computed twice; and no call of the network gets more pixels than these.
    """

    tile: int | tuple[int, ...] = 544
    margin: int = 16
    overlap: int = 32
    step: int = 32
    pixels: int = 0


WHOLE = Tiling()


@dataclass(frozen=True)
class Axis:
    """The tiles along one axis.

    Args:
        starts: First kept pixel of every tile.
        tile: Pixels the network sees.
        kept: Pixels kept of them.
        length: Pixels of the image.
    """

    starts: tuple[int, ...]
    tile: int
    kept: int
    length: int

    @cached_property
    def weights(self) -> Tensor:
        """`float32 [len(starts), kept]`, of which those over one pixel add up to 1.

        A Gaussian on every tile, of standard deviation kept / 8, as shares of their sum.
        """
        offset = torch.arange(self.kept, dtype=torch.float64) - (self.kept - 1) / 2
        bell = torch.exp(-0.5 * (offset / (self.kept / 8)) ** 2)
        total = torch.zeros(self.starts[-1] + self.kept, dtype=torch.float64)
        for start in self.starts:
            total[start : start + self.kept] += bell
        return torch.stack([bell / total[n : n + self.kept] for n in self.starts]).float()


def plan(lengths: Sequence[int], tiling: Tiling) -> list[Axis]:
    """Place tiles over an image of these lengths so that the fewest pixels are computed.

    Raises:
        ValueError: Tiles of another number of axes, or too small for their margin and overlap.
    """
    sizes = (tiling.tile,) * len(lengths) if isinstance(tiling.tile, int) else tiling.tile
    if len(sizes) != len(lengths):
        raise ValueError(f"a tile of {len(sizes)} axes for an image of {len(lengths)}")
    least = [placed(n, size, tiling) for n, size in zip(lengths, sizes, strict=True)]
    bound = max(tiling.pixels, prod(axis.tile for axis in least))
    choices: list[list[Axis]] = []
    for n, size, axis in zip(lengths, sizes, least, strict=True):
        others = prod(other.tile for other in least) // axis.tile
        most = max(size, min(tiling.pixels // others, n + size))
        grown = (placed(n, tile, tiling) for tile in range(size, most + 1, tiling.step))
        smallest: dict[int, Axis] = {}  # by number of tiles
        for one in grown:
            smallest.setdefault(len(one.starts), one)
        choices.append([*smallest.values()])

    def computed(chosen: Iterable[Axis]) -> int:
        return prod(len(axis.starts) * axis.tile for axis in chosen)

    fitting = [c for c in product(*choices) if prod(axis.tile for axis in c) <= bound]
    return list(min(fitting, key=computed))


def placed(length: int, tile: int, tiling: Tiling) -> Axis:
    """Tiles of at most `tile` pixels over `length`: as few as the overlap allows, evenly spread.

    Raises:
        ValueError: The tile is too small for its margin and overlap.
    """
    margin, overlap, step = tiling.margin, tiling.overlap, tiling.step
    kept = tile - 2 * margin
    count = 1
    if length > kept:
        stride = (kept - overlap) // step * step
        if stride <= 0:
            raise ValueError(
                f"tiles of {tile} pixels are too small: a margin of {margin} on both sides and an "
                f"overlap of {overlap} leave less than one step of {step} to advance"
            )
        count += -(-(length - kept) // stride)

    def covers(kept: int) -> bool:
        stride = (kept - overlap) // step * step
        return kept + (count - 1) * stride >= length

    while kept > step and covers(kept - step):
        kept -= step
    steps = max(0, -(-(length - kept) // step))  # between the first and the last tile
    starts = tuple(step * (i * steps // max(count - 1, 1)) for i in range(count))
    return Axis(starts, kept + 2 * margin, kept, length)


Predict = Callable[[Tensor], Tensor]
"""Tiles `[B, C, *tile]` to predictions `[B, K, *tile]`, or smaller by `margin` on every side."""


class Rows(Protocol):
    """An image `[H, W, C]` (or `[D, H, W, C]`) of which some rows (or planes) can be read.

    A numpy array and a tensor are; so is a file, see `readers`.
    """

    @property
    def shape(self) -> Sequence[int]:
        """Height, width, channels."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Rows `start` to `stop` as an array or tensor."""


def predict_bands(
    predict: Predict,
    image: Rows,
    tiling: Tiling = WHOLE,
    batch_size: int = 4,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """Predict an image from top to bottom, yielding rows as they are done.

    Memory holds the rows of one or two tiles, whatever the height of the image. Arguments are as
    in `predict_tiles`, but an image is `[H, W, C]`, a volume `[D, H, W, C]`.

    Yields:
        `float32 [K, rows, W]` (or `[K, planes, H, W]`) on `device`; their rows add up to H.

    Raises:
        ValueError: A tile size that does not fit the tiling or the number of axes, or a
            prediction of another size than promised.
    """
    axes = plan(image.shape[:-1], tiling)
    if tiling.pixels:
        batch_size = max(1, min(batch_size, tiling.pixels // prod(axis.tile for axis in axes)))
    return _bands(predict, image, axes, tiling.margin, batch_size, device)


def predict_tiles(
    predict: Predict,
    image: Tensor | np.ndarray,
    tiling: Tiling = WHOLE,
    batch_size: int = 4,
    device: torch.device | str | None = None,
) -> Tensor:
    """Predict a whole image in memory, tile by tile.

    Args:
        predict: The network; gets tiles of the image's own type.
        image: `[C, H, W]`, or `[C, D, H, W]` for a volume; any size, also smaller than a tile.
        tiling: The tiles.
        batch_size: Tiles per call of `predict`.
        device: Where to predict; None is where the image is.

    Returns:
        `float32 [K, H, W]` (or `[K, D, H, W]`), where the image is.

    Raises:
        ValueError: As `predict_bands`.
    """
    image = torch.as_tensor(image)
    bands = predict_bands(predict, image.movedim(0, -1), tiling, batch_size, device)
    return torch.cat([band.to(image.device) for band in bands], dim=1)


def _bands(
    predict: Predict,
    image: Rows,
    axes: list[Axis],
    margin: int,
    batch_size: int,
    device: torch.device | str | None,
) -> Iterator[Tensor]:
    rows, *others = axes
    tiles = product(*(range(len(axis.starts)) for axis in axes))  # row of tiles by row of tiles
    ahead = next(tiles, None)
    done = 0
    weights: list[Tensor] = []  # on the device
    alive: Tensor | None = None  # rows from `done` on, to the end of the newest tile
    band, band_row = torch.empty(0), -1
    while ahead is not None:
        batch = [ahead, *islice(tiles, batch_size - 1)]
        ahead = next(tiles, None)

        windows = []
        for index in batch:
            if index[0] != band_row:
                band, band_row = _read(image, rows, index[0], margin), index[0]
            window = band
            for dim, (axis, i) in enumerate(zip(others, index[1:], strict=True), start=1):
                window = window.index_select(dim, _reflected(axis, i, margin).to(band.device))
            windows.append(window.movedim(-1, 0))
        with torch.inference_mode():
            predictions = _kept(predict(_sent(torch.stack(windows), device)), axes, margin)

        end = min(rows.starts[batch[-1][0]] + rows.kept, rows.length)
        if alive is None:
            weights = [axis.weights.to(predictions.device) for axis in axes]
            lengths = [axis.length for axis in others]
            alive = predictions.new_zeros(predictions.shape[1], 0, *lengths, dtype=torch.float32)
        missing = max(0, end - done - alive.shape[1])
        alive = torch.cat(
            [alive, alive.new_zeros(alive.shape[0], missing, *alive.shape[2:])], dim=1
        )
        for index, prediction in zip(batch, predictions, strict=True):
            _add(alive, prediction, axes, weights, index, done)

        finished = rows.length if ahead is None else rows.starts[ahead[0]]
        if finished > done:
            yield alive[:, : finished - done]
            alive, done = alive[:, finished - done :].clone(), finished


def _sent(tiles: Tensor, device: torch.device | str | None) -> Tensor:
    """The same on a device; a GPU, which takes them from pinned memory, is not waited for."""
    if device is None or torch.device(device).type != "cuda" or tiles.is_cuda:
        return tiles.to(device)
    return tiles.pin_memory().to(device, non_blocking=True)


def _reflected(axis: Axis, number: int, margin: int) -> Tensor:
    """Pixels under a tile, mirrored at the border (which is not repeated) as often as needed."""
    return torch.from_numpy(mirrored(axis.starts[number] - margin, axis.tile, axis.length))


def _read(image: Rows, rows: Axis, number: int, margin: int) -> Tensor:
    """All rows under a row of tiles, `[tile, W, C]`."""
    index = _reflected(rows, number, margin)
    low, high = int(index.min()), int(index.max()) + 1
    part = torch.as_tensor(image[low:high])
    return part.index_select(0, (index - low).to(part.device))


def _kept(predictions: Tensor, axes: list[Axis], margin: int) -> Tensor:
    """Drop the margin, unless the network did."""
    size = tuple(predictions.shape[2:])
    if size == tuple(axis.kept for axis in axes):
        return predictions
    if size != tuple(axis.tile for axis in axes):
        raise ValueError(
            f"for tiles of {tuple(axis.tile for axis in axes)} pixels the network gave {size}, "
            f"neither the same nor smaller by the margin of {margin} on every side"
        )
    for dim, axis in enumerate(axes, start=2):
        predictions = predictions.narrow(dim, margin, axis.kept)
    return predictions


def _add(
    alive: Tensor,
    prediction: Tensor,
    axes: list[Axis],
    weights: list[Tensor],
    index: tuple[int, ...],
    done: int,
) -> None:
    """Add a tile's weighted prediction `[K, *kept]` to the rows from `done` on."""
    prediction, place = prediction.float(), alive
    for dim, (axis, i) in enumerate(zip(axes, index, strict=True), start=1):
        start = axis.starts[i]
        inside = min(axis.kept, axis.length - start)
        shape = [-1 if d == dim else 1 for d in range(alive.dim())]
        shares = weights[dim - 1][i, :inside].reshape(shape)
        prediction = prediction.narrow(dim, 0, inside) * shares
        place = place.narrow(dim, start - done if dim == 1 else start, inside)
    place += prediction


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


def weighted(array: Tensor, axis: int, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums along an axis: `sum_k weight[:, k] array[index[:, k]]`."""
    shape = [-1 if dim == axis else 1 for dim in range(array.dim())]
    total = torch.zeros(())
    for i, w in zip(index.T.to(array.device), weight.T.to(array.device), strict=True):
        total = array.index_select(axis, i).mul_(w.reshape(shape)).add_(total)
    return total

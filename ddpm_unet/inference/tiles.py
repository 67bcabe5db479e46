"""Overlap-tile prediction (Ronneberger 2015, figure 2): images of any size, memory of one tile.

The image is covered by a grid of tiles, mirrored beyond its border. Of each tile's prediction the
outer `margin` pixels are dropped, because there the network saw less than its whole
neighbourhood, and the rest is blended with its neighbours by Gaussian weights. The weights of all
tiles over a pixel add up to one, axis by axis, so that nothing needs dividing afterwards and a
row of pixels is done as soon as the grid has passed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, product
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ddpm_unet.inference.grid import WHOLE, Axis, Tiling, plan

Predict = Callable[[Tensor], Tensor]
"""Tiles `[B, C, *tile]` to predictions `[B, K, *tile]`, or smaller by `margin` on every side."""


class Rows(Protocol):
    """An image `[H, W, C]` (or `[D, H, W, C]`) of which some rows (or planes) can be read.

    A numpy array and a tensor are; so is a file, see `sources.py`.
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

    Memory holds the rows of one or two tiles, whatever the height of the image.

    Args:
        predict: The network; gets tiles of the image's own type.
        image: `[H, W, C]` for a two-dimensional network, `[D, H, W, C]` for a volume.
        tiling: The tiles.
        batch_size: Tiles per call of `predict`.
        device: Where to predict; None is where the image is.

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
    whole, top = image.new_empty(0), 0
    for band in predict_bands(predict, image.movedim(0, -1), tiling, batch_size, device):
        if top == 0:
            whole = band.new_empty(band.shape[0], *image.shape[1:], device=image.device)
        whole[:, top : top + band.shape[1]] = band
        top += band.shape[1]
    return whole


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
            predictions = _kept(predict(torch.stack(windows).to(device)), axes, margin)

        end = min(rows.starts[batch[-1][0]] + rows.kept, rows.length)
        if alive is None:
            lengths = [axis.length for axis in others]
            alive = predictions.new_zeros(predictions.shape[1], 0, *lengths, dtype=torch.float32)
        missing = max(0, end - done - alive.shape[1])
        alive = torch.cat(
            [alive, alive.new_zeros(alive.shape[0], missing, *alive.shape[2:])], dim=1
        )
        for index, prediction in zip(batch, predictions, strict=True):
            _add(alive, prediction, axes, index, done)

        finished = rows.length if ahead is None else rows.starts[ahead[0]]
        if finished > done:
            yield alive[:, : finished - done]
            alive, done = alive[:, finished - done :].clone(), finished


def _reflected(axis: Axis, number: int, margin: int) -> Tensor:
    """Pixels under a tile, mirrored at the border (which is not repeated) as often as needed."""
    period = max(2 * (axis.length - 1), 1)
    start = axis.starts[number] - margin
    index = torch.arange(start, start + axis.tile) % period
    return torch.minimum(index, period - index)


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
    alive: Tensor, prediction: Tensor, axes: list[Axis], index: tuple[int, ...], done: int
) -> None:
    """Add a tile's weighted prediction `[K, *kept]` to the rows from `done` on."""
    prediction, place = prediction.float(), alive
    for dim, (axis, i) in enumerate(zip(axes, index, strict=True), start=1):
        start = axis.starts[i]
        inside = min(axis.kept, axis.length - start)
        weights = axis.weights[i, :inside].to(alive.device)
        shape = [-1 if d == dim else 1 for d in range(alive.dim())]
        prediction = prediction.narrow(dim, 0, inside) * weights.reshape(shape)
        place = place.narrow(dim, start - done if dim == 1 else start, inside)
    place += prediction

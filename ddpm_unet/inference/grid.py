"""Where the tiles of an image lie, how large they are, and what each counts for at a pixel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """How tiles cover an image.

    Args:
        tile: Pixels the network sees, along every axis or per axis. The default takes an image
            of 512 x 512 in one piece.
        margin: Context: predictions so near to a tile's border are dropped. For a network
            without padding, the pixels it loses on every side (`ClassicUNet.margin`).
        overlap: Least number of kept pixels that neighbouring tiles share and blend. 0 for a
            network without padding: its seams are exact.
        step: Tiles start at multiples of it. With that of the network's pooling, a tile gives
            the same pixels as a pass over the whole image would, as far as `margin` reaches.
        even: Use no more tiles than needed and shrink them by multiples of `step` until they
            just cover the image; otherwise all tiles have size `tile`.
        pixels: If not 0, tiles may grow by multiples of `step`, each axis by itself, where less is
            then computed twice; and no call of the network gets more pixels than these.
    """

    tile: int | tuple[int, ...] = 544
    margin: int = 16
    overlap: int = 32
    step: int = 32
    even: bool = True
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
        weights: `float32 [len(starts), kept]`, of which those over one pixel add up to 1.
    """

    starts: tuple[int, ...]
    tile: int
    kept: int
    length: int
    weights: Tensor


class Placed(NamedTuple):
    """Tiles along an axis, as in `Axis`."""

    starts: tuple[int, ...]
    tile: int
    kept: int


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
    choices: list[list[Placed]] = []
    for n, size, axis in zip(lengths, sizes, least, strict=True):
        others = prod(other.tile for other in least) // axis.tile
        most = max(size, min(tiling.pixels // others, n + size))
        grown = (placed(n, tile, tiling) for tile in range(size, most + 1, tiling.step))
        smallest: dict[int, Placed] = {}  # by number of tiles
        for one in grown:
            smallest.setdefault(len(one.starts), one)
        choices.append([*smallest.values()])

    def computed(chosen: Iterable[Placed]) -> int:
        return prod(len(axis.starts) * axis.tile for axis in chosen)

    fitting = [c for c in product(*choices) if prod(axis.tile for axis in c) <= bound]
    return [
        Axis(axis.starts, axis.tile, axis.kept, n, _weights(axis.starts, axis.kept))
        for axis, n in zip(min(fitting, key=computed), lengths, strict=True)
    ]


def placed(length: int, tile: int, tiling: Tiling) -> Placed:
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

    while tiling.even and kept > step and covers(kept - step):
        kept -= step
    steps = max(0, -(-(length - kept) // step))  # between the first and the last tile
    starts = tuple(step * (i * steps // max(count - 1, 1)) for i in range(count))
    return Placed(starts, kept + 2 * margin, kept)


def _weights(starts: tuple[int, ...], kept: int) -> Tensor:
    """A Gaussian on every tile, of standard deviation kept / 8, as shares of their sum."""
    offset = torch.arange(kept, dtype=torch.float64) - (kept - 1) / 2
    bell = torch.exp(-0.5 * (offset / (kept / 8)) ** 2)
    total = torch.zeros(starts[-1] + kept, dtype=torch.float64)
    for start in starts:
        total[start : start + kept] += bell
    shares = [bell / total[start : start + kept] for start in starts]
    return torch.stack(shares).float()

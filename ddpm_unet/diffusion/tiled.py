"""Images larger than those of the training: the network sees windows, which are averaged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddpm_unet.diffusion.process import Network, repeat_time, time_of
from ddpm_unet.errors import UserError


def tiled(
    network: Network, tile: int, overlap: int, *, periodic: bool = False, batch: int = 16
) -> Network:
    """A network for images of any size that sees square windows of one size.

    At every step the image is cut into windows which share `overlap` pixels, and predictions are
    averaged where they meet, with weights that fall towards a window's border (MultiDiffusion,
    Bar-Tal 2023, arXiv:2302.08113, eq. 5). The grid of windows moves from step to step by the
    golden ratio, so that no pixel is always at a border.

    Args:
        network: `(x [B, C, tile, tile], t [B], **cond) -> prediction`; cond that are
            images `[B, C, H, W]` are cut alike.
        tile, overlap: Side of the windows, and pixels that neighbours share, 0 to tile - 1.
        periodic: The image continues on the other side, so that it tiles the plane; otherwise it
            is mirrored at its border.
        batch: Windows at a time.

    Raises:
        UserError: An overlap that leaves no progress; an image smaller than a window.
    """
    if not 0 <= overlap < tile:
        raise UserError(f"overlap {overlap}: give 0 to {tile - 1}, windows have {tile} pixels")
    stride = tile - overlap
    ramp = (torch.arange(tile) + 0.5).minimum(tile - 0.5 - torch.arange(tile))
    line = (ramp / (overlap / 2 + 0.5)).clamp(max=1)
    weight = line[:, None] * line[None, :]

    def tiled_network(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        height, width = x.shape[2:]
        if min(height, width) < tile:
            raise UserError(f"{height} x {width}: smaller than a window of {tile} pixels")
        shift = int(time_of(t) * 0.618034 * stride) % stride
        rows, columns = (_places(n, tile, stride, shift, periodic) for n in (height, width))
        padded = _surround(x, tile, periodic)
        images = {k: _surround(v, tile, periodic) for k, v in cond.items() if v.ndim == 4}
        total: Tensor | None = None
        weights = weight.to(x.device)
        counts = torch.zeros(padded.shape[2:], device=x.device)
        places = [(r, c) for r in rows for c in columns]
        at_once = max(1, batch // len(x))
        for first in range(0, len(places), at_once):
            some = places[first : first + at_once]
            given = {
                name: _cut(images[name], some, tile)
                if name in images
                else value.repeat(len(some), *[1] * (value.ndim - 1))
                for name, value in cond.items()
            }
            predictions = network(_cut(padded, some, tile), repeat_time(t, len(some)), **given)
            if total is None:  # of as many channels as a prediction has
                total = predictions.new_zeros(
                    len(x), predictions.shape[1], *padded.shape[2:], dtype=torch.float32
                )
            for (r, c), prediction in zip(some, predictions.float().split(len(x)), strict=True):
                total[:, :, r : r + tile, c : c + tile] += weights * prediction
                counts[r : r + tile, c : c + tile] += weights
        assert total is not None, "there is a window"
        return _folded(total, tile, periodic) / _folded(counts, tile, periodic)

    return tiled_network


def _places(size: int, tile: int, stride: int, shift: int, periodic: bool) -> list[int]:
    """Where windows begin, in an image with `tile` pixels around it."""
    if periodic:
        count = -(-size // stride)
        return [tile + (shift + i * size // count) % size for i in range(count)]
    return list(range(stride - shift, size + tile, stride))


def _cut(padded: Tensor, places: list[tuple[int, int]], tile: int) -> Tensor:
    """The windows of all images at each place in turn."""
    return torch.cat([padded[:, :, r : r + tile, c : c + tile] for r, c in places])


def _surround(x: Tensor, tile: int, periodic: bool) -> Tensor:
    """`tile` pixels more on every side, mirrored or continued."""
    mode = "circular" if periodic else "reflect"
    room = [tile if periodic else min(tile, n - 1) for n in x.shape[2:]]
    x = torch.nn.functional.pad(x, (room[1], room[1], room[0], room[0]), mode=mode)
    short = [tile - n for n in room]
    return torch.nn.functional.pad(x, (short[1], short[1], short[0], short[0]), mode="replicate")


def _folded(x: Tensor, tile: int, periodic: bool) -> Tensor:
    """The image without what surrounds it; what continues it counts where it comes from."""
    if periodic:
        for dim in (-2, -1):
            size = x.shape[dim] - 2 * tile
            inside = x.narrow(dim, tile, size).clone()
            inside.narrow(dim, 0, tile).add_(x.narrow(dim, tile + size, tile))
            inside.narrow(dim, size - tile, tile).add_(x.narrow(dim, 0, tile))
            x = inside
        return x
    return x[..., tile:-tile, tile:-tile]

"""Rows of segmentation: images larger than a network's input, and plain forward passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from benchmarks.networks import gflop, milesial, randomised
from benchmarks.rows import MONAI, OURS, SMP, Measured, installed
from benchmarks.timing import Effort, Timer
from ddpm_unet.config import PredictConfig
from ddpm_unet.inference.predictor import tiling as default_tiling
from ddpm_unet.inference.tiles import Tiling, plan, predict_tiles

WIDTH = 16
"""Channels at the finest level: a quarter of the usual 64, a sixteenth of the work."""
EDGE = 64
ROI = 256
ORDINARY = f"{MONAI}, torch's own functions"


def overlap_tiles(effort: Effort, size: int) -> Measured:
    """A large image by our defaults, and by MONAI's in tiles of 256 that share a quarter."""
    size = 768 if effort.quick else size
    network = milesial(WIDTH)
    image = torch.randn(1, size, size, generator=torch.Generator().manual_seed(0))
    tiling = default_tiling(network, PredictConfig())
    sides: dict[str, Callable[[], Tensor]] = {OURS: lambda: predict_tiles(network, image, tiling)}
    notes = [
        f"{size} x {size} pixels, the same network of {WIDTH} channels at the finest level for "
        f"all; ours: {recomputed(size, tiling):.2f} times the pixels are computed, in tiles of "
        f"{plan((size, size), tiling)[0].tile} with a margin of {tiling.margin}"
    ]
    if installed(MONAI):
        sides[MONAI] = lambda: sliding_window(network, image, ROI)
        plain = milesial(WIDTH, fast=False)
        sides[ORDINARY] = lambda: sliding_window(plain, image, ROI)
        notes += [
            f"{MONAI}: sliding_window_inference, overlap 0.25, Gaussian weights, 4 tiles of {ROI} "
            f"at a time: {window_pixels(image, ROI) / size**2:.2f} times the pixels; that process "
            "keeps its freed memory, as ours arranges"
        ]
    with torch.inference_mode():
        whole = network(image[None])[0]
        apart = {side: inner_difference(run(), whole) for side, run in sides.items()}
        timer = Timer(replace(effort, least=min(effort.least, 3))).alternate(sides)
    notes += [
        f"difference: here the mean one, {EDGE} pixels from the image's edge, to one pass over "
        "the whole image, which no tiling equals, as a tile ends where the image goes on; ours "
        f"{apart.pop(OURS):.1e}"
    ]
    work = gflop(network, image[None])
    return Measured.timed(timer, gflop=dict.fromkeys(sides, work), differences=apart, notes=notes)


def inner_difference(tiled: Tensor, whole: Tensor) -> float:
    """Mean difference of two predictions `[K, H, W]` relative to the mean value, off the edge."""
    tiled, whole = (x[:, EDGE:-EDGE, EDGE:-EDGE] for x in (tiled, whole))
    return float((tiled - whole).abs().mean() / whole.abs().mean())


def sliding_window(network: Any, image: Tensor, roi: int) -> Tensor:
    """MONAI's overlap-tile."""
    from monai.inferers import sliding_window_inference

    output: Any = sliding_window_inference(
        image[None], (roi, roi), 4, network, overlap=0.25, mode="gaussian"
    )
    return output[0]


def recomputed(size: int, tiling: Tiling) -> float:
    """Pixels that the network sees, as a multiple of the image's."""
    return prod(len(axis.starts) * axis.tile / size for axis in plan((size, size), tiling))


def window_pixels(image: Tensor, roi: int) -> int:
    """Pixels that MONAI gives to the network."""
    seen = []

    def watch(tiles: Tensor) -> Tensor:
        seen.append(tiles.numel())
        return tiles

    sliding_window(watch, image, roi)
    return sum(seen)


def segmentation_forward(effort: Effort) -> Measured:
    """One grey image through networks that are in use for segmentation, for orientation."""
    size = 256 if effort.quick else 512
    networks: dict[str, Any] = {OURS: milesial(64)}
    if installed(SMP):
        from segmentation_models_pytorch import Unet

        networks[SMP] = Unet("resnet34", encoder_weights=None, in_channels=1, classes=2)
    if installed(MONAI):
        from monai.networks.nets import BasicUNet

        networks[MONAI] = BasicUNet(spatial_dims=2, in_channels=1, out_channels=2)
    x = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    sides = {name: partial(randomised(network).eval(), x) for name, network in networks.items()}
    with torch.inference_mode():
        timer = Timer(effort).alternate(sides)
    return Measured.timed(
        timer,
        gflop={name: gflop(network, x) for name, network in networks.items()},
        notes=[
            f"{size} x {size}, batch 1; three different networks (milesial's, Unet with resnet34, "
            "BasicUNet), so the ratio is of time per FLOP; no outputs to compare"
        ],
    )

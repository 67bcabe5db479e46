"""How near one image is to another: PSNR, SSIM, mean absolute error, and two of pan-sharpening.

SSIM, SAM and ERGAS are those of torchmetrics, which is an extra. Images are in [-1, 1].
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ddpm_unet.errors import from_extra

SMALLEST = 11
"""Pixels of SSIM's window along every axis."""


def torchmetrics_of_images() -> Any:
    """The functions of images of torchmetrics, an extra."""
    return from_extra("torchmetrics.functional.image", "metrics", "the likeness of images")


def ssim(images: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang 2004) `float32 [B]`, 1 for equal images; differentiable.

    The window is Gaussian, sigma 1.5; images `[B, C, *space]`, 2-D or 3-D, have at least its 11
    pixels (`SMALLEST`) each way.
    """
    found = torchmetrics_of_images().structural_similarity_index_measure(
        _unit(images), _unit(truth), data_range=1.0, reduction="none"
    )
    return torch.as_tensor(found).reshape(len(images))


def image_scores(image: Tensor, truth: Tensor) -> dict[str, float]:
    """Scores of one image `[C, *space]`, relative to the range of values.

    Returns:
        "psnr", 10 log10(range^2 / mean squared error), in dB; "ssim"; and "mae", the mean
        absolute error as a share of the range.
    """
    error = (image.float() - truth.float()) / 2
    squared = float(error.square().mean())
    return {
        "psnr": -10 * math.log10(squared) if squared else math.inf,
        "ssim": float(ssim(image[None], truth[None])),
        "mae": float(error.abs().mean()),
    }


def spectral_scores(image: Tensor, truth: Tensor, ratio: int) -> dict[str, float]:
    """Scores of one coloured image `[C, H, W]`, by which pan-sharpening is judged.

    Returns:
        "sam", the mean angle between the colours in degrees (Yuhas 1992; black pixels, which have
        no angle, do not count), and "ergas", the relative global error (Wald 2000, 0 is best) of
        an image that is `ratio` times finer than its colours were.
    """
    metrics = torchmetrics_of_images()
    found, true = _unit(image[None]), _unit(truth[None])
    angles = metrics.spectral_angle_mapper(found, true, reduction="none")
    error = metrics.error_relative_global_dimensionless_synthesis(found, true, ratio)
    return {"sam": math.degrees(float(angles.nanmean())), "ergas": float(error)}


def _unit(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]."""
    return (images.float() + 1) / 2

"""How near one picture is to another: PSNR, SSIM, mean absolute error, and two of pan-sharpening.

SSIM, SAM and ERGAS are those of torchmetrics, which is an extra.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ddpm_unet.errors import UserError

SMALLEST = 11
"""Pixels of SSIM's window along every axis."""


def torchmetrics_of_images() -> Any:
    """The functions of images of torchmetrics.

    Raises:
        UserError: It is not installed.
    """
    try:
        from torchmetrics.functional import image
    except ImportError:
        raise UserError(
            "torchmetrics is not installed, which measures the likeness of pictures; run "
            "`pip install torchmetrics` (extra metrics)"
        ) from None
    return image


def similarity(pictures: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang 2004), a Gaussian window of 11 pixels with sigma 1.5.

    Args:
        pictures: `[B, C, *space]` in [-1, 1], 2-D or 3-D, at least `SMALLEST` pixels each way.
        truth: Likewise.

    Returns:
        `float32 [B]`, 1 for equal pictures; differentiable.
    """
    found = torchmetrics_of_images().structural_similarity_index_measure(
        _share(pictures), _share(truth), data_range=1.0, reduction="none"
    )
    return torch.as_tensor(found).reshape(len(pictures))


def picture_scores(picture: Tensor, truth: Tensor) -> dict[str, float]:
    """Scores of one picture `[C, *space]` in [-1, 1]; all are relative to the range.

    Returns:
        "psnr", 10 log10(range^2 / mean squared error), in dB; "ssim"; and "mae", the mean
        absolute error as a share of the range.
    """
    error = (picture.float() - truth.float()) / 2
    squared = float(error.square().mean())
    return {
        "psnr": -10 * math.log10(squared) if squared else math.inf,
        "ssim": float(similarity(picture[None], truth[None])),
        "mae": float(error.abs().mean()),
    }


def spectral_scores(picture: Tensor, truth: Tensor, ratio: int) -> dict[str, float]:
    """Scores of one coloured picture `[C, H, W]` in [-1, 1], as pan-sharpening is judged by.

    Args:
        picture: What was made.
        truth: What it should be.
        ratio: How many times finer it is than the colours that it was made of.

    Returns:
        "sam", the mean angle between the colours in degrees (Yuhas 1992), and "ergas", the
        relative global error (Wald 2000, 0 is best). Black pixels, which have no angle, do not
        count in the first.
    """
    image = torchmetrics_of_images()
    found, true = _share(picture[None]), _share(truth[None])
    angles = image.spectral_angle_mapper(found, true, reduction="none")
    error = image.error_relative_global_dimensionless_synthesis(found, true, ratio)
    return {"sam": math.degrees(float(angles.nanmean())), "ergas": float(error)}


def _share(pictures: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]."""
    return (pictures.float() + 1) / 2

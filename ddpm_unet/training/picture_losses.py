"""Losses between pictures: one number per image, so that the mean over any batch adds up."""

from __future__ import annotations

from typing import get_args

import torch.nn.functional as F
from torch import Tensor

from ddpm_unet.config import PictureLoss
from ddpm_unet.evaluation.image_quality import ssim


def picture_loss(
    name: PictureLoss, pictures: Tensor, truth: Tensor, huber_delta: float = 0.1
) -> Tensor:
    """The loss of a configuration, `float32 [B]`.

    Args:
        name: "l1", the mean absolute error; "l2", the mean squared error; "huber", e^2 / 2 of
            errors e up to delta and delta (|e| - delta / 2) beyond (Huber 1964); or "ssim", one
            minus the structural similarity.
        pictures: `[B, K, *space]`, any float type; computed in float32.
        truth: `[B, K, *space]` in [-1, 1].
        huber_delta: Where the Huber loss turns from a square into a line.

    Raises:
        ValueError: For an unknown name, or shapes that do not fit.
    """
    if pictures.shape != truth.shape:
        raise ValueError(f"pictures {list(pictures.shape)} do not fit {list(truth.shape)}")
    pictures = pictures.float()
    match name:
        case "l1":
            return (pictures - truth).abs().flatten(1).mean(1)
        case "l2":
            return (pictures - truth).square().flatten(1).mean(1)
        case "huber":
            losses = F.huber_loss(pictures, truth, reduction="none", delta=huber_delta)
            return losses.flatten(1).mean(1)
        case "ssim":
            return 1 - ssim(pictures, truth)
    raise ValueError(f"loss {name!r} is not one of {', '.join(get_args(PictureLoss))}")

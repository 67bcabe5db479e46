"""Losses of pixels: one number per image, so that the mean over any batch adds up.

Every function of classes takes logits `[B, K, *sizes]` (any float type; computed in float32) and
masks `int64 [B, *sizes]` of class indices, with `IGNORE_INDEX` where a pixel is unlabelled: such
pixels have no part in the loss. One-channel logits z mean two classes and are read as (0, z),
whose softmax is the sigmoid and whose cross-entropy is the binary one. Returns `float32 [B]`.
"""

from __future__ import annotations

from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_unet.config import ImageLoss, LossName
from ddpm_unet.data.masks import IGNORE_INDEX
from ddpm_unet.evaluation.image_quality import ssim


def cross_entropy(
    logits: Tensor,
    masks: Tensor,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
) -> Tensor:
    """Weighted cross-entropy, averaged over the labelled pixels of each image.

    The average divides by the number of labelled pixels and not by the sum of the weights, as in
    Ronneberger 2015, eq. 1, so that an image of heavy pixels counts more than one of light ones.

    `class_weights` `[K]` are factors of the classes, `pixel_weights` `[B, *sizes]` of the pixels.
    """
    losses = F.cross_entropy(
        _class_logits(logits, masks),
        masks,
        class_weights,
        ignore_index=IGNORE_INDEX,
        reduction="none",
    )
    return _pixel_mean(losses if pixel_weights is None else losses * pixel_weights, masks)


def focal(
    logits: Tensor, masks: Tensor, class_weights: Tensor | None = None, gamma: float = 2.0
) -> Tensor:
    """Focal loss -(1 - p)^gamma log p of the true class's probability p (Lin 2017, eq. 5)."""
    losses = F.cross_entropy(
        _class_logits(logits, masks), masks, ignore_index=IGNORE_INDEX, reduction="none"
    )
    losses = losses * (-torch.expm1(-losses)).clamp(min=1e-8) ** gamma
    if class_weights is not None:
        losses = losses * class_weights[masks.clamp(min=0)]
    return _pixel_mean(losses, masks)


def dice(logits: Tensor, masks: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Soft Dice loss 1 - 2 sum(p g) / (sum p + sum g), averaged over the classes of each image.

    p are the softmax's probabilities and g is the one-hot mask (Milletari 2016, without squares).
    A class that an image does not have is left out of that image's average: its term would be 1
    whatever the network says. Class weights weigh the average.
    """
    logits = _class_logits(logits, masks)
    labelled = (masks != IGNORE_INDEX).unsqueeze(1)
    truth = F.one_hot(masks.clamp(min=0), logits.shape[1]).movedim(-1, 1) * labelled
    probabilities = logits.softmax(1) * labelled
    overlap = (probabilities * truth).flatten(2).sum(2)
    predicted, true = probabilities.flatten(2).sum(2), truth.flatten(2).sum(2)
    losses = 1 - 2 * overlap / (predicted + true).clamp(min=1e-6)
    counted = (true > 0).float()
    if class_weights is not None:
        counted = counted * class_weights
    return (losses * counted).sum(1) / counted.sum(1).clamp(min=1e-6)


def interior_loss(logits: Tensor, interior: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy of logits `[B, *sizes]` to `data.cells.interiors` of the same shape."""
    losses = F.binary_cross_entropy_with_logits(logits.float(), interior, reduction="none")
    return _pixel_mean(losses, masks)


def segmentation_loss(
    name: LossName,
    logits: Tensor,
    masks: Tensor,
    *,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    focal_gamma: float = 2.0,
) -> Tensor:
    """The loss of a configuration, `float32 [B]`.

    Args:
        name: "cross_entropy", "dice", "cross_entropy+dice" (their sum), "focal", or "border": the
            cross-entropy under the weight maps of Ronneberger 2015, eq. 2.
        logits, masks: See the module.
        class_weights: Factor of each class, `[K]`. Not for "border": its maps hold them.
        pixel_weights: The weight maps `[B, *sizes]`; only "border" looks at them.
        focal_gamma: Exponent of the focal loss.

    Raises:
        ValueError: For an unknown name, shapes that do not fit, or "border" without its maps.
    """
    match name:
        case "cross_entropy":
            return cross_entropy(logits, masks, class_weights)
        case "dice":
            return dice(logits, masks, class_weights)
        case "cross_entropy+dice":
            return cross_entropy(logits, masks, class_weights) + dice(logits, masks, class_weights)
        case "focal":
            return focal(logits, masks, class_weights, focal_gamma)
        case "border":
            if pixel_weights is None or class_weights is not None:
                raise ValueError("the border loss needs the batch's weight maps, and no others")
            return cross_entropy(logits, masks, pixel_weights=pixel_weights)
    raise ValueError(f"loss {name!r} is not one of {', '.join(get_args(LossName))}")


def image_loss(name: ImageLoss, images: Tensor, truth: Tensor, huber_delta: float = 0.1) -> Tensor:
    """The loss of a configuration, `float32 [B]`.

    Args:
        name: "l1", the mean absolute error; "l2", the mean squared error; "huber", e^2 / 2 of
            errors e up to delta and delta (|e| - delta / 2) beyond (Huber 1964); or "ssim", one
            minus the structural similarity.
        images: `[B, K, *space]`, any float type; computed in float32.
        truth: `[B, K, *space]` in [-1, 1].
        huber_delta: Where the Huber loss turns from a square into a line.

    Raises:
        ValueError: For an unknown name, or shapes that do not fit.
    """
    if images.shape != truth.shape:
        raise ValueError(f"images {list(images.shape)} do not fit {list(truth.shape)}")
    images = images.float()
    match name:
        case "l1":
            return (images - truth).abs().flatten(1).mean(1)
        case "l2":
            return (images - truth).square().flatten(1).mean(1)
        case "huber":
            losses = F.huber_loss(images, truth, reduction="none", delta=huber_delta)
            return losses.flatten(1).mean(1)
        case "ssim":
            return 1 - ssim(images, truth)
    raise ValueError(f"loss {name!r} is not one of {', '.join(get_args(ImageLoss))}")


def _class_logits(logits: Tensor, masks: Tensor) -> Tensor:
    """Logits as float32 with a channel per class."""
    if logits.shape[2:] != masks.shape[1:] or len(logits) != len(masks):
        raise ValueError(
            f"masks {list(masks.shape)} do not fit logits {list(logits.shape)}: "
            "expected [B, *sizes] and [B, K, *sizes]"
        )
    logits = logits.float()
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


def _pixel_mean(losses: Tensor, masks: Tensor) -> Tensor:
    """Mean over the labelled pixels of each image; 0 where there is none."""
    return losses.flatten(1).sum(1) / (masks != IGNORE_INDEX).flatten(1).sum(1).clamp(min=1)

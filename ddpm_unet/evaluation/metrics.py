"""Overlap of predicted and true classes, from counts that add up over images and processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def confusion(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None = None
) -> Tensor:
    """How many pixels of every true class got every predicted class.

    The counts of a set of images are the sum of their counts, whatever the batches, and whole
    numbers add up exactly in any order and over any number of processes.

    Args:
        prediction: Classes, integer of any shape, 0 to num_classes - 1.
        target: True classes, integer of the same shape, 0 to num_classes - 1 or `ignore_index`.
        num_classes: Number of classes K.
        ignore_index: Pixels with this true class do not count.

    Returns:
        `int64 [K, K]`, rows by true class, columns by prediction, on the prediction's device.

    Raises:
        ValueError: Different shapes, or a class out of range.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must have "
            "one shape"
        )
    predicted, true = prediction.flatten().long(), target.flatten().long()
    if ignore_index is not None:
        counted = true != ignore_index
        predicted, true = predicted[counted], true[counted]
    for name, classes in (("prediction", predicted), ("target", true)):
        if classes.numel() and not 0 <= classes.min() <= classes.max() < num_classes:
            raise ValueError(
                f"{name} has class {int(classes.min())} to {int(classes.max())}, but there are "
                f"{num_classes} classes: 0 to {num_classes - 1}"
            )
    counts = torch.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Overlap:
    """Scores of a confusion matrix. A class that neither truth nor prediction has is NaN.

    Args:
        dice: 2 |P and T| / (|P| + |T|) per class, `float64 [K]`.
        iou: |P and T| / |P or T| per class, `float64 [K]`.
        mean_dice: Mean over the classes that occur.
        mean_iou: Mean over the classes that occur.
        pixel_error: Share of the pixels with a wrong class.
    """

    dice: Tensor
    iou: Tensor
    mean_dice: float
    mean_iou: float
    pixel_error: float


def overlap(counts: Tensor) -> Overlap:
    """Dice, intersection over union and pixel error of `confusion` counts `[K, K]`."""
    counts = counts.double().cpu()
    both, true, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    dice = 2 * both / (true + predicted)
    iou = both / (true + predicted - both)
    return Overlap(
        dice=dice,
        iou=iou,
        mean_dice=float(dice.nanmean()),
        mean_iou=float(iou.nanmean()),
        pixel_error=float(1 - both.sum() / counts.sum()),
    )

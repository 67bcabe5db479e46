"""Overlap of predicted and true classes, and how far their outlines are apart.

Overlap comes from counts that add up over images and processes; distances of outlines are of one
image, on scipy's exact Euclidean distance transform. And how well found objects fit true ones:
average precision, panoptic quality, AJI, counts.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_unet.files import replace_json, replace_text


def confusion(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None = None
) -> Tensor:
    """How many pixels of every true class (rows) got every predicted class, `int64 [K, K]`.

    The counts of a set of images are the sum of their counts, whatever the batches, and whole
    numbers add up exactly in any order and over any number of processes. Classes are integers of
    any one shape, 0 to num_classes - 1; pixels of true class `ignore_index` do not count.

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


def outline(region: np.ndarray) -> np.ndarray:
    """Pixels of a bool region that have a face in common with the outside or the image's end."""
    from scipy import ndimage

    return region & ~ndimage.binary_erosion(region)


def outline_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Distances `float64 [P]` of the outline of a bool region to that of another, `[T]` back.

    In the unit of `spacing`, the size of a pixel (per axis); infinite where the other is empty.

    Raises:
        ValueError: Different shapes, or not bool.
    """
    from scipy import ndimage

    if prediction.shape != truth.shape or prediction.dtype != bool or truth.dtype != bool:
        raise ValueError(
            f"prediction {prediction.dtype} {prediction.shape} and truth {truth.dtype} "
            f"{truth.shape} must be bool and of one shape"
        )
    outlines = outline(prediction), outline(truth)
    maps = [
        ndimage.distance_transform_edt(~points, sampling=spacing)
        if points.any()
        else np.full(points.shape, np.inf)
        for points in outlines
    ]
    return maps[1][outlines[0]], maps[0][outlines[1]]


def hausdorff(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: Sequence[float] | float = 1.0,
    percentile: float = 95,
) -> float:
    """Hausdorff distance of two outlines at a percentile (HD95), as MONAI defines it.

    The larger of the two directed percentiles; 0 when both regions are empty, infinite when one
    is. Arguments: `outline_distances`.
    """
    there, back = outline_distances(prediction, truth, spacing)
    if there.size == 0 or back.size == 0:
        return 0.0 if there.size == back.size else float("inf")
    return float(max(np.percentile(there, percentile), np.percentile(back, percentile)))


def boundary_f(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: Sequence[float] | float = 1.0,
    tolerance: float = 2.0,
) -> float:
    """Boundary F (Martin 2004; Csurka 2013), 0 to 1.

    Harmonic mean of the share of the prediction's outline within `tolerance` (in the unit of
    `spacing`) of the truth's, and of the truth's outline within it of the prediction's. 1 when
    both regions are empty, 0 when one is. Arguments: `outline_distances`.
    """
    there, back = outline_distances(prediction, truth, spacing)
    if there.size == 0 or back.size == 0:
        return float(there.size == back.size)
    precision, recall = np.mean(there <= tolerance), np.mean(back <= tolerance)
    return float(2 * precision * recall / max(precision + recall, np.finfo(float).tiny))


INTERVALS = ("dice", "iou", "hd95", "boundary_f")
"""Scores of images of whose mean the interval is said."""


def scores_of_image(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None = None
) -> dict[str, float]:
    """Dice, IoU, HD95 (pixels) and boundary F (within 2 pixels) of one image.

    Each is the mean over the classes but the first that prediction or target have; without any
    there are no scores. "hd95" leaves out classes that only one of the two has, where it is
    infinite. Arguments: `confusion`, integer `[*space]`.
    """
    predicted, true = prediction.cpu().clone(), target.cpu().clone()
    if ignore_index is not None:
        predicted[true == ignore_index] = 0
        true[true == ignore_index] = 0
    both = overlap(confusion(predicted, true, num_classes))
    found: dict[str, list[float]] = {name: [] for name in INTERVALS}
    for number in range(1, num_classes):
        ours, theirs = (predicted == number).numpy(), (true == number).numpy()
        if ours.any() or theirs.any():
            found["dice"].append(float(both.dice[number]))
            found["iou"].append(float(both.iou[number]))
            found["boundary_f"].append(boundary_f(ours, theirs))
            if ours.any() and theirs.any():
                found["hd95"].append(hausdorff(ours, theirs))
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def mean_over_images(images: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of `scores_of_image` and `object_scores` over the images that have them.

    Dice and IoU become "image_dice" and "image_iou". With "_low" and "_high" there are the bounds
    within which the mean of each of the `INTERVALS` lies with a probability of 95 %, by the
    bootstrap over images (1000 draws, always the same).
    """
    means = {}
    for name in (*INTERVALS, *OBJECT_SCORES):
        values = np.array([image[name] for image in images if name in image])
        of = f"image_{name}" if name in ("dice", "iou") else name
        if values.size:
            means[of] = float(values.mean())
        if name in INTERVALS and values.size > 1:
            draws = np.random.default_rng(0).choice(values, (1000, values.size)).mean(axis=1)
            low, high = np.percentile(draws, [2.5, 97.5])
            means |= {f"{of}_low": float(low), f"{of}_high": float(high)}
    return means


def shown_scores(scores: dict[str, float]) -> str:
    """Scores in lines for people, each with its interval where there is one."""
    lines = []
    for name, value in scores.items():
        if not name.endswith(("_low", "_high")):
            ends = [scores[f"{name}{end}"] for end in ("_low", "_high") if f"{name}{end}" in scores]
            interval = "  (95 %: {:.4f} to {:.4f})".format(*ends) if ends else ""
            lines.append(f"  {name:<24} {value:.4f}{interval}")
    return "\n".join(lines)


def write_scores(folder: Path, scores: dict[str, float], images: Sequence[dict[str, Any]]) -> None:
    """Write scores.json, with a row of each image beside the scores, and scores.csv, the rows.

    A score that is not a number, of nothing that could be scored, is null and empty in them.
    """

    def known(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: None if value != value else value for name, value in values.items()}

    images = [known(row) for row in images]
    replace_json(folder / "scores.json", {**known(scores), "images": images})
    columns = list(dict.fromkeys(name for row in images for name in row))
    lines = io.StringIO()
    table = csv.DictWriter(lines, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(images)
    replace_text(folder / "scores.csv", lines.getvalue())


THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Least intersection over union of an object that counts as found."""
OBJECT_SCORES = (*(f"ap{100 * least:.0f}" for least in THRESHOLDS), "pq", "aji", "count_error")


def object_scores(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Scores of one image's objects, given as labels `int [*space]`, 0 for background.

    At each threshold the most objects are matched one to one whose intersection over union reaches
    it. "ap50" to "ap90" are TP / (TP + FP + FN), as of Kaggle's 2018 bowl and stardist; "pq" is the
    panoptic quality at 0.5 (Kirillov 2019, eq. 1); "aji" the aggregated Jaccard index (Kumar 2017,
    algorithm 1), of intersections over unions of every true object with its best; "count_error"
    the difference of the numbers of objects. Without any object there are no scores but the last.

    Raises:
        ValueError: Different shapes.
    """
    from scipy.optimize import linear_sum_assignment

    if found.shape != true.shape:
        raise ValueError(f"found objects {found.shape} and true ones {true.shape} differ in shape")
    (rows, row), (columns, column) = (np.unique(x, return_inverse=True) for x in (true, found))
    counts = np.zeros((len(rows), len(columns)), np.int64)
    np.add.at(counts, (row.ravel(), column.ravel()), 1)
    shared = counts[rows > 0][:, columns > 0]
    true_areas, found_areas = counts.sum(1)[rows > 0], counts.sum(0)[columns > 0]
    unions = true_areas[:, None] + found_areas - shared
    ious = shared / np.maximum(unions, 1)
    total, scores = len(true_areas) + len(found_areas), {}
    for least in THRESHOLDS if total else ():
        rows, columns = linear_sum_assignment(-1.0 * (ious >= least) - ious / total)
        matched = ious[rows, columns][ious[rows, columns] >= least]
        scores[f"ap{100 * least:.0f}"] = len(matched) / (total - len(matched))
        if least == THRESHOLDS[0]:
            scores["pq"] = 2 * float(matched.sum()) / total
    if total:
        rows = np.flatnonzero(ious.max(1, initial=0) > 0)
        best = ious[rows].argmax(1) if len(rows) else rows
        union = unions[rows, best].sum() + np.delete(true_areas, rows).sum()
        union += np.delete(found_areas, best).sum()
        scores["aji"] = float(shared[rows, best].sum() / union)
    return scores | {"count_error": float(abs(len(true_areas) - len(found_areas)))}

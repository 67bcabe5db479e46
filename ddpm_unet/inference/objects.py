"""Objects in a mask: connected pieces, a row each."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class ObjectRow:
    """One connected piece of a class.

    Args:
        id: 1, 2, ... in all classes together; its value in `label_objects`.
        class_index: Its class.
        class_name: Of the class; its number where names are not known.
        area: Pixels, of volumes voxels.
        centroid: Mean (plane,) row and column.
        bounding_box: First (plane,) row and column, then the ones behind the last.
        mean_intensity: Mean pixel value of every channel; empty without an image.
    """

    id: int
    class_index: int
    class_name: str
    area: int
    centroid: tuple[float, ...]
    bounding_box: tuple[int, ...]
    mean_intensity: tuple[float, ...] = ()


def label_objects(mask: np.ndarray) -> np.ndarray:
    """Number the connected pieces of every class but 0, also those that touch at a corner.

    Args:
        mask: Classes, `[H, W]` or `[D, H, W]`.

    Returns:
        `int32`, of the mask's shape; 0 is class 0.
    """
    from scipy import ndimage  # takes a quarter of a second

    labels, count = np.zeros(mask.shape, np.int32), 0
    for number in np.unique(mask[mask > 0]):
        pieces, found = ndimage.label(mask == number, np.ones((3,) * mask.ndim))
        np.add(labels, pieces + count, out=labels, where=pieces > 0, casting="unsafe")
        count += found
    return labels


def find_objects(
    mask: np.ndarray, image: np.ndarray | None = None, class_names: Sequence[str] = ()
) -> list[ObjectRow]:
    """A row for each connected piece of every class but 0, by class and then from the top.

    Args:
        mask: Classes, `[H, W]` or `[D, H, W]`.
        image: Its pixels, `[..., C]`.
        class_names: One per class, or empty.
    """
    from scipy import ndimage

    labels, rows = label_objects(mask), []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[box] == number
        where = np.nonzero(inside)
        corner = [axis.start for axis in box]
        classes = int(mask[box][tuple(axis[0] for axis in where)])
        means = () if image is None else image[box][inside].mean(axis=0, dtype=np.float64)
        rows.append(
            ObjectRow(
                id=number,
                class_index=classes,
                class_name=class_names[classes] if class_names else str(classes),
                area=len(where[0]),
                centroid=tuple(
                    float(first + axis.mean()) for first, axis in zip(corner, where, strict=True)
                ),
                bounding_box=(*corner, *(axis.stop for axis in box)),
                mean_intensity=tuple(float(mean) for mean in means),
            )
        )
    return rows


def write_objects(pages: Sequence[Sequence[ObjectRow]], path: Path) -> None:
    """Write a table of the objects of each page as CSV.

    Args:
        pages: The objects of every image of a file.
        path: The file.
    """
    rows = [(page, row) for page, rows in enumerate(pages) for row in rows]
    axes = ("plane", "row", "column")
    dims = len(rows[0][1].centroid) if rows else 2
    channels = len(rows[0][1].mean_intensity) if rows else 0
    header = ["page"] * (len(pages) > 1)
    header += ["id", "class", "class_name", "area", *axes[-dims:]]
    header += [f"{side}_{axis}" for side in ("first", "end") for axis in axes[-dims:]]
    header += [f"mean_{channel}" for channel in range(channels)]
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(header)
        for page, row in rows:
            numbers = [f"{value:.3f}" for value in row.centroid]
            means = [f"{value:.6g}" for value in row.mean_intensity]
            fixed = [row.id, row.class_index, row.class_name, row.area]
            table.writerow(
                [*([page] if len(pages) > 1 else []), *fixed, *numbers, *row.bounding_box, *means]
            )

"""Objects in a mask: numbered, a row each, and their outlines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_unet.errors import from_extra

SURE = 0.8
"""Least probability of the interior of an object, where no images chose one of the next."""
CHOICES = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class ObjectRow:
    """One object of a class.

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


def label_objects(
    mask: np.ndarray,
    interior: np.ndarray | None = None,
    least: float = 0.0,
    sure: float | None = None,
) -> np.ndarray:
    """Number the objects of every class but 0.

    They are the connected pieces of the class, also those that touch at a corner. With the
    interiors that a network found, pieces are parted: each connected interior in one (by a face)
    is an object, which grows at one speed with the others until the piece is full. A piece without
    any is one object.

    Args:
        mask: Classes, `[H, W]` or `[D, H, W]`.
        interior: Probability that a pixel is inside an object, of the mask's shape.
        least: With interiors, objects of fewer pixels are left out, and interiors of a quarter.
        sure: Probability above which a pixel is inside; None takes `SURE`.

    Returns:
        `int32`, of the mask's shape; 0 is class 0.
    """
    from scipy import ndimage  # takes a quarter of a second

    labels, count = np.zeros(mask.shape, np.int32), 0
    around = np.ones((3,) * mask.ndim)
    for number in np.unique(mask[mask > 0]):
        region = mask == number
        pieces, found = ndimage.label(region, around)
        if interior is not None:
            seeds, found = ndimage.label(region & (interior > (sure or SURE)))
            seeds[np.bincount(seeds.ravel())[seeds] < least / 4] = 0
            seeded = np.unique(pieces[seeds > 0])
            bare = region & ~np.isin(pieces, seeded)
            left = np.count_nonzero(region & ~bare)
            while np.count_nonzero(seeds) < left:
                grown = ndimage.maximum_filter(seeds, footprint=around)
                np.copyto(seeds, grown, where=region & (seeds == 0))
            pieces, more = ndimage.label(bare, around)
            pieces[pieces > 0] += found
            pieces += seeds
            areas = np.bincount(pieces.ravel(), minlength=found + more + 1)
            kept = areas >= max(least, 1)
            kept[0] = False
            pieces, found = (np.cumsum(kept) * kept)[pieces], np.count_nonzero(kept)
        np.add(labels, pieces + count, out=labels, where=pieces > 0, casting="unsafe")
        count += found
    return labels


def find_objects(
    labels: np.ndarray,
    mask: np.ndarray,
    image: np.ndarray | None = None,
    class_names: Sequence[str] = (),
) -> list[ObjectRow]:
    """A row for each object.

    Args:
        labels: Numbers of objects, of `label_objects`.
        mask: Classes, of the same shape.
        image: Its pixels, `[..., C]`.
        class_names: One per class, or empty.
    """
    from scipy import ndimage

    rows = []
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


def write_objects(
    pages: Sequence[Sequence[ObjectRow]],
    path: Path,
    name: str = "",
    spacing: Sequence[float] | None = None,
) -> None:
    """Write a table of the objects of each page as CSV.

    Args:
        pages: The objects of every image of a file.
        path: The file.
        name: Of the image.
        spacing: Millimetres from pixel to pixel along (planes,) rows and columns: area or volume
            and centroid are then given in mm too.
    """
    rows = [(page, row) for page, rows in enumerate(pages) for row in rows]
    dims = len(rows[0][1].centroid) if rows else 2
    axes = ("plane", "row", "column")[-dims:]
    sides = tuple(spacing or ())[-dims:]
    sides = sides if len(sides) == dims else ()
    channels = len(rows[0][1].mean_intensity) if rows else 0
    header = ["image", *["page"] * (len(pages) > 1), "id", "class", "class_name", "area", *axes]
    header += [f"{side}_{axis}" for side in ("first", "end") for axis in axes]
    header += [f"mean_{channel}" for channel in range(channels)]
    header += [f"area_mm{dims}", *(f"{axis}_mm" for axis in axes)] if sides else []
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(header)
        for page, row in rows:
            line: list[object] = [name, *[page] * (len(pages) > 1)]
            line += [row.id, row.class_index, row.class_name, row.area]
            line += [*(f"{value:.3f}" for value in row.centroid), *row.bounding_box]
            line += [f"{value:.6g}" for value in row.mean_intensity]
            if sides:
                in_mm = [value * mm for value, mm in zip(row.centroid, sides, strict=True)]
                line += [f"{value:.6g}" for value in (row.area * np.prod(sides), *in_mm)]
            table.writerow(line)


def outlines(labels: np.ndarray, rows: Sequence[ObjectRow]) -> Iterator[list[list[np.ndarray]]]:
    """The polygons of each object, nearly always one: its outer ring, then those of its holes.

    Args:
        labels: Numbers of objects, `[H, W]`.
        rows: Of the objects.

    Yields:
        Rings `float64 [N, 2]` of x and y, closed, half way between the centres of pixels inside and
        outside; the first pixel's centre is at (0.5, 0.5).
    """
    from contourpy import FillType, contour_generator

    for row in rows:
        top, left, bottom, right = row.bounding_box
        inside = np.pad(labels[top:bottom, left:right] == row.id, 1).astype(float)
        contours = contour_generator(z=inside, fill_type=FillType.OuterOffset)
        corner = np.array([left, top]) - 0.5
        yield [
            [points[low:high] + corner for low, high in pairwise(ends)]
            for points, ends in zip(*contours.filled(0.5, 2), strict=True)
        ]


def write_geojson(
    pages: Sequence[tuple[np.ndarray, Sequence[ObjectRow]]], path: Path, colors: np.ndarray
) -> None:
    """Write the outlines of each page's labels and rows as QuPath reads them.

    `colors` are of the classes, `uint8 [K, 3]`.
    """
    features = []
    for page, (labels, rows) in enumerate(pages):
        for row, polygons in zip(rows, outlines(labels, rows), strict=True):
            rings: list[Any] = [[ring.tolist() for ring in polygon] for polygon in polygons]
            one = len(rings) == 1
            kind = {"name": row.class_name, "color": colors[row.class_index].tolist()}
            features.append(
                {
                    "type": "Feature",
                    "geometry": {
                        "type": "Polygon" if one else "MultiPolygon",
                        "coordinates": rings[0] if one else rings,
                        "plane": {"c": -1, "z": page, "t": 0},
                    },
                    "properties": {
                        "objectType": "detection",
                        "name": str(row.id),
                        "classification": kind,
                    },
                }
            )
    collection = {"type": "FeatureCollection", "features": features}
    path.write_text(json.dumps(collection), encoding="utf-8")


def write_rois(pages: Sequence[tuple[np.ndarray, Sequence[ObjectRow]]], path: Path) -> None:
    """Write the outer outlines of each page's labels and rows as a zip file of ImageJ's ROIs.

    Raises:
        UserError: The package roifile is missing.
    """
    roifile = from_extra("roifile", "rois", "outlines imagej")
    found = [
        roifile.ImagejRoi.frompoints(
            polygon[0][:-1], name=f"{page + 1:04}-{row.id:04}-{piece}", position=page + 1
        )
        for page, (labels, rows) in enumerate(pages)
        for row, polygons in zip(rows, outlines(labels, rows), strict=True)
        for piece, polygon in enumerate(polygons)
    ]
    roifile.roiwrite(path, found, mode="w")

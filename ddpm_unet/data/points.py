"""Point sets, such as the atoms of a protein: to a grid that a network of volumes sees, and back.

Every point falls in one cell. The grid's first channel is 1 in cells with points, the others are
the means of their features. Cells without points are unlabelled (as in Cicek 2016, where few
slices are labelled), so the loss, the scores and the way back know the points alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddpm_unet.data.folder import natural, visible_files
from ddpm_unet.data.images import check_pixels, faults_named
from ddpm_unet.errors import UserError

ENDING = ".npz"
EMPTY = 255
"""Label of cells without points."""
MARGIN = 2  # empty cells around the points


@dataclass(frozen=True)
class PointSet:
    """Points with features, and perhaps classes."""

    coordinates: np.ndarray
    """x, y and z, `float64 [N, 3]`."""
    features: np.ndarray
    """`float32 [N, F]`, within 0 to 1 unless `data.value_range` says otherwise."""
    labels: np.ndarray | None = None
    """Classes below 255, `uint8 [N]`."""

    def cells(self, voxel: float) -> tuple[np.ndarray, tuple[int, ...]]:
        """The cell of each point, `int64 [3, N]` along z, y and x, and the size of the grid."""
        corner = self.coordinates.min(0)
        cell = np.floor((self.coordinates - corner) / voxel).astype(np.int64).T[::-1] + MARGIN
        return cell, tuple((cell.max(1) + 1 + MARGIN).tolist())


def list_points(folder: str | Path) -> list[str]:
    """Relative paths of the point sets below a folder in natural order."""
    paths = [p for p in visible_files(Path(folder)) if p.lower().endswith(ENDING)]
    if not paths:
        raise UserError(f"{folder}: holds no point set ({ENDING}); give a folder of them")
    return sorted(paths, key=natural)


def read_points(path: str | Path) -> PointSet:
    """Read a point set, an `.npz` with arrays "coordinates" `[N, 3]` and, if there are any,
    "features" `[N, F]` and "labels" `[N]`.
    """
    with faults_named(path):
        points = _read_npz(path)
    count = len(points.coordinates)
    if points.coordinates.shape != (count, 3) or not count:
        shape = " x ".join(map(str, points.coordinates.shape))
        raise UserError(f"{path}: coordinates are {shape}; give a row of x, y and z for each point")
    for name, array in (("features", points.features), ("labels", points.labels)):
        if array is not None and len(array) != count:
            raise UserError(f"{path}: has {count} points and {len(array)} {name}; give as many")
    if not (np.isfinite(points.coordinates).all() and np.isfinite(points.features).all()):
        raise UserError(f"{path}: has NaN or infinite values; mend or remove the file")
    return points


def read_grid(path: str | Path, voxel: float, max_pixels: float = 200.0) -> np.ndarray:
    """The points of a file as a volume `float32 [D, H, W, 1 + F]`; errors as `read_points`."""
    return to_grid(_checked(path, voxel, max_pixels), voxel)


def read_labels(path: str | Path, voxel: float, max_pixels: float = 200.0) -> np.ndarray:
    """The classes of a file's points as a volume `uint8 [D, H, W, 1]`.

    Where classes meet in a cell the highest counts; empty cells are `EMPTY`.
    """
    points = _checked(path, voxel, max_pixels)
    if points.labels is None:
        raise UserError(f"{path}: has no labels; add the array labels, a class for each point")
    cells, size = points.cells(voxel)
    grid = np.full(size, -1, np.int64)
    np.maximum.at(grid, tuple(cells), points.labels)
    return np.where(grid < 0, EMPTY, grid).astype(np.uint8)[..., None]


def to_grid(points: PointSet, voxel: float) -> np.ndarray:
    """Points as a volume `float32 [D, H, W, 1 + F]`: whether there are any, their mean features."""
    cells, size = points.cells(voxel)
    flat = np.ravel_multi_index(tuple(cells), size)
    columns = [np.ones(len(flat)), *points.features.T]
    sums = [np.bincount(flat, column, int(np.prod(size))) for column in columns]
    counts = sums[0].clip(min=1)
    means = np.stack([column / counts for column in sums], axis=-1)
    return means.reshape(*size, -1).astype(np.float32)


def from_grid(values: np.ndarray, points: PointSet, voxel: float) -> np.ndarray:
    """What a volume `[K, D, H, W]` of the grid's size holds at each point, `[N, K]`."""
    return values[(slice(None), *points.cells(voxel)[0])].T


def _checked(path: str | Path, voxel: float, max_pixels: float) -> PointSet:
    points = read_points(path)
    extent = (np.ptp(points.coordinates, axis=0) / voxel + 1 + 2 * MARGIN).astype(int).tolist()
    check_pixels(path, (*extent[::-1], 1 + points.features.shape[1]), max_pixels)
    return points


def _read_npz(path: str | Path) -> PointSet:
    with np.load(path, allow_pickle=False) as file:
        if "coordinates" not in file:
            held = ", ".join(file) or "nothing"
            raise UserError(f"{path}: has no array coordinates, only {held}")
        coordinates = np.asarray(file["coordinates"], np.float64)
        features = np.zeros((len(coordinates), 0), np.float32)
        if "features" in file:
            features = np.atleast_2d(np.asarray(file["features"], np.float32))
        labels = np.asarray(file["labels"]) if "labels" in file else None
    if labels is not None and (labels.dtype.kind not in "bui" or not (labels < EMPTY).all()):
        raise UserError(f"{path}: its labels are not classes, whole numbers below {EMPTY}")
    return PointSet(coordinates, features, None if labels is None else labels.astype(np.uint8))

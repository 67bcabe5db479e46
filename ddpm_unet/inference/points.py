"""From a file of points, such as a protein's atoms, to the class of each point."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from typing_extensions import override

from ddpm_unet.data.points import from_grid, read_points, to_grid
from ddpm_unet.inference.files import FileSegmenter
from ddpm_unet.inference.tiles import predict_tiles
from ddpm_unet.inference.writers import finished


@dataclass(frozen=True, kw_only=True)
class PointSegmenter(FileSegmenter):
    """Writes what a network of volumes sees at the points of a file.

    Args:
        voxel: Side of the grid's cells, in units of the coordinates.
    """

    voxel: float = 1.0

    @override
    def look(self, path: Path) -> None:
        read_points(path)

    @override
    def write(self, path: Path, out: Path, name: str) -> np.ndarray:
        """Classify the points of one file.

        `NAME_points.csv` has a row for each point: x, y, z, its class and the probability of
        every class; with `probabilities` "npz" the same as arrays in `NAME_points.npz`.

        Args:
            path: What `read_points` reads.
            out: An existing folder.
            name: What the files' names start with, from `output_names`.

        Returns:
            Points of each class, `int64 [K]`.

        Raises:
            UserError: A file that cannot be read.
        """
        points = read_points(path)
        grid = to_grid(points, self.voxel)
        image = self.prepare(self.whole(grid) if self.whole else grid, path.name)
        planes = torch.from_numpy(np.moveaxis(image, -1, 0))
        values = predict_tiles(self.predict, planes, self.tiling, self.batch_size, self.device)
        probabilities = from_grid(values.cpu().numpy(), points, self.voxel)
        classes = probabilities.argmax(axis=1)
        names = ["x", "y", "z", "class", *(f"probability_{k}" for k in range(len(self.colors)))]
        table = np.column_stack([points.coordinates, classes, probabilities])
        with finished(out / f"{name}_points.csv") as part:
            formats = ["%.3f"] * 3 + ["%d"] + ["%.4f"] * len(self.colors)
            np.savetxt(part, table, formats, delimiter=",", header=",".join(names), comments="")
        if self.probabilities == "npz":
            with finished(out / f"{name}_points.npz") as part, open(part, "wb") as file:
                np.savez_compressed(
                    file,
                    coordinates=points.coordinates,
                    classes=classes.astype(np.uint8),
                    probabilities=probabilities,
                )
        return np.bincount(classes, minlength=len(self.colors))

"""A network that gives pixels numbers: as a function of tiles, and into files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tifffile
from PIL import Image
from torch import Tensor
from typing_extensions import override

from ddpm_unet.data.targets import Targets
from ddpm_unet.data.volumes import Space
from ddpm_unet.errors import UserError
from ddpm_unet.inference.files import FilePredictor, Part
from ddpm_unet.inference.segmentation import SegmentationModel
from ddpm_unet.inference.tiles import Predict
from ddpm_unet.inference.turns import over_turns
from ddpm_unet.inference.writers import NiftiVolume, finished


def completed(output: Tensor, images: Tensor, residual: bool) -> Tensor:
    """The prediction that an output of a network means, `[B, K, *space]`.

    Args:
        output: Of the network, `[B, K, *space]`, smaller than the images without padding.
        images: What the network saw, `[B, C, *space]`.
        residual: The output is what is to be added to the first K channels.
    """
    if not residual:
        return output
    base = images[:, : output.shape[1]]
    for axis in range(2, images.ndim):
        lost = images.shape[axis] - output.shape[axis]
        base = base.narrow(axis, lost // 2, output.shape[axis])
    return output + base


def numbers(model: SegmentationModel, residual: bool = False, turns: bool = False) -> Predict:
    """Tiles `[B, C, h, w]` in [-1, 1] to predictions `float32 [B, K, h, w]`, about in [-1, 1].

    Args:
        model: In evaluation mode.
        residual: It gives what is to be added to the first channels.
        turns: Average over the flips and quarter turns.
    """

    def predict(tiles: Tensor) -> Tensor:
        return completed(model(tiles).float(), tiles.float(), residual)

    return over_turns(predict) if turns else predict


class TiffPictures:
    """An uncompressed TIFF `[N, H, W, K]` of float32, written in any order of rows.

    Memory holds nothing of it.

    Args:
        path: The file.
        shape: Pages, height, width, channels.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        grey = shape[-1] == 1
        self._pages = tifffile.memmap(
            path,
            shape=shape[:-1] if grey else shape,
            dtype=np.float32,
            photometric="minisblack",
            metadata={"axes": "ZYX" if grey else "ZYXS"},
            planarconfig=None if grey else "contig",
        ).reshape(shape)

    def write(self, plane: int, row: int, values: np.ndarray) -> None:
        """Write `[planes, K, rows, W]` from a plane and row on."""
        rows = np.moveaxis(values, 1, -1)
        self._pages[plane : plane + len(rows), row : row + rows.shape[1]] = rows

    def close(self) -> None:
        """End writing."""
        del self._pages


class PngPicture:
    """A PNG of 8 bits (grey or RGB) or 16 (grey), saved when closed.

    Args:
        path: The file.
        shape: 1, height, width, channels.
        targets: How values become pixels.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int, int], targets: Targets) -> None:
        self._path, self._targets = path, targets
        self._pixels = np.zeros(shape[1:], targets.dtype)

    def write(self, plane: int, row: int, values: np.ndarray) -> None:
        """Take rows `[1, K, rows, W]` of values of plane 0, in the range of the network."""
        rows = np.moveaxis(self._targets.to_pixels(values[plane]), 0, -1)
        self._pixels[row : row + len(rows)] = rows

    def close(self) -> None:
        """Save the file."""
        grey = self._pixels.shape[-1] == 1
        Image.fromarray(self._pixels[..., 0] if grey else self._pixels).save(self._path, "PNG")


@dataclass(frozen=True, kw_only=True)
class FileRegressor(FilePredictor):
    """Writes the pictures that a network makes of picture files.

    Args:
        targets: What such pictures are.
        picture: "tiff" writes float32 in the units of the targets, whatever their type; "png"
            pixels of their type.
    """

    targets: Targets
    picture: Literal["tiff", "png"] = "tiff"

    @override
    def look(self, path: Path) -> None:
        super().look(path)
        kinds = [("uint8", 1), ("uint8", 3), ("uint16", 1)]
        fits = (self.targets.dtype, self.targets.channels) in kinds
        if self.picture == "png" and not (fits and self.dims == 2):
            raise UserError(
                f"--picture png: holds pictures of 8 bits in grey or colour, or of 16 in grey; the "
                f"model makes {self.targets}{' in volumes' * (self.dims == 3)}, take tiff"
            )

    @override
    def _write(
        self,
        parts: Iterator[Part],
        shape: tuple[int, ...],
        tiff: bool,
        base: Path,
        space: Space | None = None,
    ) -> np.ndarray:
        """Write `base`_predicted.tif, .png or, with a space, .nii.gz; gives each channel's mean."""
        (pages, height, width, _), channels = shape, self.targets.channels
        sums = np.zeros(channels)
        with ExitStack() as stack:

            def file(ending: str) -> Path:
                return stack.enter_context(finished(base.with_name(f"{base.name}_{ending}")))

            result: NiftiVolume | TiffPictures | PngPicture
            size = (pages, height, width, channels)
            if space:
                every = (pages, *[channels] * (channels > 1), height, width)
                result = NiftiVolume(file("predicted.nii.gz"), every, np.float32, space)
            elif self.picture == "png":
                if pages > 1:
                    raise UserError(f"{base.name}: has {pages} pages, --picture png one; take tiff")
                result = PngPicture(file("predicted.png"), size, self.targets)
            else:
                result = TiffPictures(file("predicted.tif"), size)
            stack.enter_context(closing(result))
            for plane, row, _, unit in parts:
                values = self.targets.to_values(unit)
                sums += values.sum(axis=(0, 2, 3), dtype=np.float64)
                if isinstance(result, NiftiVolume):
                    result.write(plane * channels, row, np.concatenate(values))
                else:
                    result.write(plane, row, unit if isinstance(result, PngPicture) else values)
        return sums / (pages * height * width)

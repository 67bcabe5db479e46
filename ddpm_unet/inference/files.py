"""From a picture file to its mask, overlay and probabilities, with memory for a few tiles."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from typing_extensions import override

from ddpm_unet.data.images import image_info
from ddpm_unet.data.volumes import Space, is_nifti, read_volume, volume_info, volume_space
from ddpm_unet.errors import UserError
from ddpm_unet.inference.overlay import displayable
from ddpm_unet.inference.readers import Prepared, is_tiff, open_planes
from ddpm_unet.inference.resampling import predict_scaled
from ddpm_unet.inference.tiles import Predict, Rows, Tiling
from ddpm_unet.inference.writers import (
    NiftiVolume,
    NpzPlanes,
    OverlayPictures,
    PaletteImage,
    TiffPlanes,
    finished,
)

Part = tuple[int, int, np.ndarray, np.ndarray]
"""First plane and row, pixels `[planes, rows, W, C]`, predictions `[planes, K, rows, W]`."""


@dataclass(frozen=True, kw_only=True)
class FilePredictor(ABC):
    """Writes what a network makes of picture files.

    Args:
        predict: Tiles `[B, channels, *tile]` to predictions `[B, K, ...]`, see `tiles.py`.
        prepare: Maps pixels `[..., C]` of a file (uint8, uint16, float32) to what `predict`
            wants, `[..., channels]`; gets the file's name for its messages.
        channels: Channels that `predict` wants.
        whole: Done to a whole picture or volume `[..., C]` before `prepare`; None for nothing.
        dims: 2: every page of a TIFF is a picture; 3: its pages, or a NIfTI file, are one volume.
        scale: Factor by which pictures are resampled for `predict`; results have their own size.
        tiling: The tiles, in pixels of `predict`.
        batch_size: Tiles per call of `predict`.
        device: Where `predict` wants its tiles.
        max_pixels: Refuse to decode more than so many million pixels at once.
        stream_above: Million pixels from which on a TIFF is read row by row.
    """

    predict: Predict
    prepare: Callable[[np.ndarray, str], np.ndarray]
    channels: int
    whole: Callable[[np.ndarray], np.ndarray] | None = None
    dims: int = 2
    scale: float = 1.0
    tiling: Tiling = field(default_factory=Tiling)
    batch_size: int = 4
    device: torch.device | str = "cpu"
    max_pixels: float = 200.0
    stream_above: float = 16.0

    def look(self, path: Path) -> None:
        """Decode nothing, write nothing; errors as `write`, those that a file's header shows."""
        if self.dims == 3:
            self._check_volume(path)
            volume_info(path, self.max_pixels)
        elif is_tiff(path):
            volume_info(path, math.inf)
        else:
            image_info(path, self.max_pixels)

    def write(self, path: Path, out: Path, name: str) -> np.ndarray:
        """Predict one file. Each file that is written appears when it is complete.

        Args:
            path: A picture, or a TIFF of one or more pages, or a NIfTI file.
            out: An existing folder.
            name: What the files' names start with, from `output_names`.

        Returns:
            A number of each output, `[K]`, as the subclass says.

        Raises:
            UserError: A file that cannot be read, or with `dims` 3 one that is no volume.
        """
        tiff = is_tiff(path)
        if self.dims == 3:
            self._check_volume(path)
            volume, space = read_volume(path, self.max_pixels), volume_space(path)
            volume = self.whole(volume) if self.whole else volume
            parts = self._volume(volume, path.name)
            return self._write(parts, volume.shape, tiff, out / name, space)
        streamed = math.inf if self.whole else self.stream_above
        with open_planes(path, self.max_pixels, streamed) as planes:
            if self.whole:
                planes = [self.whole(np.asarray(plane)) for plane in planes]
            shape = (len(planes), *planes[0].shape)
            return self._write(self._planes(planes, path.name), shape, tiff, out / name)

    def _check_volume(self, path: Path) -> None:
        if not is_tiff(path) and not is_nifti(path):
            raise UserError(f"{path}: is no volume; give NIfTI, or a TIFF of a page per plane")

    def _planes(self, planes: Sequence[Rows], name: str) -> Iterator[Part]:
        for number, plane in enumerate(planes):
            row = 0
            for band in self._bands(plane, name):
                rows = band.shape[1]
                yield number, row, np.asarray(plane[row : row + rows])[None], band[None]
                row += rows

    def _volume(self, volume: np.ndarray, name: str) -> Iterator[Part]:
        plane, shown = 0, displayable(volume)
        for band in self._bands(volume, name):
            planes = band.shape[1]
            yield plane, 0, shown[plane : plane + planes], band.swapaxes(0, 1)
            plane += planes

    def _bands(self, source: Rows, name: str) -> Iterator[np.ndarray]:
        rows = Prepared(source, lambda pixels: self.prepare(pixels, name), self.channels)
        bands = predict_scaled(
            self.predict, rows, self.scale, self.tiling, self.batch_size, self.device
        )
        return (band.cpu().numpy() for band in bands)

    @abstractmethod
    def _write(
        self,
        parts: Iterator[Part],
        shape: tuple[int, ...],
        tiff: bool,
        base: Path,
        space: Space | None = None,
    ) -> np.ndarray:
        """Write all outputs of planes of `shape` `[N, H, W, C]`, as `base`_..."""


@dataclass(frozen=True, kw_only=True)
class FileSegmenter(FilePredictor):
    """Writes the classes that a network sees in picture files; `predict` gives probabilities.

    `NAME_mask` is a palette PNG, or a palette TIFF in the input's shape when that is a TIFF;
    `NAME_overlay` a PNG, or a TIFF for many pages; `NAME_probabilities.tif` or `.npz` float32
    `[(pages,) K, H, W]`. Of a NIfTI file, mask and probabilities are `.nii.gz` with its affine.
    `write` returns the pixels of each class, `int64 [K]`.

    Args:
        colors: `uint8 [K, 3]`, one per class.
        overlay: Write the overlay.
        probabilities: Write the probabilities, as "tiff" or "npz".
    """

    colors: np.ndarray
    overlay: bool = True
    probabilities: Literal["tiff", "npz"] | None = None

    @override
    def _write(
        self,
        parts: Iterator[Part],
        shape: tuple[int, ...],
        tiff: bool,
        base: Path,
        space: Space | None = None,
    ) -> np.ndarray:
        """Write all outputs of planes of `shape` `[N, H, W, C]`, as `base`_..."""
        pages, height, width, _ = shape
        size, axes = ((pages, height, width), "ZYX") if pages > 1 else ((height, width), "YX")
        classes_in_all = len(self.colors)
        counts = np.zeros(classes_in_all, dtype=np.int64)
        with ExitStack() as stack:

            def file(ending: str) -> Path:
                path = base.with_name(f"{base.name}_{ending}")
                return stack.enter_context(finished(path))

            mask: NiftiVolume | TiffPlanes | PaletteImage
            if space:
                mask = NiftiVolume(file("mask.nii.gz"), shape[:3], np.uint8, space)
            elif tiff:
                mask = TiffPlanes(file("mask.tif"), size, np.uint8, axes, self.colors)
            else:
                mask = PaletteImage(file("mask.png"), (height, width), self.colors)
            stack.enter_context(closing(mask))
            if self.overlay:
                path = file("overlay.tif" if pages > 1 else "overlay.png")
                overlay = OverlayPictures(path, (pages, height, width), self.colors)
                stack.enter_context(closing(overlay))
            if self.probabilities:
                every = (*size[:-2], classes_in_all, height, width)
                probabilities: NiftiVolume | TiffPlanes | NpzPlanes
                if self.probabilities == "npz":
                    probabilities = NpzPlanes(file("probabilities.npz"), every)
                elif space:
                    path, every = file("probabilities.nii.gz"), (pages, *every[-3:])
                    probabilities = NiftiVolume(path, every, np.float32, space)
                else:
                    path, axes = file("probabilities.tif"), axes.replace("YX", "CYX")
                    probabilities = TiffPlanes(path, every, np.float32, axes)
                stack.enter_context(closing(probabilities))

            for plane, row, pixels, values in parts:
                if values.shape[1] != classes_in_all:
                    raise ValueError(
                        f"the network gives {values.shape[1]} classes, {classes_in_all} expected"
                    )
                classes = values.argmax(axis=1).astype(np.uint8)
                counts += np.bincount(classes.ravel(), minlength=classes_in_all)
                mask.write(plane, row, classes)
                if self.overlay:
                    overlay.write(row, pixels, classes)
                if self.probabilities:
                    probabilities.write(plane * classes_in_all, row, np.concatenate(values))
        return counts

"""Files of predictions, written part by part with memory for a few tiles."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile

from ddpm_unet.data.points import PointSet
from ddpm_unet.data.preprocessing import Targets
from ddpm_unet.data.tiff import tiff_options
from ddpm_unet.errors import UserError
from ddpm_unet.inference.objects import (
    ObjectRow,
    find_objects,
    label_objects,
    write_geojson,
    write_objects,
    write_rois,
)
from ddpm_unet.inference.overlay import displayable
from ddpm_unet.inference.predictor import OpenFile
from ddpm_unet.inference.writers import (
    OverlayImages,
    SavedPlanes,
    TiffPlanes,
    finished,
    nifti_planes,
    npz_planes,
    png_planes,
)

Planes = SavedPlanes | TiffPlanes


@contextmanager
def _files(base: Path) -> Iterator[Callable[[str], Path]]:
    """From endings to paths to write to; the files get their names when all went well."""
    with ExitStack() as stack:
        yield lambda ending: stack.enter_context(finished(base.with_name(f"{base.name}_{ending}")))


def write_masks(
    source: OpenFile,
    base: Path,
    colors: np.ndarray,
    class_names: tuple[str, ...] = (),
    *,
    overlay: bool = True,
    objects: bool = True,
    probabilities: Literal["tiff", "npz"] | None = None,
    outlines: Collection[str] = (),
) -> np.ndarray:
    """Write what a network of classes sees in a file; each file appears when it is complete.

    `NAME_mask` is a palette PNG, or a palette TIFF in the input's shape when that is a TIFF, an
    OME-Zarr, a CZI or an ND2; TIFFs are OME-TIFFs of the input's pixel size, where that is known;
    `NAME_overlay` a PNG, or a TIFF for many pages; `NAME_probabilities.tif` or `.npz` float32
    `[(pages,) K, H, W]`. Where the image fits in memory, `NAME_objects.csv` has a row an object and
    `NAME_objects.tif` the number of the object at every pixel, uint16 or uint32. Of a NIfTI file,
    mask, probabilities and numbers are `.nii.gz` with its affine.

    Args:
        source: See `Predictor.open`.
        base: Folder and first part of the files' names.
        colors: `uint8 [K, 3]`, one per class.
        class_names: One per class, or empty.
        overlay, objects: Write them.
        probabilities: Write them, in this format.
        outlines: Of objects of images: "geojson" (QuPath), `NAME_objects.geojson`; "imagej",
            `NAME_rois.zip`.

    Returns:
        Pixels of each class, `int64 [K]`.
    """
    pages, height, width, _ = source.shape
    size, axes = ((pages, height, width), "ZYX") if pages > 1 else ((height, width), "YX")
    num_classes = len(colors)
    counts = np.zeros(num_classes, dtype=np.int64)
    kept = np.zeros((pages, height, width), np.uint8) if objects and source.images else None
    inside = np.zeros(kept.shape, np.float32) if kept is not None and source.interior else None
    with _files(base) as file, ExitStack() as stack:
        mask: Planes
        if source.space:
            mask = nifti_planes(file("mask.nii.gz"), source.shape[:3], np.uint8, source.space)
        elif source.tiff:
            mask = TiffPlanes(file("mask.tif"), size, np.uint8, axes, colors, source.spacing)
        else:
            mask = png_planes(file("mask.png"), (1, height, width), colors=colors)
        stack.enter_context(closing(mask))
        if overlay:
            path = file("overlay.tif" if pages > 1 else "overlay.png")
            drawn = OverlayImages(path, (pages, height, width), colors)
            stack.enter_context(closing(drawn))
        if probabilities:
            every: tuple[int, ...] = (*size[:-2], num_classes, height, width)
            scores: Planes
            if probabilities == "npz":
                scores = npz_planes(file("probabilities.npz"), every)
            elif source.space:
                path, every = file("probabilities.nii.gz"), (pages, *every[-3:])
                scores = nifti_planes(path, every, np.float32, source.space)
            else:
                path, letters = file("probabilities.tif"), axes.replace("YX", "CYX")
                scores = TiffPlanes(
                    path, every, np.float32, letters, None, source.spacing, class_names
                )
            stack.enter_context(closing(scores))
        for plane, row, pixels, values in source.parts:
            if source.interior:
                values, interior = values[:, :-1], values[:, -1]
            if values.shape[1] != num_classes:
                raise ValueError(
                    f"the network gives {values.shape[1]} classes, {num_classes} expected"
                )
            classes = values.argmax(axis=1).astype(np.uint8)
            counts += np.bincount(classes.ravel(), minlength=num_classes)
            mask.write(plane, row, classes)
            place = np.s_[plane : plane + len(classes), row : row + classes.shape[1]]
            if inside is not None:
                inside[place] = interior
            if kept is not None:
                kept[place] = classes
            elif overlay:
                drawn.write(row, pixels, classes)
            if probabilities:
                scores.write(plane * num_classes, row, np.concatenate(values))
        if kept is not None:
            assert source.images is not None
            parting = source.least, source.sure
            found = _find(kept, inside, source.images, class_names, parting)
            write_objects(found.tables, file("objects.csv"), base.name, source.spacing)
            dtype = np.uint16 if found.labels.max(initial=0) < 2**16 else np.uint32
            if source.space:
                saved = nifti_planes(file("objects.nii.gz"), kept.shape, dtype, source.space)
                saved.write(0, 0, found.labels)
                saved.close()
            else:
                path = file("objects.tif")
                tifffile.imwrite(
                    path, found.labels.reshape(size).astype(dtype),
                    photometric="minisblack", compression="zlib",
                    **tiff_options(path, axes, source.spacing),
                )  # fmt: skip
            planes = [*zip(found.labels, found.rows, strict=True)]
            if source.images[0].ndim == 3 and "geojson" in outlines:
                write_geojson(planes, file("objects.geojson"), colors)
            if source.images[0].ndim == 3 and "imagej" in outlines:
                write_rois(planes, file("rois.zip"))
            for page, (numbers, rows) in enumerate(planes if overlay else ()):
                drawn.write_objects(found.shown[page], kept[page], numbers, rows)
    return counts


@dataclass(frozen=True)
class _Found:
    """Objects of a file: numbers `int32 [planes, H, W]`, tables of its images, rows by plane."""

    labels: np.ndarray
    tables: list[list[ObjectRow]]
    rows: list[list[ObjectRow]]
    shown: Any


def _find(
    masks: np.ndarray,
    interiors: np.ndarray | None,
    images: Sequence[np.ndarray],
    class_names: tuple[str, ...],
    parting: tuple[float, float | None],
) -> _Found:
    """The objects of `[planes, H, W]`, each page by itself, or of one volume."""
    if images[0].ndim == 4:
        labels = label_objects(masks, interiors, *parting)
        table = find_objects(labels, masks, images[0], class_names)
        middles = [round(row.centroid[0]) for row in table]
        rows = [
            [row for row, middle in zip(table, middles, strict=True) if middle == plane]
            for plane in range(len(masks))
        ]
        return _Found(labels, [table], rows, displayable(images[0]))
    inside = [None] * len(masks) if interiors is None else interiors
    pages = [label_objects(*each, *parting) for each in zip(masks, inside, strict=True)]
    tables = [find_objects(*each, class_names) for each in zip(pages, masks, images, strict=True)]
    return _Found(np.stack(pages), tables, tables, images)


def check_image_format(format: str, targets: Targets, dims: int) -> None:
    """Refuse to write as PNG what it cannot hold.

    Raises:
        UserError: Names the flag.
    """
    kinds = [("uint8", 1), ("uint8", 3), ("uint16", 1)]
    if format == "png" and ((targets.dtype, targets.channels) not in kinds or dims == 3):
        raise UserError(
            f"format png: holds images of 8 bits in grey or colour, or of 16 in grey; the model "
            f"makes {targets}{' in volumes' * (dims == 3)}, take tiff"
        )


def write_regression(
    source: OpenFile, base: Path, targets: Targets, format: Literal["tiff", "png"] = "tiff"
) -> np.ndarray:
    """Write `base`_predicted.tif, .png or, of a NIfTI file, .nii.gz.

    Args:
        source: See `Predictor.open`.
        base: Folder and first part of the file's name.
        targets: What such images are.
        format: "tiff" writes float32 in the units of the targets, whatever their type; "png"
            pixels of their type.

    Returns:
        Each channel's mean.
    """
    (pages, height, width, _), channels = source.shape, targets.channels
    sums = np.zeros(channels)
    with _files(base) as file, ExitStack() as stack:
        result: Planes
        if source.space:
            every = (pages, *[channels] * (channels > 1), height, width)
            result = nifti_planes(file("predicted.nii.gz"), every, np.float32, source.space)
        elif format == "png":
            if pages > 1:
                raise UserError(f"{base.name}: has {pages} pages, a PNG holds one; take tiff")
            result = png_planes(file("predicted.png"), (channels, height, width), targets.dtype)
        else:
            sizes = {"Z": pages, "C": channels, "Y": height, "X": width}
            kept = {axis: n for axis, n in sizes.items() if n > 1 or axis in "YX"}
            axes = "".join(kept)
            path = file("predicted.tif")
            result = TiffPlanes(path, tuple(kept.values()), np.float32, axes, None, source.spacing)
        stack.enter_context(closing(result))
        for plane, row, _, unit in source.parts:
            values = targets.to_values(unit)
            sums += values.sum(axis=(0, 2, 3), dtype=np.float64)
            if format == "png" and not source.space:
                values = targets.to_pixels(unit)
            result.write(plane * channels, row, np.concatenate(values))
    return sums / (pages * height * width)


def write_points(
    points: PointSet, probabilities: np.ndarray, base: Path, npz: bool = False
) -> np.ndarray:
    """Write `base`_points.csv: x, y, z, class and the probability of every class of each point.

    With `npz`, the same as arrays in `base`_points.npz too. Gives the points of each class
    `int64 [K]`; probabilities are `float32 [N, K]`.
    """
    classes, count = probabilities.argmax(axis=1), probabilities.shape[1]
    names = ["x", "y", "z", "class", *(f"probability_{k}" for k in range(count))]
    table = np.column_stack([points.coordinates, classes, probabilities])
    with finished(base.with_name(f"{base.name}_points.csv")) as part:
        formats = ["%.3f"] * 3 + ["%d"] + ["%.4f"] * count
        np.savetxt(part, table, formats, delimiter=",", header=",".join(names), comments="")
    if npz:
        with finished(base.with_name(f"{base.name}_points.npz")) as part, open(part, "wb") as file:
            np.savez_compressed(
                file,
                coordinates=points.coordinates,
                classes=classes.astype(np.uint8),
                probabilities=probabilities,
            )
    return np.bincount(classes, minlength=count)

"""Files of predictions, written part by part with memory for a few tiles."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile

from ddpm_unet.data.points import PointSet
from ddpm_unet.data.preprocessing import Targets
from ddpm_unet.data.tiff import tiff_options
from ddpm_unet.errors import UserError
from ddpm_unet.files import finished
from ddpm_unet.inference import objects as tables
from ddpm_unet.inference.overlay import displayable
from ddpm_unet.inference.predictor import OpenFile
from ddpm_unet.inference.writers import OverlayImages, SavedPlanes, TiffPlanes

Files = Callable[[str], Path]
"""From the ending of a file's name to a path to write to."""


@contextmanager
def _files(base: Path) -> Iterator[tuple[Files, Callable[[Any], Any]]]:
    """Files of names that begin alike, and what closes writers; they appear when all went well."""
    with ExitStack() as names, ExitStack() as writers:  # which are closed before any file is named
        yield (
            lambda ending: names.enter_context(finished(base.with_name(f"{base.name}_{ending}"))),
            lambda writer: writers.enter_context(closing(writer)),
        )


def _planes(
    files: Files, name: str, source: OpenFile, channels: int, dtype: Any, format: str,
    colors: np.ndarray | None = None, names: Sequence[str] = (),
) -> SavedPlanes | TiffPlanes:  # fmt: skip
    """What writes so many planes of each page of a file: "npz", "png" or "tiff"; NIfTI as NIfTI.

    `colors` are those of a palette, `names` of the channels.
    """
    pages, *size = source.shape[:3]
    many = (channels,) * (channels > 1)
    shape = (*(pages,) * (pages > 1), *many, *size)
    if format == "npz":
        return SavedPlanes(files(f"{name}.npz"), "npz", shape, dtype)
    if source.space:
        shape = (pages, *many, *size)
        return SavedPlanes(files(f"{name}.nii.gz"), "nii.gz", shape, dtype, None, source.space)
    if format == "png":
        return SavedPlanes(files(f"{name}.png"), "png", (channels, *size), dtype, colors)
    axes = "Z" * (pages > 1) + "C" * (channels > 1) + "YX"
    return TiffPlanes(files(f"{name}.tif"), shape, dtype, axes, colors, source.spacing, names)


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
    (pages, height, width, _), num_classes = source.shape, len(colors)
    counts = np.zeros(num_classes, dtype=np.int64)
    kept = np.zeros(source.shape[:3], np.uint8) if objects and source.images else None
    inside = np.zeros(kept.shape, np.float32) if kept is not None and source.interior else None
    with _files(base) as (files, closed):
        kind = "tiff" if source.tiff else "png"
        mask = closed(_planes(files, "mask", source, 1, np.uint8, kind, colors))
        if overlay:
            path = files("overlay.tif" if pages > 1 else "overlay.png")
            drawn = closed(OverlayImages(path, (pages, height, width), colors))
        if probabilities:
            scores = closed(
                _planes(files, "probabilities", source, num_classes, np.float32, probabilities,
                        names=class_names)
            )  # fmt: skip
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
            found = _write_objects(files, source, kept, inside, base.name, class_names)
            if source.images is not None and source.images[0].ndim == 3:
                planes = [each[:2] for each in found]
                if "geojson" in outlines:
                    tables.write_geojson(planes, files("objects.geojson"), colors)
                if "imagej" in outlines:
                    tables.write_rois(planes, files("rois.zip"))
            for (labels, rows, image), classes in zip(found, kept, strict=True) if overlay else ():
                drawn.write_objects(image, classes, labels, rows)
    return counts


def _write_objects(
    files: Files, source: OpenFile, masks: np.ndarray, interiors: np.ndarray | None, name: str,
    class_names: Sequence[str],
) -> list[tuple[np.ndarray, list[tables.ObjectRow], np.ndarray]]:  # fmt: skip
    """Write the objects in masks `[planes, H, W]`, of each page by itself, or of one volume.

    Gives of each plane the numbers at its pixels, the objects that lie in it (of a volume those
    whose middle does) and its image.
    """
    images: Any = source.images
    volume = images[0].ndim == 4
    wholes = masks[None] if volume else masks
    inside = [None] * len(wholes) if interiors is None else interiors.reshape(wholes.shape)
    found = [source.label(*each) for each in zip(wholes, inside, strict=True)]
    rows = [
        tables.find_objects(*each, class_names) for each in zip(found, wholes, images, strict=True)
    ]
    tables.write_objects(rows, files("objects.csv"), name, source.spacing)
    labels = found[0] if volume else np.stack(found)
    dtype = np.uint16 if labels.max(initial=0) < 2**16 else np.uint32
    if source.space:
        with closing(_planes(files, "objects", source, 1, dtype, "nii.gz")) as writer:
            writer.write(0, 0, labels)
    else:
        path, shape = files("objects.tif"), masks.shape[len(masks) == 1 :]
        options = tiff_options(path, "ZYX"[-len(shape) :], source.spacing)
        pages = labels.reshape(shape).astype(dtype)
        tifffile.imwrite(path, pages, photometric="minisblack", compression="zlib", **options)
    if volume:
        images = displayable(images[0])
        rows = [[r for r in rows[0] if round(r.centroid[0]) == z] for z in range(len(labels))]
    return list(zip(labels, rows, images, strict=True))


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
    pixels = format == "png" and not source.space
    if pixels and pages > 1:
        raise UserError(f"{base.name}: has {pages} pages, a PNG holds one; take tiff")
    sums = np.zeros(channels)
    with _files(base) as (files, closed):
        dtype = targets.dtype if pixels else np.float32
        result = closed(_planes(files, "predicted", source, channels, dtype, format))
        for plane, row, _, unit in source.parts:
            values = targets.to_values(unit)
            sums += values.sum(axis=(0, 2, 3), dtype=np.float64)
            values = targets.to_pixels(unit) if pixels else values
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

"""Where predictions go: class masks, probabilities and overlays, written as rows come in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageDraw, ImageFont

from ddpm_unet.data.reading import split_ending
from ddpm_unet.data.tiff import tiff_options
from ddpm_unet.data.volumes import Space, write_nifti
from ddpm_unet.errors import UserError
from ddpm_unet.files import finished
from ddpm_unet.inference.objects import ObjectRow
from ddpm_unet.inference.overlay import class_colors, draw_overlay

_LARGEST_OVERLAY = 4096


def output_names(paths: Sequence[Path], out: Path) -> list[str]:
    """A name for each image's outputs: its stem, or its whole name where stems clash.

    Names never contain a folder, so nothing is written outside `out`.

    Raises:
        UserError: Two images of one name, or images that lie in `out` themselves, where they
            or their masks could be overwritten.
    """
    stems = [Path(split_ending(path)[0]).name for path in paths]
    stems = [re.sub(r"_\{[0-9,]+\}$", "", stem) for stem in stems]  # files of a channel each
    folded = [stem.casefold() for stem in stems]
    names = [
        stem if folded.count(stem.casefold()) == 1 else path.name
        for path, stem in zip(paths, stems, strict=True)
    ]
    seen: dict[str, Path] = {}
    for path, name in zip(paths, names, strict=True):
        if path.resolve().parent == out.resolve():
            raise UserError(f"{path}: lies in the output folder {out}; choose another with --out")
        other = seen.setdefault(name.casefold(), path)
        if other is not path:
            raise UserError(
                f"{path} and {other}: would be written under one name; segment them into "
                "different folders with --out"
            )
    return names


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """Make a folder to write to; after an error, what is empty of it is removed again.

    Raises:
        UserError: It cannot be made or written to.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        try:
            path.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written to ({error.strerror}); choose another with --out"
            ) from error
        yield path
    except BaseException:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise


class TiffPlanes:
    """An uncompressed TIFF of planes `[..., H, W]`, written in any order; memory holds none of it.

    Args:
        path: The file; above 4 GB it is a BigTIFF.
        shape: `[..., H, W]`.
        dtype: Of the values.
        axes: tifffile's letters for the axes, for instance "ZYX".
        colors: A colour per value, `uint8 [K, 3]`: the TIFF becomes a palette image.
        spacing: Millimetres along (planes,) rows and columns, where it is known.
        channels: Names of the channels.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: type,
        axes: str,
        colors: np.ndarray | None = None,
        spacing: Sequence[float] | None = None,
        channels: Sequence[str] = (),
    ) -> None:
        self.dtype, self.shape = np.dtype(dtype).newbyteorder("<"), shape
        options = tiff_options(path, axes, spacing, channels) | {"photometric": "minisblack"}
        if colors is not None:
            table = np.zeros((3, 256), dtype=np.uint16)
            table[:, : len(colors)] = colors.T.astype(np.uint16) * 257
            options |= {"photometric": "palette", "colormap": table}
        place = tifffile.imwrite(
            path, shape=shape, dtype=self.dtype, byteorder="<", returnoffset=True, **options
        )
        assert place is not None
        self._offset = place[0]
        self._file = open(path, "r+b")  # noqa: SIM115 (closed by close)

    def write(self, plane: int, row: int, values: np.ndarray) -> None:
        """Write `[planes, rows, W]` from a plane and row on; planes are counted in C order."""
        height, width = self.shape[-2:]
        for number, rows in enumerate(values, start=plane):
            self._file.seek(self._offset + (number * height + row) * width * self.dtype.itemsize)
            self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)

    def close(self) -> None:
        """End writing."""
        self._file.close()


class SavedPlanes:
    """Planes `[..., H, W]` written in any order to a nameless file, and saved when closed.

    Args:
        path: The file.
        kind: "npz", an array named `probabilities`; "nii.gz", a volume `[D, H, W]`, or
            `[D, K, H, W]` whose K becomes the file's fourth axis; "png", `[C, H, W]` of 8 bits
            (grey, RGB, a palette) or 16 (grey).
        shape: `[..., H, W]`.
        dtype: Of the values.
        colors: Of a PNG's palette, `uint8 [K, 3]`.
        space: Of NIfTI.
    """

    def __init__(
        self, path: Path, kind: str, shape: tuple[int, ...], dtype: Any,
        colors: np.ndarray | None = None, space: Space | None = None,
    ) -> None:  # fmt: skip
        self._path, self._kind, self._colors, self._space = path, kind, colors, space
        with TemporaryFile(dir=path.parent) as file:
            self._values: np.ndarray = np.memmap(file, dtype, "w+", shape=shape)

    def write(self, plane: int, row: int, values: np.ndarray) -> None:
        """Write `[planes, rows, W]` from a plane and row on; planes are counted in C order."""
        planes = self._values.reshape(-1, *self._values.shape[-2:])
        planes[plane : plane + len(values), row : row + values.shape[1]] = values

    def close(self) -> None:
        """Save them."""
        values = self._values
        if self._kind == "npz":
            with open(self._path, "wb") as file:
                np.savez_compressed(file, probabilities=values)
        elif self._space is not None:
            write_nifti(
                self._path, values.swapaxes(0, 1) if values.ndim == 4 else values, self._space
            )
        else:
            image = Image.fromarray(values[0] if len(values) == 1 else np.moveaxis(values, 0, -1))
            if self._colors is not None:
                image = image.convert("P")
                image.putpalette(self._colors.tobytes())
            image.save(self._path, format="PNG")


class OverlayImages:
    """Overlays, one page per plane, no side longer than 4096 pixels (every k-th pixel is drawn).

    Args:
        path: A PNG (one plane) or TIFF.
        shape: Planes, height, width.
        colors: `uint8 [K, 3]`.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], colors: np.ndarray) -> None:
        self._path, self._shape, self._colors = path, shape, colors
        self._every = -(-max(shape[1:]) // _LARGEST_OVERLAY)
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []
        self._tiff = tifffile.TiffWriter(path) if shape[0] > 1 else None

    def write(self, row: int, image: np.ndarray, classes: np.ndarray) -> None:
        """Take rows of the image, `[planes, rows, W, C]`, and of its classes, without C."""
        k = self._every
        skip = -row % k
        for rows, found in zip(image, classes, strict=True):
            self._rows.append((rows[skip::k, ::k].copy(), found[skip::k, ::k].copy()))
            if row + rows.shape[0] == self._shape[1]:
                self._draw()

    def write_objects(
        self, image: np.ndarray, classes: np.ndarray, labels: np.ndarray, rows: Sequence[ObjectRow]
    ) -> None:
        """Draw the objects of a page, `[H, W, C]` and `[H, W]`, each with its number."""
        k = self._every
        overlay = draw_overlay(
            image[::k, ::k], classes[::k, ::k], self._colors, labels=labels[::k, ::k]
        )
        drawn = Image.fromarray(overlay)
        pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(9 + max(overlay.shape) // 200)
        for row in rows:
            y, x = (float(axis) / k for axis in row.centroid[-2:])
            outside = {"stroke_width": 1, "stroke_fill": "black", "anchor": "mm"}
            pen.text((x, y), str(row.id), fill="white", font=font, **outside)  # type: ignore[arg-type]
        self._save(np.asarray(drawn))

    def close(self) -> None:
        """End writing."""
        if self._tiff is not None:
            self._tiff.close()

    def _draw(self) -> None:
        images, classes = map(np.concatenate, zip(*self._rows, strict=True))
        self._rows = []
        self._save(draw_overlay(images, classes, self._colors))

    def _save(self, overlay: np.ndarray) -> None:
        if self._tiff is not None:
            self._tiff.write(overlay, photometric="rgb", compression="zlib", metadata=None)
        else:
            Image.fromarray(overlay).save(self._path, format="PNG")


def write_image(path: Path, pixels: np.ndarray, spacing: Sequence[float] | None = None) -> None:
    """Write an image or volume as PNG, TIFF or NIfTI, by the ending of its name.

    Args:
        path: The file, complete as soon as it appears.
        pixels: `[H, W, C]` or `[D, H, W, C]`, uint8, uint16 or float32; a PNG holds 8 bits of 1, 3
            or 4 channels, or 16 bits of one.
        spacing: Millimetres from voxel to voxel along (depth,) height and width.
    """
    grey = pixels.shape[-1] == 1
    flat = pixels[..., 0] if grey else pixels
    with finished(path) as part:
        if path.name.endswith((".nii", ".nii.gz")):
            space = Space.of_spacing(spacing or (1.0, 1.0, 1.0), pixels.shape[:3])
            write_nifti(part, flat if grey else np.moveaxis(pixels, -1, 0), space)
        elif path.suffix == ".png":
            Image.fromarray(flat).save(part, "PNG")
        else:
            axes = "ZYX"[-pixels.ndim + 1 :] + "S" * (not grey)
            color = pixels.shape[-1] in (3, 4) and pixels.dtype.kind == "u"
            tifffile.imwrite(
                part,
                flat,
                photometric="rgb" if color else "minisblack",
                planarconfig=None if grey else "contig",
                compression="zlib",
                **tiff_options(path, axes, spacing),
            )


def image_ending(dims: int, channels: int, dtype: np.dtype | type, nifti: bool = False) -> str:
    """The ending of files that hold such images without loss."""
    if dims == 3:
        return ".nii.gz" if nifti else ".tif"
    kind = (np.dtype(dtype).name, channels)
    fits = kind in [("uint8", 1), ("uint8", 3), ("uint8", 4), ("uint16", 1)]
    return ".png" if fits else ".tif"


def save_masks(classes: np.ndarray, num_classes: int, paths: Sequence[Path]) -> None:
    """Write masks, class indices `[B, H, W]`, as palette PNGs."""
    colors = class_colors(num_classes)
    for rows, path in zip(classes, paths, strict=True):
        with finished(path) as part:
            image = SavedPlanes(part, "png", (1, *rows.shape), np.uint8, colors)
            image.write(0, 0, rows[None])
            image.close()

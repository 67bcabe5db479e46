"""Reads any image, stack or volume, exactly and with every fault named.

Names decide on NIfTI, OME-Zarr, CZI and ND2, the content on all else. See `tiff` and
`volumes` for these formats, and `images` for PNG, JPEG, WebP, GIF and BMP.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ddpm_unet.data.images import ImageFile, ImageInfo, PillowFile, faults_named
from ddpm_unet.data.tiff import MAGIC, TiffFile
from ddpm_unet.data.volumes import READERS, BioFile, NiftiFile, Space
from ddpm_unet.errors import UserError

NIFTI_EXTENSIONS = (".nii", ".nii.gz")
TIFF_EXTENSIONS = (".tif", ".tiff", ".ome.tif", ".ome.tiff")
BIO_EXTENSIONS = (*READERS, ".ome.zarr")
FLAT_EXTENSIONS = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".svs")
)
IMAGE_EXTENSIONS = FLAT_EXTENSIONS.union(TIFF_EXTENSIONS, BIO_EXTENSIONS)
VOLUME_EXTENSIONS = frozenset((*NIFTI_EXTENSIONS, *TIFF_EXTENSIONS, *BIO_EXTENSIONS))
CHANNEL_FILES = re.compile(r"(.+_)\{([0-9,]+)\}(.*)", re.DOTALL)
"""The path of an image in files of a channel each: case_{0000,0001}.png."""
Data = bytes | BinaryIO | None


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
        dims: 2 for images; 3 for volumes, of which a TIFF's pages are the slices.
        max_pixels: Refuse more than so many million pixels (of all slices) before decoding them.
        channels: Names or numbers of those wanted, see `channel_numbers`; empty for all.
        level: Of files of several resolutions which one, 0 the finest.
        keep_palette: Give a palette image's indices, `[H, W, 1]`, instead of its colours.
    """

    dims: int = 2
    max_pixels: float = 200.0
    channels: tuple[str, ...] = ()
    level: int = 0
    keep_palette: bool = False

    def read(self, path: str | Path, data: Data = None) -> np.ndarray:
        """Decode the `files_of` an image, or what one holds (`data`; its path is for messages).

        EXIF and TIFF orientation are applied, NIfTI is turned as in `NiftiFile`. Palettes become
        RGB, or RGBA where the palette has transparency. 1, 2 and 4 bits of grey become 0 to 255; 9
        to 15 bits keep their values. Half and double floats and integers of other types become
        float32, where that is exact for integers.

        Returns:
            `[(D,) H, W, C]` uint8, uint16 or float32 (finite), C = 1 grey, 2 grey and alpha, 3 RGB,
            4 RGBA, or any number in TIFFs and volumes.

        Raises:
            UserError: Damaged, too large, CMYK or of another colour space that has no single
                conversion to RGB, animated, of many pages where dims is 2, NaN or infinite.
        """
        if data is None and len(files := files_of(path)) > 1:
            alone = replace(self, channels=())
            return np.concatenate([alone.read(each) for each in files], axis=-1)
        with faults_named(path), self.opened(path, data) as file:
            file.check(self.max_pixels, self.dims)
            array = file.read(self.keep_palette)
            return array if self.dims == 3 else array[0]

    def info(self, path: str | Path, data: Data = None, in_pieces: bool = False) -> ImageInfo:
        """Shape and type from the header alone, with the errors it can show.

        With `in_pieces` it says so of images whose windows can be read alone; they may be of any
        size.
        """
        if data is None and len(files := files_of(path)) > 1:
            if self.channels:
                raise UserError(f"{path}: files hold a channel each; choose none by data.channels")
            check_together(files)
            first, *others = map(self.info, files)
            for name, other in zip(files[1:], others, strict=True):
                if (other.size, other.dtype) != (first.size, first.dtype):
                    raise UserError(f"{name}: has not the size and type of {files[0]}; resample it")
            count = first.channels + sum(other.channels for other in others)
            return replace(first, channels=count, colors=False)
        with faults_named(path), self.opened(path, data) as file:
            if not (in_pieces and file.info.in_pieces):
                file.check(self.max_pixels, self.dims)
            return file.info if in_pieces else replace(file.info, in_pieces=False)

    def window(self, path: str | Path, corner: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """`[(D,) H, W, C]` from the pixel `corner` on, of an image that is `in_pieces`.

        The file stays open for a while in each process.
        """
        with faults_named(path):
            return self._kept_open(path).window(corner, size)

    @contextmanager
    def opened(self, path: str | Path, data: Data = None) -> Iterator[ImageFile]:
        """An image, open for as long as the context lasts; what bioio reads for a while."""
        with faults_named(path):
            kept = data is None and is_bio(path)
            file = self._kept_open(path) if kept else self._open(path, data)
        try:
            yield file
        finally:
            file.close()

    def _kept_open(self, path: str | Path) -> ImageFile:
        """A file, until it changes or others have been asked for."""
        found = os.stat(path)
        return _kept_file(self, path, os.getpid(), found.st_mtime_ns, found.st_size)

    def _open(self, path: str | Path, data: Data = None) -> ImageFile:
        stack, level, named = self.dims == 3, self.level, data is None
        if named and is_bio(path):
            return BioFile(path, stack, level).choose(self.channels)
        if named and stack and is_nifti(path) and not level:
            return NiftiFile(path).choose(self.channels)
        file = BytesIO(data) if isinstance(data, bytes) else data or _opened(path)
        try:
            if not (named and stack and is_nifti(path)) and starts_as_tiff(file, path):
                return TiffFile(file, path, stack, level).choose(self.channels)
            if level:
                raise UserError(f"{path}: has no resolutions to choose from; set data.level to 0")
            if stack:
                raise UserError(f"{path}: is not a TIFF, and by its name no other volume")
            return PillowFile(file, path).choose(self.channels)
        except BaseException:
            file.close()
            raise


@lru_cache(maxsize=16)
def _kept_file(reading: Reading, path: str | Path, *version: int) -> ImageFile:
    return reading._open(path)


def read_image(
    path: str | Path, dims: int = 2, *, channels: Sequence[str] = (), **how: Any
) -> np.ndarray:
    """Decode one image, or of dims 3 one volume, as a `Reading` does."""
    return Reading(dims, channels=tuple(channels), **how).read(path)


def image_info(
    path: str | Path, dims: int = 2, *, channels: Sequence[str] = (), **how: Any
) -> ImageInfo:
    """Shape and type of an image or volume from its header, as a `Reading` has it."""
    return Reading(dims, channels=tuple(channels), **how).info(path)


def files_of(path: str | Path) -> list[str]:
    """The files of an image: of case_{0000,0001}.png one for each channel."""
    found = CHANNEL_FILES.fullmatch(str(path))
    return [f"{found[1]}{n}{found[3]}" for n in numbers_of(path)] if found else [str(path)]


def numbers_of(path: str | Path) -> tuple[str, ...]:
    """What tells the `files_of` an image apart; empty for one file."""
    found = CHANNEL_FILES.fullmatch(str(path))
    return tuple(found[2].split(",")) if found else ()


def check_together(files: Sequence[str]) -> None:
    """Refuse volumes whose voxels do not lie where those of the first one do."""
    space = volume_space(files[0])
    for path, other in zip(files[1:], map(volume_space, files[1:]), strict=True):
        if space and other and space.size == other.size and not space.agrees(other):
            raise UserError(
                f"{path} ({files[0]}): its voxels lie elsewhere than its image's (the affines "
                "differ); resample it"
            )


def volume_space(path: str | Path) -> Space | None:
    """Where the voxels of a NIfTI file lie; None for others, which do not say."""
    path = files_of(path)[0]
    with faults_named(path):
        return NiftiFile(path).space if is_nifti(path) else None


def split_ending(path: str | Path) -> tuple[str, str]:
    """A file's path without its ending, and that ending, such as ".nii.gz" or ".ome.tif"."""
    stem, ending = os.path.splitext(path)
    before, inner = os.path.splitext(stem)
    if ending.lower() == ".gz" or inner.lower() == ".ome":
        return before, inner + ending
    return stem, ending


def is_bio(path: str | Path) -> bool:
    """Whether a file, or a folder, is read through bioio, by its name."""
    return str(path).lower().endswith(tuple(READERS))


def is_nifti(path: str | Path) -> bool:
    """Whether a file is NIfTI by its name."""
    return str(path).lower().endswith(NIFTI_EXTENSIONS)


def is_tiff(path: str | Path) -> bool:
    """Whether a file is a TIFF by its first bytes; False if it cannot be read."""
    try:
        with _opened(path) as file:
            return file.read(4) in MAGIC
    except OSError:
        return False


def starts_as_tiff(file: BinaryIO, path: str | Path) -> bool:
    """Whether an open file is a TIFF by its first bytes; refuse an empty one."""
    head = file.read(4)
    if not head:
        raise UserError(f"{path}: is empty (0 bytes); replace or remove the file")
    file.seek(0)
    return head in MAGIC


def _opened(path: str | Path) -> BinaryIO:
    """Open a file; a pipe, which has no image yet and perhaps never, gives nothing."""
    waits_not = getattr(os, "O_NONBLOCK", 0)
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | waits_not))

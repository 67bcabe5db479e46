"""A fingerprint of images and masks: numbers by which a training is planned (Isensee 2021).

Lengths are in pixels of the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy import fft, ndimage
from torch.nn.functional import adaptive_avg_pool2d

from ddpm_unet.data.pixels import PERCENTILES, shown_size
from ddpm_unet.data.report import Report
from ddpm_unet.data.volumes import in_mm
from ddpm_unet.errors import UserError

MOST_IMAGES, MOST_PIXELS, CUT = 32, 64e6, 2048
"""Images that are looked at, their pixels in all, and the side of what is measured of each."""
HALF_OF_A_DISC = 0.404
"""Share of a disc's diameter by which it is shifted to cover half of itself."""


@dataclass(frozen=True)
class Look:
    """What one image shows.

    Args:
        size: (Depth,) height and width.
        channels: Without a constant alpha; 1 of grey that is saved as RGB.
        low, high: 0.5 and 99.5 percentile.
        top: The most that its type can hold; of floats that lie in [0, 1], 1, of others 0.
        brightest: 99.9 percentile.
        texture: See `texture_size`.
        thumbnail: Its grey values in 16 x 16 boxes.
        dtype: Of its pixels.
        spacing: Millimetres from pixel to pixel, where its file says it.
    """

    size: tuple[int, ...]
    channels: int
    low: float
    high: float
    top: float
    brightest: float
    texture: float
    thumbnail: np.ndarray = field(repr=False)
    dtype: str
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Objects:
    """What the masks show: widths of the connected pieces of each class, pixels, by class.

    Args:
        widths: See `widths`; of class 0 too.
        touching: Share of the objects that touch another, where masks number them.
        shares: Of the labelled pixels, by class.
    """

    widths: tuple[tuple[float, ...], ...]
    touching: float | None = None
    shares: tuple[float, ...] = ()

    @property
    def found(self) -> np.ndarray:
        """Widths of the pieces of all classes but 0."""
        return np.array([width for of in self.widths[1:] for width in of])

    @property
    def typical(self) -> float:
        """The median width of an object; 0 without any."""
        return float(np.median(self.found)) if len(self.found) else 0.0

    @property
    def small(self) -> float:
        """The width that 10 % of the objects are below."""
        return float(np.quantile(self.found, 0.1)) if len(self.found) else 0.0

    @property
    def detail(self) -> float:
        """The median width of the thinnest class, background too."""
        return min((float(np.median(of)) for of in self.widths if of), default=0.0)


@dataclass(frozen=True)
class Fingerprint:
    """What the images, and their masks if there are any, have in common."""

    count: int
    looks: tuple[Look, ...]
    objects: Objects | None = None

    def __str__(self) -> str:
        """What was found, in a line or two."""
        sizes = sorted({look.size for look in self.looks}, key=math.prod)
        shown = " to ".join(dict.fromkeys(shown_size(size) for size in (sizes[0], sizes[-1])))
        kinds = sorted({f"{k.channels} channel{'s' * (k.channels > 1)} {k.dtype}"
                        for k in self.looks})  # fmt: skip
        spacing = {look.spacing for look in self.looks if look.spacing}
        said = f"{self.count} images, {shown} pixels, {', '.join(kinds)}"
        said += "".join(f", {in_mm(each)}" for each in sorted(spacing)[:1])
        if self.objects:
            shares = ", ".join(f"{share:.1%}" for share in self.objects.shares)
            said += f"; classes cover {shares}; {len(self.objects.found)} objects of "
            said += f"{self.objects.typical:.3g} pixels (10 % below {self.objects.small:.3g})"
        return said

    @property
    def dims(self) -> int:
        """2 of images, 3 of volumes."""
        return len(self.looks[0].size)

    @property
    def channels(self) -> list[int]:
        """Every number of channels that some image has."""
        return sorted({look.channels for look in self.looks})

    def median(self, name: str) -> float:
        """Of a number of `looks`."""
        return float(np.quantile([getattr(look, name) for look in self.looks], 0.5))

    @property
    def least_side(self) -> int:
        """The shortest side of any image."""
        return min(min(look.size) for look in self.looks)

    @property
    def texture(self) -> float:
        """Median `texture_size`, pixels."""
        return self.median("texture")

    @property
    def neighbours_alike(self) -> bool:
        """Whether images that follow each other are more alike than distant ones, as slices are.

        By the correlation of `thumbnails` of images of one size: of each pair that follow each
        other, on average 0.2 higher than of images half of the set apart.
        """
        flat = [look.thumbnail.ravel() for look in self.looks]
        if len(flat) < 4 or len({look.size for look in self.looks}) > 1:
            return False
        with np.errstate(invalid="ignore"):  # images of one value
            like = np.nan_to_num(np.corrcoef(flat))
        near = [like[i, i + 1] for i in range(0, len(flat) - 1, 2)]
        apart = [like[i, (i + len(flat) // 2) % len(flat)] for i in range(len(flat))]
        return float(np.mean(near) - np.mean(apart)) > 0.2


def of_images(images: Any) -> Fingerprint:
    """Of a set of images, as `data.sources.source_images` opens one."""

    def look(number: int) -> Look:
        info = images.info(number)
        if not info.in_pieces:
            return look_at(images.read(number))
        side = [min(length, CUT) for length in info.size]
        corner = [(n - m) // 2 for n, m in zip(info.size, side, strict=True)]
        return replace(look_at(images.read_window(number, corner, side)), size=tuple(info.size))

    found = _fingerprint(len(images), look)
    if not found.looks:
        look(0)  # says what is wrong with it
    return found


def of_pairs(pairs: Sequence[Any]) -> Fingerprint:
    """Of the images of `data.pairs.find_pairs`, without their masks."""
    return _fingerprint(len(pairs), lambda n: look_at(pairs[n].read_image(), pairs[n].spacing))


def _fingerprint(count: int, look: Callable[[int], Look]) -> Fingerprint:
    """Of the first images that are looked at, until they are many pixels."""
    looks: list[Look] = []
    for number in chosen_images(count):
        with suppress(UserError):  # which the check, or the training, names
            looks.append(look(number))
        if sum(float(math.prod(each.size)) for each in looks) > MOST_PIXELS:
            break
    return Fingerprint(count, tuple(looks))


def objects_of(report: Report) -> Objects:
    """What some masks of a checked set hold."""
    code = report.mask_code()

    def masks() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        pixels = 0
        for number in chosen_images(len(report.pairs)):
            pair = report.pairs[number]
            values = code.read(pair.read_mask(), pair.mask_file)
            classes = code.classes(values, pair.mask_file)
            numbered = code.kind == "instances"
            yield classes, code.cells(values, classes, ()) if numbered else None
            pixels += classes.size
            if pixels > MOST_PIXELS:
                return

    return measure(masks(), code.num_classes)


def chosen_images(count: int) -> list[int]:
    """Numbers of the images to look at: pairs that follow each other, spread over the set."""
    if count <= MOST_IMAGES:
        return list(range(count))
    starts = np.linspace(0, count - 2, MOST_IMAGES // 2).round().astype(int)
    return sorted({int(number) for start in starts for number in (start, start + 1)})


def look_at(image: np.ndarray, spacing: tuple[float, ...] | None = None) -> Look:
    """What an image `[(D,) H, W, C]` of a file shows."""
    size, dtype, dims = image.shape[:-1], image.dtype, image.ndim - 1
    if image.shape[-1] in (2, 4) and np.ptp(image[..., -1]) == 0:
        image = image[..., :-1]
    if image.shape[-1] == 3 and dims == 2:
        part = image[::4, ::4].astype(np.float32)
        colour = np.abs(part - part.mean(axis=-1, keepdims=True)).mean()
        image = image if colour > 0.01 * max(float(np.ptp(part)), 1e-6) else image[..., :1]
    channels = image.shape[-1]
    middle = _middle(image, dims)
    grey = middle.mean(axis=-1, dtype=np.float32)
    values = grey if channels in (1, 3) else middle  # of what are no colours, a mean is nothing
    low, high, brightest = np.percentile(values, [*PERCENTILES, 99.9]).tolist()
    top = 0.0
    if dtype.kind == "u":
        top = float(np.iinfo(dtype).max)
    elif image.min() >= 0 and image.max() <= 1:
        top = 1.0
    plane = grey[len(grey) // 2] if dims == 3 else grey
    thumbnail = adaptive_avg_pool2d(torch.tensor(plane)[None], 16)[0].numpy()
    texture = texture_size(plane)
    return Look(size, channels, low, high, top, brightest, texture, thumbnail, dtype.name, spacing)


def _middle(array: np.ndarray, dims: int) -> np.ndarray:
    """What is measured of a large image."""
    cut = [slice((n - min(n, CUT)) // 2, (n + min(n, CUT)) // 2) for n in array.shape[:dims]]
    return array[tuple(cut)]


def texture_size(grey: np.ndarray) -> float:
    """The diameter of discs of whose images the autocorrelation falls to half at the same shift.

    Of an image `[H, W]`; white noise, which the autocorrelation has at no shift alone, does not
    count. 0 for an image of one value.
    """
    grey = grey[: 2 * (len(grey) // 2)]
    centred = grey - grey.mean()
    size = [2 * n for n in centred.shape]
    power = np.abs(fft.rfft2(centred, size)) ** 2
    found = fft.irfft2(power, size)[: len(centred), : centred.shape[1]]
    counts = np.outer(*(np.arange(n, 0, -1) for n in centred.shape))
    reach = max(2, min(centred.shape) // 2)
    along = (found[:reach, 0] / counts[:reach, 0] + found[0, :reach] / counts[0, :reach]) / 2
    if len(along) < 3 or along[1] <= 0:
        return 0.0
    along[0] = max(2 * along[1] - along[2], along[1])
    below = np.flatnonzero(along < along[0] / 2)
    if not len(below):
        return reach / HALF_OF_A_DISC
    after = int(below[0])
    before = along[after - 1]
    shift = after - 1 + (before - along[0] / 2) / (before - along[after])
    return float(shift / HALF_OF_A_DISC)


def widths(cells: np.ndarray) -> list[float]:
    """The width of each numbered piece, pixels: the diameter of the largest disc that it holds.

    Of a strip it is its breadth. Pieces that the image's end cuts count as far as they are seen.
    `cells` are numbers `int [*space]`, 0 for none.
    """
    found = []
    for number, box in enumerate(ndimage.find_objects(cells), start=1):
        if box is not None:
            inside = np.pad(cells[box] == number, 1)
            found.append(2 * float(ndimage.distance_transform_edt(inside).max()) - 1)
    return found


def measure(masks: Iterable[tuple[np.ndarray, np.ndarray | None]], num_classes: int) -> Objects:
    """The objects of masks: classes `int [(D,) H, W]` and, if they are numbered, their numbers."""
    every: list[list[float]] = [[] for _ in range(num_classes)]
    counts, touch = np.zeros(num_classes), []
    for classes, cells in masks:
        classes = _middle(classes, classes.ndim)
        counts += np.bincount(classes[classes >= 0].ravel(), minlength=num_classes)
        for number in range(num_classes):
            if number == 1 and cells is not None:
                pieces = _middle(cells, cells.ndim)
                nearest = ndimage.minimum_filter(np.where(pieces > 0, pieces, pieces.max()), 3)
                other = (ndimage.maximum_filter(pieces, 3) != pieces) | (nearest != pieces)
                present = np.unique(pieces[pieces > 0])
                touch += np.isin(present, pieces[other]).tolist()
                every[number] += widths(np.unique(pieces, return_inverse=True)[1].reshape(
                    pieces.shape
                ))  # fmt: skip
            elif (classes == number).any():
                every[number] += widths(ndimage.label(classes == number)[0])
    shares = tuple((counts / max(1, counts.sum())).tolist())
    touching = float(np.mean(touch)) if touch else None
    return Objects(tuple(map(tuple, every)), touching, shares)

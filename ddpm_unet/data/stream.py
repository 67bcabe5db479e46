"""The training stream: a map from positions to images, with no state.

A position is a place in the endless sequence of images that a run sees. What stands there is
a function of (seed, position), so any process can make any part of any batch, in any order.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from ddpm_unet.config import ValueRange
from ddpm_unet.data.image_set import ImageSet, Layout, PackedImages
from ddpm_unet.data.pixels import to_unit
from ddpm_unet.randomness import bits, integers

Batch = dict[str, Tensor]
Positions = Sequence[int] | np.ndarray
CORNER = ("front", "top", "left")
MIRRORED = ("reversed", "upended", "mirrored")
"""What is drawn for each axis, the last ones for images."""


class Windows(NamedTuple):
    """One window per position, turned anticlockwise in its last two axes, then mirrored."""

    image: np.ndarray
    """Its number, `int64 [B]`."""
    corner: np.ndarray
    """(Front,) top and left, `int64 [B, axes]`."""
    rot90: np.ndarray
    """Quarter turns, `int64 [B]`."""
    mirrored: np.ndarray
    """Along each axis, `bool [B, axes]`."""


class PositionStream(Dataset[Batch], ABC):
    """Batches by position over a data set, epoch after epoch in a new order.

    Everything that is drawn goes by the seed. `images.name(i)` is for messages.
    """

    def __init__(self, images: Any, seed: int, counts: np.ndarray) -> None:
        """Visit each item `counts` (`int64 [N]`) times in an epoch."""
        self.images, self.seed = images, seed
        self._bounds = np.cumsum(counts)

    @property
    def epoch_length(self) -> int:
        """Positions in an epoch."""
        return int(self._bounds[-1])

    @abstractmethod
    def __getitems__(self, positions: Positions) -> Batch:
        """The batch at these positions, whatever they are; "position" is `int64 [B]`."""

    def __getitem__(self, position: int) -> Batch:
        return {key: values[0] for key, values in self.__getitems__([position]).items()}

    def numbers(self, positions: Positions) -> np.ndarray:
        """The item at each position, `int64 [B]`."""
        items = order(self.seed, np.asarray(positions, dtype=np.int64), self.epoch_length)
        return np.searchsorted(self._bounds, items, side="right")

    def name(self, position: int) -> str:
        """The image from which a position is cut, for messages."""
        return self.images.name(int(self.numbers([position])[0]))

    @property
    def digest(self) -> str:
        """Of the data set, to tell whether it changed between stop and resume."""
        return self.images.digest


class _ImageWindows(PositionStream):
    """Windows of an image set by position; `images.fit` has their size."""

    images: ImageSet
    _choices: tuple[object, ...] = ()

    @property
    def laborious(self) -> bool:
        """Whether images are decoded for each window."""
        return not isinstance(self.images, PackedImages)

    @abstractmethod
    def windows(self, positions: Positions) -> Windows:
        """What stands at these positions."""

    @override
    def __getitems__(self, positions: Positions) -> Batch:
        """The batch at these positions.

        Returns:
            "image" `[B, C, (size,) size, size]`, uint8 for `to_model_range` or float32 in [-1, 1];
            "position" `int64 [B]`. If the set has them, "label" `int64 [B]`; "condition" `[B, K,
            (size,) size, size]` as the image is, or int16 classes (K = 1), cut and turned with it;
            "context" `float32 [B, L, C]` and "context_mask" `bool [B, L]`.
        """
        images, windows = self.images, self.windows(positions)
        batch = {"image": self._turned(images, windows, images.fit.value_range)}
        batch["position"] = torch.as_tensor(np.asarray(positions, dtype=np.int64))
        if images.condition is not None:
            batch["condition"] = self._turned(images.condition, windows, None)
        return batch | of_images(images, windows)

    def fingerprint(self) -> str:
        """A digest of all that decides the pixels of the windows."""
        images = self.images
        said = [type(self).__name__, images.fingerprint(), str(images.fit), *self._choices]
        return hashlib.blake2b(str(said).encode(), digest_size=16).hexdigest()

    def _turned(self, images: ImageSet, windows: Windows, value_range: ValueRange) -> Tensor:
        pixels = images.cut(windows.image, windows.corner, self.images.fit.size)
        orient_windows(pixels, windows)
        if pixels.dtype == np.uint16 or (pixels.dtype == np.uint8 and value_range):
            pixels = to_unit(pixels, value_range)
        return torch.from_numpy(pixels)


class Stream(_ImageWindows):
    """Random windows of an image set, endlessly: epoch after epoch in a new order.

    An epoch visits each image as often as windows fit in its area, each time at a random place.
    They are mirrored (resized images left-right only) and turned (volumes in the plane of their
    slices) at random.
    """

    def __init__(
        self, images: ImageSet, *, flips: bool = False, rot90: bool = False, seed: int = 0
    ) -> None:
        super().__init__(images, seed, window_counts(images.layout.sizes, images.fit.size))
        self.flips, self.rot90 = flips, rot90
        self._choices = (flips, rot90, seed)

    @override
    def windows(self, positions: Positions) -> Windows:
        positions = np.asarray(positions, dtype=np.int64)
        image, fit = self.numbers(positions), self.images.fit
        room = self.images.layout.sizes[image] - fit.size + 1
        flips = [self.flips and fit.mode == "crop"] * (room.shape[1] - 1) + [self.flips]
        return random_windows(room, image, flips, self.rot90, self.seed, positions)

    def describe(self) -> str:
        """One line on the images for the log, and on how they are changed."""
        said = self.images.describe()
        if not self.flips and not self.rot90:
            return said
        changes = ["mirrored"] * self.flips + ["turned by quarters"] * self.rot90
        cure = " and ".join(["flips"] * self.flips + ["rot90"] * self.rot90)
        where = f"(where left and up matter, set {cure} to false)"
        return f"{said}, {' and '.join(changes)} at random {where}"


class Grid(_ImageWindows):
    """Every window of a gapless grid over an image set, unturned, for validation.

    They come in a fixed shuffled order, so the first n are a fair sample of all images.
    """

    def __init__(self, images: ImageSet) -> None:
        self._windows = grid_windows(images.layout, images.fit.size)
        super().__init__(images, 0, np.ones(len(self._windows.image), np.int64))

    def __len__(self) -> int:
        return self.epoch_length

    @override
    def windows(self, positions: Positions) -> Windows:
        """The windows at these positions, which are below `len(self)`."""
        if any(not 0 <= position < len(self) for position in positions):
            raise IndexError(f"the grid has {len(self)} windows")
        numbers = super().numbers(positions)
        return Windows(*(values[numbers] for values in self._windows))

    @override
    def numbers(self, positions: Positions) -> np.ndarray:
        return self.windows(positions).image


def to_model_range(image: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1], on the tensor's device; float images are so already."""
    return image.float().div_(127.5).sub_(1) if image.dtype == torch.uint8 else image


def of_images(images: ImageSet, windows: Windows) -> Batch:
    """What windows have of their images as a whole: "label", "context" and "context_mask"."""
    batch = {}
    if images.labels is not None:
        batch["label"] = torch.from_numpy(images.labels[windows.image])
    if images.context is not None:
        batch["context"], batch["context_mask"] = images.context.take(windows.image)
    return batch


def window_counts(sizes: np.ndarray, size: int) -> np.ndarray:
    """How many windows images of sizes `int64 [N, axes]` count for: their area over a window's."""
    return np.maximum(1, sizes.prod(1) // size ** sizes.shape[1])


def order(seed: int, positions: np.ndarray, length: int) -> np.ndarray:
    """The item at each position of the stream, `int64 [B]` in [0, length).

    Epoch e, positions [e length, (e + 1) length), is a permutation that is a function of
    (seed, e): every item once. It costs one sort an epoch (0.1 s for a million items).
    """
    epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), length)
    items = np.empty_like(places)
    for epoch in set(epochs.tolist()):
        chosen = epochs == epoch
        items[chosen] = _permutation(seed, epoch, length)[places[chosen]]
    return items


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.argsort(bits(seed, f"data/order/{epoch}", np.arange(length)), kind="stable")


def random_windows(
    room: np.ndarray,
    image: np.ndarray,
    flips: Sequence[bool],
    rot90: bool,
    seed: int,
    positions: np.ndarray,
) -> Windows:
    """A random window of each position's image, `int64 [B]`, any place as likely as another.

    `room` is the number of places of a window along each axis, `int64 [B, axes]`, at least 1.
    """

    def draw(purpose: str, high: int | np.ndarray) -> np.ndarray:
        return integers(seed, f"data/{purpose}", positions, high)

    axes = room.shape[1]
    corner, mirrored = np.zeros_like(room), np.zeros(room.shape, dtype=bool)
    for axis, name in enumerate(CORNER[-axes:]):
        if (room[:, axis] > 1).any():
            corner[:, axis] = draw(name, room[:, axis])
    for axis, name in enumerate(MIRRORED[-axes:]):
        if flips[axis]:
            mirrored[:, axis] = draw(name, 2)
    quarters = draw("turns", 4) if rot90 else np.zeros(len(room), dtype=np.int64)
    return Windows(image, corner, quarters, mirrored)


def grid_windows(layout: Layout, size: int) -> Windows:
    """All windows of a gapless grid from each image's top left corner, as they are."""
    ranges = [[range(0, n - size + 1, size) for n in lengths] for lengths in layout.sizes.tolist()]
    places = np.array([(i, *corner) for i, each in enumerate(ranges) for corner in product(*each)])
    image, corner = places[:, 0], places[:, 1:]
    return Windows(image, corner, np.zeros_like(image), np.zeros(corner.shape, dtype=bool))


def orient_windows(batch: np.ndarray, windows: Windows) -> None:
    """Turn and mirror `[B, C, (S,) S, S]` in place.

    A quarter turn is a transposition followed by mirroring (numpy.rot90), so one masked
    assignment for it and one an axis do for all orientations.
    """
    mirrored = windows.mirrored.T
    if windows.rot90.any():
        transposed = windows.rot90 % 2 == 1
        batch[transposed] = batch[transposed].swapaxes(-1, -2)
        mirrored = mirrored.copy()
        mirrored[-2] ^= (windows.rot90 == 1) | (windows.rot90 == 2)
        mirrored[-1] ^= windows.rot90 >= 2
    values = batch.view(f"i{batch.itemsize}")  # torch mirrors several times as fast as numpy,
    for axis, chosen in enumerate(mirrored, start=2):  # but not all unsigned types
        if chosen.any():
            values[chosen] = torch.from_numpy(values[chosen]).flip(axis).numpy()

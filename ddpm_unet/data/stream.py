"""The training stream: a map from positions to windows of images, with no state."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from typing_extensions import override

from ddpm_unet.data.pixels import shown_size
from ddpm_unet.data.windows import (
    Batch,
    Positions,
    PositionStream,
    Windows,
    cut_window,
    orient_windows,
    orientation_in_words,
    rare_pixel,
    unturned,
)
from ddpm_unet.errors import UserError
from ddpm_unet.randomness import integers, seeded, uniform

Change = Callable[[dict[str, Any]], dict[str, Any]]
"""Of a sample, a dict of tv_tensors; it draws from torch's global generator."""
WHOLE = ("label", "context", "context_mask")
"""What belongs to an image as a whole."""
CORNER = ("front", "top", "left")
MIRRORED = ("reversed", "upended", "mirrored")
"""What is drawn for each axis, the last ones for images."""


class WindowSource(ABC):
    """Numbered images, and what belongs to each, of which a stream cuts windows.

    Attributes:
        window: Side of the windows; None for whole images, all of one size.
        sizes: (Depth,) height and width of each, `int64 [N, axes]`; None where only reading tells.
        resized: All are of the windows' size, and have a left and an up that only flips change.
        digest: Of the set, to tell whether it changed between stop and resume.
        laborious: Images are decoded, or deformed, for each window.
    """

    laborious = False
    window: int | None = None
    sizes: np.ndarray | None = None
    resized = False
    digest: str

    @abstractmethod
    def item(self, index: int) -> dict[str, Any]:
        """Arrays `[..., (D,) H, W]` to cut, "image" among them, and "label" and "context"."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What messages call an image."""

    @abstractmethod
    def describe(self) -> str:
        """One line for the log."""

    def stacked(self) -> dict[str, np.ndarray] | None:
        """The arrays of all items, `[N, C, (D,) H, W]`, where they lie so in memory."""
        return None

    def finished(self, key: str, windows: np.ndarray) -> np.ndarray:
        """Windows `[B, ...]` cut from what is called `key`, as a batch has them."""
        return windows

    def whole(self, numbers: np.ndarray, items: Sequence[dict[str, Any]]) -> Batch:
        """What the images have as a whole: "label" `int64 [B]`, "context" `[B, L, C]` with
        "context_mask" `bool [B, L]`.
        """
        return {}


class Stream(PositionStream):
    """Random windows of images, endlessly: epoch after epoch in a new order.

    An epoch visits each image as often as windows fit in its area, each time at a random place
    (once where sizes are not known). Those smaller than a window are mirrored at their borders.

    Args:
        images: Where to cut.
        size: Side of the windows, pixels; None for that of `images`.
        flips: Mirror along every axis at random; resized images left-right only.
        rot90: Turn by a random multiple of 90 degrees, volumes in the plane of their slices.
        seed: Of the run.
        change: A further change of each window, under torch's generator set by its position.
            The image is `Image` float32 in [-1, 1], what is cut with it `Mask`, but for conditions.
        margin: Pixels around a window that `change` may use, of which it leaves `context`.
        context: Pixels added on every side of the image alone, for a network that loses so many.
        floats: Images come as float32.
        foreground: Share of the windows that are moved to a pixel of a class of the "mask" that is
            rarer than the mean one in its image, each such class as likely as another (the
            oversampling of Isensee 2021).
    """

    def __init__(
        self,
        images: Any,
        *,
        size: int | None = None,
        flips: bool = False,
        rot90: bool = False,
        seed: int = 0,
        change: Change | None = None,
        margin: int = 0,
        context: int = 0,
        floats: bool = False,
        foreground: float = 0.0,
    ) -> None:
        if size and images.window not in (None, size):
            raise UserError(f"size {size}: the image set was opened for windows of {images.window}")
        self.size, self.change, self.floats = size or images.window, change, floats
        self.foreground = foreground
        self.margin, self.context = margin + context, context
        super().__init__(images, seed, self._counts(images))
        self.flips, self.rot90 = flips, rot90
        self._first: dict[str, Any] = {} if images.sizes is not None else images.item(0)
        shape = self._first["image"].shape[1:] if self._first else images.sizes[0]
        self.space = [self.size] * len(shape) if self.size else list(shape)
        if rot90 and self.space[-1] != self.space[-2]:
            raise UserError("rot90: turns square images only; give size, or set rot90 to False")

    def _counts(self, images: Any) -> np.ndarray:
        if images.sizes is None or self.size is None:
            return np.ones(len(images), np.int64)
        area = self.size ** images.sizes.shape[1]
        return np.maximum(1, images.sizes.prod(1) // area)

    @override
    def __getitems__(self, positions: Positions) -> Batch:
        """The batch at these positions, whatever they are.

        Returns:
            "image" `[B, C, *space]`, uint8 for `to_model_range` or float32 in [-1, 1]; "position"
            `int64 [B]`. What else the items have: "mask" `int64 [B, *space]`, "target", "weight",
            "interior", float32, "objects", int32, and "condition" `[B, K, *space]` as the image or
            int16 classes, cut and turned with it; "label" `int64 [B]`; "context" `float32
            [B, L, C]` and "context_mask" `bool [B, L]`.
        """
        positions = np.asarray(positions, dtype=np.int64)
        numbers, stacked = self.numbers(positions), None if self.margin else self.images.stacked()
        items = [] if stacked else [self._item(number) for number in numbers.tolist()]
        windows = self._windows(numbers, items, positions)
        space = [length + 2 * self.margin for length in self.space]
        batch: Batch = {}
        first = stacked or (items[0] if items else self.images.item(0))
        for key in (key for key in first if key not in WHOLE):
            if stacked:
                axes = tuple(range(-len(space), 0))
                every = sliding_window_view(stacked[key], space, axis=axes)
                planes = every[(numbers, slice(None), *windows.corner.T)]
            else:
                leading = first[key].shape[: -len(space)]
                planes = np.empty((len(items), *leading, *space), first[key].dtype)
                corners = (windows.corner - self.margin).tolist()
                for window, item, corner in zip(planes, items, corners, strict=True):
                    window[...] = cut_window(item[key], corner, space)
            orient_windows(planes, windows)
            batch[key] = torch.from_numpy(self.images.finished(key, planes))
        batch |= self.images.whole(numbers, items)
        if self.floats:
            batch["image"] = to_model_range(batch["image"])
        if self.change:
            batch = self._changed(batch, positions, self.change)
        if "mask" in batch:
            batch["mask"] = batch["mask"].long()
        return batch | {"position": torch.from_numpy(positions)}

    @property
    def laborious(self) -> bool:
        """Whether a window is worth processes of its own."""
        return getattr(self.images, "laborious", False)

    def windows(self, positions: Positions) -> Windows:
        """What stands at these positions."""
        positions = np.asarray(positions, dtype=np.int64)
        numbers, needed = self.numbers(positions), self.images.sizes is None or self.foreground
        items = [self._item(number) for number in numbers.tolist()] if needed else []
        return self._windows(numbers, items, positions)

    def describe(self) -> str:
        """One line on the images for the log, and on how they are changed."""
        said = self.images.describe()
        if self.size and self.images.window is None:
            said += f", windows of {shown_size(self.space)}"
        return said + orientation_in_words(self.flips, self.rot90)

    def fingerprint(self) -> str:
        """A digest of all that decides the pixels of the windows."""
        said = [type(self).__name__, self.images.fingerprint(), self.flips, self.rot90, self.seed]
        return hashlib.blake2b(str(said).encode(), digest_size=16).hexdigest()

    def _item(self, number: int) -> dict[str, Any]:
        """One item, which must be like the first where nothing else says that it is."""
        item = self.images.item(number)
        if self.images.sizes is not None:
            return item
        name, lengths = self.images.name(number), list(item["image"].shape[1:])
        if item.keys() != self._first.keys():
            missing = ", ".join(sorted(self._first.keys() ^ item.keys()))
            raise UserError(f"{name}: differs from the first item in its {missing}; give all alike")
        if self.size is None and lengths != self.space:
            raise UserError(
                f"{name}: is {shown_size(lengths)} pixels, the first image "
                f"{shown_size(self.space)}; give size, to train on windows, or resize the images"
            )
        if min(lengths) < min(self.space):
            raise UserError(
                f"{name}: {shown_size(lengths)} pixels hold no window of size {self.size}; "
                "lower size, or resize the images"
            )
        return item

    def _windows(
        self, numbers: np.ndarray, items: Sequence[dict[str, Any]], positions: np.ndarray
    ) -> Windows:
        """A random one of each image, any place as likely as another; of small ones the middle."""

        def draw(purpose: str, high: int | np.ndarray) -> np.ndarray:
            return integers(self.seed, f"data/{purpose}", positions, high)

        spare = self._spare(numbers, items)
        axes, room = spare.shape[1], np.maximum(spare, 0) + 1
        corner, mirrored = np.minimum(spare, 0) // 2, np.zeros(spare.shape, dtype=bool)
        for axis, name in enumerate(CORNER[-axes:]):
            if (room[:, axis] > 1).any():
                corner[:, axis] += draw(name, room[:, axis])
        if self.foreground:
            self._seek(corner, spare, items, positions)
        for axis, name in enumerate(MIRRORED[-axes:]):
            if self.flips and (axis == axes - 1 or not self.images.resized):
                mirrored[:, axis] = draw(name, 2)
        quarters = draw("turns", 4) if self.rot90 else np.zeros(len(spare), dtype=np.int64)
        return Windows(numbers, corner, quarters, mirrored)

    def _seek(
        self,
        corner: np.ndarray,
        spare: np.ndarray,
        items: Sequence[dict[str, Any]],
        positions: np.ndarray,
    ) -> None:
        """Move corners so that a share of the windows hold a pixel of a rare class."""
        names = ("foreground", "class", "pixel", *CORNER[-spare.shape[1] :])
        chance, kind, pixel, *within = (
            uniform(self.seed, f"data/foreground/{name}", positions) for name in names
        )
        back = (np.stack(within, axis=1) * self.space).astype(np.int64)
        least = np.minimum(spare, 0) // 2  # small images stay in the middle
        most = np.maximum(spare, least)
        for row in np.flatnonzero(chance < self.foreground).tolist():
            place = rare_pixel(items[row]["mask"], kind[row], pixel[row])
            if place is not None:
                corner[row] = np.clip(place - back[row], least[row], most[row])

    def _spare(self, numbers: np.ndarray, items: Sequence[dict[str, Any]]) -> np.ndarray:
        """By how much images are larger than a window, `int64 [B, axes]`."""
        if self.images.sizes is not None:
            return self.images.sizes[numbers] - self.space
        sizes = np.array([item["image"].shape[1:] for item in items], dtype=np.int64)
        return sizes.reshape(-1, len(self.space)) - self.space

    def _changed(self, batch: Batch, positions: np.ndarray, change: Change) -> Batch:
        from torchvision import tv_tensors  # takes a second

        changed = []
        for row, position in enumerate(positions.tolist()):
            item: dict[str, Any] = {key: values[row] for key, values in batch.items()}
            item["image"] = tv_tensors.Image(to_model_range(item["image"]))
            for key in item.keys() - {"image", "condition", *WHOLE}:
                item[key] = tv_tensors.Mask(item[key])
            with seeded(self.seed, "data/augment", position):
                changed.append(change(item))
        inner: Any = (..., *[slice(self.context, self.context + n) for n in self.space])
        cut = {key: inner if self.context and key != "image" else ... for key in changed[0]}
        return {
            key: torch.stack([torch.as_tensor(c[key]).as_subclass(Tensor)[part] for c in changed])
            for key, part in cut.items()
        }


class Grid(Stream):
    """Every window of a gapless grid over images, unturned, for validation.

    They come in a fixed shuffled order, so the first n are a fair sample of all images. Where the
    sizes of the images are not known it is the window in the middle of each.
    """

    def _counts(self, images: Any) -> np.ndarray:
        self._grid: Windows | None = None
        if images.sizes is None or self.size is None:
            return np.ones(len(images), np.int64)
        size, places = self.size, []
        for number, lengths in enumerate(images.sizes.tolist()):
            corners = product(*(range(0, n - size + 1, size) for n in lengths))
            places += [(number, *corner) for corner in corners]
        self._grid = unturned(np.array(places)[:, 0], np.array(places)[:, 1:])
        return np.ones(len(places), np.int64)

    def __len__(self) -> int:
        return self.epoch_length

    @override
    def numbers(self, positions: Positions) -> np.ndarray:
        """The images of the windows at these positions, which are below `len(self)`."""
        places = self._places(positions)
        return places if self._grid is None else self._grid.image[places]

    def _places(self, positions: Positions) -> np.ndarray:
        if any(not 0 <= position < len(self) for position in positions):
            raise IndexError(f"the grid has {len(self)} windows")
        return super().numbers(positions)

    def _windows(
        self, numbers: np.ndarray, items: Sequence[dict[str, Any]], positions: np.ndarray
    ) -> Windows:
        if self._grid is not None:
            places = self._places(positions)
            return Windows(*(values[places] for values in self._grid))
        return unturned(numbers, self._spare(numbers, items) // 2)


def to_model_range(image: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1], on the tensor's device; float images are so already."""
    return image.float().div_(127.5).sub_(1) if image.dtype == torch.uint8 else image


def to_bytes(image: Tensor) -> Tensor:
    """[-1, 1] to uint8; what lies beyond is clipped."""
    return ((image.float().clamp(-1, 1) + 1) * 127.5).round().byte()

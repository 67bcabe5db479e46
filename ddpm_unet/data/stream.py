"""The training stream: a map from positions to images, with no state.

A position is a place in the endless sequence of images that a run sees. What stands there is
a function of (seed, position), so any process can make any part of any batch, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddpm_unet.config import ImageDataConfig, ValueRange
from ddpm_unet.data.image_set import ImageSet
from ddpm_unet.data.pixels import to_unit
from ddpm_unet.data.windows import (
    Windows,
    grid_windows,
    order,
    orient_windows,
    random_windows,
    window_counts,
)

Batch = dict[str, Tensor]


class Stream(Dataset[Batch]):
    """Random windows of an image set, endlessly: epoch after epoch in a new order.

    An epoch visits each picture as often as windows fit in its area, each time at a random place.
    """

    def __init__(self, images: ImageSet, config: ImageDataConfig, seed: int) -> None:
        """Read nothing yet.

        Args:
            images: The pictures.
            config: Window size, flips, turns and value range.
            seed: Of the run.
        """
        self.images, self.config, self.seed = images, config, seed
        self._bounds = np.cumsum(window_counts(images.layout.sizes, config.size))

    @property
    def epoch_length(self) -> int:
        """Positions in an epoch."""
        return int(self._bounds[-1])

    def windows(self, positions: Sequence[int] | np.ndarray) -> Windows:
        """What stands at these positions."""
        positions = np.asarray(positions, dtype=np.int64)
        items = order(self.seed, positions, self.epoch_length)
        picture = np.searchsorted(self._bounds, items, side="right")
        sizes, config = self.images.layout.sizes[picture], self.config
        # Resized images are mirrored left-right only.
        flips = [config.flips and config.fit == "crop"] * (sizes.shape[1] - 1) + [config.flips]
        room = sizes - config.size + 1
        return random_windows(room, picture, flips, config.rot90, self.seed, positions)

    def __getitems__(self, positions: Sequence[int] | np.ndarray) -> Batch:
        """The batch at these positions, whatever they are.

        Returns:
            "image" `[B, C, (size,) size, size]`, uint8 for `to_model_range` or float32 in [-1, 1];
            "position" `int64 [B]`. If the set has them, "label" `int64 [B]`; "condition" `[B, K,
            (size,) size, size]` as the image is, or int16 classes (K = 1), cut and turned with it;
            "context" `float32 [B, L, C]` and "context_mask" `bool [B, L]`.
        """
        return _cut(self.images, self.windows(positions), self.config, positions)

    def __getitem__(self, position: int) -> Batch:
        return {key: values[0] for key, values in self.__getitems__([position]).items()}

    def name(self, position: int) -> str:
        """The picture from which a position is cut, for messages."""
        return self.images.name(int(self.windows([position]).picture[0]))


class Grid(Dataset[Batch]):
    """Every window of a gapless grid over an image set, unturned, for validation.

    They come in a fixed shuffled order, so the first n are a fair sample of all pictures.
    """

    def __init__(self, images: ImageSet, config: ImageDataConfig) -> None:
        """Read nothing yet."""
        self.images, self.config = images, config
        self._windows = grid_windows(images.layout, config.size)

    def __len__(self) -> int:
        return len(self._windows.picture)

    def windows(self, positions: Sequence[int] | np.ndarray) -> Windows:
        """The windows at these positions, which are below `len(self)`."""
        positions = np.asarray(positions, dtype=np.int64)
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"the grid has {len(self)} windows")
        items = order(0, positions, len(self))
        return Windows(*(values[items] for values in self._windows))

    def __getitems__(self, positions: Sequence[int] | np.ndarray) -> Batch:
        """The batch of these windows, as `Stream` gives it; positions are below `len(self)`."""
        return _cut(self.images, self.windows(positions), self.config, positions)

    def __getitem__(self, position: int) -> Batch:
        return {key: values[0] for key, values in self.__getitems__([position]).items()}

    def name(self, position: int) -> str:
        """The picture from which a window is cut, for messages."""
        return self.images.name(int(self.windows([position]).picture[0]))


def to_model_range(image: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1], on the tensor's device; float images are so already."""
    return image.float().div_(127.5).sub_(1) if image.dtype == torch.uint8 else image


def _cut(
    images: ImageSet,
    windows: Windows,
    config: ImageDataConfig,
    positions: Sequence[int] | np.ndarray,
) -> Batch:
    batch = {
        "image": _turned(images, windows, config.size, config.value_range),
        "position": torch.as_tensor(np.asarray(positions, dtype=np.int64)),
        **of_pictures(images, windows),
    }
    if images.condition is not None:
        batch["condition"] = _turned(images.condition, windows, config.size, None)
    return batch


def of_pictures(images: ImageSet, windows: Windows) -> Batch:
    """What windows have of their pictures as a whole: "label", "context" and "context_mask"."""
    batch = {}
    if images.labels is not None:
        batch["label"] = torch.from_numpy(images.labels[windows.picture])
    if images.context is not None:
        batch["context"], batch["context_mask"] = images.context.take(windows.picture)
    return batch


def _turned(images: ImageSet, windows: Windows, size: int, value_range: ValueRange) -> Tensor:
    pixels = images.cut(windows.picture, windows.corner, size)
    orient_windows(pixels, windows)
    if pixels.dtype == np.uint16 or (pixels.dtype == np.uint8 and value_range):
        pixels = to_unit(pixels, value_range)
    return torch.from_numpy(pixels)

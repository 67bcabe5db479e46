"""The training stream of a labelled set: from positions to augmented windows, with no state.

As `Stream` does for images: what stands at a position is a function of (seed, position).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ddpm_unet.data.augment import augmentation, cut_window, window_margin
from ddpm_unet.data.labelled import PairSet, whole_classes
from ddpm_unet.data.pixels import to_unit
from ddpm_unet.data.stream import CORNER, order, window_counts
from ddpm_unet.randomness import integers, seeded, uniform

Batch = dict[str, Tensor]


class PairStream(Dataset[Batch]):
    """Random windows of labelled images, endlessly: epoch after epoch in a new order.

    An epoch visits each image as often as windows fit in its area, each time at a random
    place. Images smaller than a window are mirrored at their borders.
    """

    def __init__(self, images: PairSet, seed: int, context: int = 0) -> None:
        """Read nothing yet.

        Args:
            images: The images; `images.config` has the window size and the augmentation.
            seed: Of the run.
            context: Pixels added on every side of a window, beyond the image mirrored, for a
                network that loses so many (Ronneberger 2015, figure 2).
        """
        self.images, self.seed, self.size = images, seed, images.config.size
        config = images.config
        self.context, self.dims = context, config.dims
        self.margin = context + window_margin(config.augment)
        self.augment = augmentation(config.augment, self.size + 2 * context, config.dims)
        self._bounds = np.cumsum(window_counts(images.sizes, self.size))

    @property
    def epoch_length(self) -> int:
        """Positions in an epoch."""
        return int(self._bounds[-1])

    def __getitems__(self, positions: Sequence[int] | np.ndarray) -> Batch:
        """The batch at these positions, whatever they are.

        Returns:
            "image" float32 `[B, C, side, side]` in [-1, 1], with side = size + 2 context; "mask"
            int64 `[B, size, size]`, IGNORE_INDEX where unlabelled; "position" int64 `[B]`; and
            "weight" float32 `[B, size, size]` if the set has border weights. Instead of a mask,
            a set of targets has "target" float32 `[B, K, size, size]`. Volumes have one more axis
            of these lengths.
        """
        positions = np.asarray(positions, dtype=np.int64)
        corners = zip(*(self._corners(side, positions) for side in range(self.dims)), strict=True)
        images = self._image(positions).tolist()
        windows = [
            self._window(*place) for place in zip(positions.tolist(), images, corners, strict=True)
        ]
        batch = {key: torch.stack([window[key] for window in windows]) for key in windows[0]}
        batch = {key: whole_classes(planes) for key, planes in batch.items()}
        return batch | {"position": torch.from_numpy(positions)}

    def __getitem__(self, position: int) -> Batch:
        return {key: values[0] for key, values in self.__getitems__([position]).items()}

    def name(self, position: int) -> str:
        """The image from which a position is cut, for messages."""
        return self.images.name(int(self._image(np.array([position]))[0]))

    def _image(self, positions: np.ndarray) -> np.ndarray:
        items = order(self.seed, positions, self.epoch_length)
        return np.searchsorted(self._bounds, items, side="right")

    def _corners(self, side: int, positions: np.ndarray) -> list[int]:
        """Where each window starts along a side; centred where the image is smaller than it."""
        spare = self.images.sizes[self._image(positions), side] - self.size
        purpose = f"data/{CORNER[-self.dims :][side]}"
        drawn = integers(self.seed, purpose, positions, np.maximum(spare, 0) + 1)
        return np.where(spare < 0, spare // 2, drawn).tolist()

    def _window(self, position: int, index: int, corner: Sequence[int]) -> Batch:
        item = self.images.item(index)
        place = [start - self.margin for start in corner], self.size + 2 * self.margin
        image = to_unit(cut_window(item.image, *place), self.images.config.value_range)
        sample: dict[str, Any] = {"image": tv_tensors.Image(image)}
        for key, planes in item.beside.items():
            sample[key] = tv_tensors.Mask(cut_window(planes, *place).copy())
        with seeded(self.seed, "data/augment", position):
            window = self.augment(sample)
        inner = (..., *[slice(self.context, self.context + self.size)] * self.dims)
        return {
            key: value.as_subclass(Tensor) if key == "image" else value.as_subclass(Tensor)[inner]
            for key, value in window.items()
        }


class WithExtra(Dataset[Batch]):
    """Each position has a window of the one stream or of the other: a function of (seed, position).

    Args:
        pairs: A stream.
        extra: Another, of the same seed, size and context.
        share: Of the positions that the other gets.
    """

    def __init__(self, pairs: PairStream, extra: PairStream, share: float) -> None:
        self.streams, self.share = (pairs, extra), share

    def __getitems__(self, positions: Sequence[int] | np.ndarray) -> Batch:
        """The batch at these positions, as `PairStream` gives it."""
        positions = np.asarray(positions, dtype=np.int64)
        chosen = self._chosen(positions)
        places = [np.flatnonzero(chosen == number) for number in (0, 1)]
        parts = [
            stream.__getitems__(positions[place])
            for stream, place in zip(self.streams, places, strict=True)
            if len(place)
        ]
        back = torch.from_numpy(np.argsort(np.concatenate(places)))
        return {key: torch.cat([part[key] for part in parts])[back] for key in parts[0]}

    def __getitem__(self, position: int) -> Batch:
        return {key: values[0] for key, values in self.__getitems__([position]).items()}

    def name(self, position: int) -> str:
        """The image from which a position is cut, for messages."""
        return self.streams[int(self._chosen(np.array([position]))[0])].name(position)

    def _chosen(self, positions: np.ndarray) -> np.ndarray:
        return (uniform(self.streams[0].seed, "extra", positions) < self.share).astype(int)

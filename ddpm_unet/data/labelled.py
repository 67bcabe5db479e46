"""Labelled images, or the parts of them that a split names, and the training stream over them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from typing_extensions import override

from ddpm_unet.data.augment import augmentation, cut_window, window_margin
from ddpm_unet.data.border import balanced_weights, border_weights, interiors
from ddpm_unet.data.check import Report
from ddpm_unet.data.pixels import convert_channels, nearest, normalised, resize, to_unit
from ddpm_unet.data.splits import AXES, Part
from ddpm_unet.data.stream import (
    Batch,
    Positions,
    PositionStream,
    random_windows,
    window_counts,
)
from ddpm_unet.randomness import seeded, uniform


@dataclass(frozen=True)
class Item:
    """One image at `data.scale`, `[C, (D,) H, W]` of its file's type, and what changes with it.

    `beside` are planes `[..., (D,) H, W]` by name: "mask", int16 classes with IGNORE_INDEX where
    unlabelled; "target", "weight" and "interior", float32; "objects", int32. `cells` are numbered,
    `int32 [(D,) H, W]`.
    """

    image: np.ndarray
    beside: dict[str, np.ndarray]
    cells: np.ndarray | None = None


class PairSet(Dataset[Batch], ABC):
    """A map-style data set of whole images and what lies beside them, to cut from.

    It is kept in memory if it fits in `data.memory_limit`, and read as needed otherwise. `sizes`
    are (depth,) height and width of each at `data.scale`, `int64 [N, dims]`.
    """

    def __init__(
        self, report: Report, parts: Sequence[Part] | None = None, bytes_beside: int = 0
    ) -> None:
        """Take the parts of a split, or all images, of a set that passed its check.

        `bytes_beside` are those of a pixel of what lies beside the images.
        """
        self.config, self.channels = report.config, report.channels
        whole: list[Part] = [{"name": name} for name in report.names]
        self.parts = whole if parts is None else list(parts)
        place = {name: index for index, name in enumerate(report.names)}
        chosen = [place[part["name"]] for part in self.parts]
        self._pairs = [report.pairs[index] for index in chosen]
        self.sizes = np.empty((len(chosen), self.config.dims), np.int64)
        for number, (size, index) in enumerate(zip(self.sizes, chosen, strict=True)):
            places = zip(report.sizes[index], self._cuts(number), strict=True)
            kept = [len(range(length)[cut]) for length, cut in places]
            size[:] = [max(1, round(length * self.config.scale)) for length in kept]
        nbytes = self.sizes.prod(1).sum() * (report.channels * report.dtype.itemsize + bytes_beside)
        self._kept: list[Item] | None = None
        if nbytes <= self.config.memory_limit * 1e6:
            self._kept = [self._decode(index) for index in range(len(self))]

    @abstractmethod
    def _decode(self, index: int) -> Item:
        """Read one item."""

    def __len__(self) -> int:
        return len(self.parts)

    def name(self, index: int) -> str:
        """What messages call an item."""
        return self._pairs[index].image_file

    def item(self, index: int) -> Item:
        """One image, as its file has it."""
        return self._decode(index) if self._kept is None else self._kept[index]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The image `[C, (D,) H, W]` in [-1, 1] and what lies beside it, masks as int64."""
        item = self.item(index)
        image = torch.from_numpy(to_unit(item.image, self.config.value_range))
        return {"image": image, **{n: _loss_type(torch.tensor(p)) for n, p in item.beside.items()}}

    def describe(self) -> str:
        """One line for the log."""
        pixels = self.sizes.prod(1).sum()
        what, scale = "images" if self.config.dims == 2 else "volumes", self.config.scale
        scaled = f" at data.scale {scale:g}" if scale != 1 else ""
        return f"{len(self)} labelled {what} or parts, {pixels:,} pixels{scaled}"

    def _cuts(self, index: int) -> tuple[slice, ...]:
        """(Planes,) rows and columns of a part."""
        return tuple(slice(*self.parts[index].get(a, [None])) for a in AXES[-self.config.dims :])

    def _planes(self, index: int) -> np.ndarray:
        """The image at `data.scale`."""
        pair, config = self._pairs[index], self.config
        image = normalised(pair.read_image(), config.value_range)
        image = convert_channels(image, config.channel_count, pair.image_file)
        return self._scaled(image, index)

    def _scaled(self, array: np.ndarray, index: int) -> np.ndarray:
        """The part of an image `[..., C]` that belongs to the set, `[C, ...]` at `data.scale`."""
        planes = np.ascontiguousarray(np.moveaxis(array[self._cuts(index)], -1, 0))
        return resize(planes, *self.sizes[index].tolist())


class LabelledSet(PairSet):
    """Whole images with their masks, for validation and to cut from.

    An item has "mask", int64 `[(D,) H, W]`, and, if they are asked for, "weight", float32 `[H, W]`,
    the border weights; "interior", float32, see `interiors`; and "objects", int32, the numbered
    objects of masks that number them.
    """

    def __init__(
        self,
        report: Report,
        parts: Sequence[Part] | None = None,
        border: bool = False,
        interior: bool = False,
        objects: bool = False,
    ) -> None:
        """As `PairSet`; `border` makes weights balanced over these parts (Ronneberger 2015)."""
        self._code = report.mask_code()
        self.class_names, self.border = self._code.class_names, border
        self.interior, self.objects = interior, objects and self._code.kind == "instances"
        super().__init__(report, parts, 2 + 8 * border + 8 * interior + 8 * objects)
        if self._kept is not None:
            self._kept = [self._with_weight(item) for item in self._kept]

    @override
    def item(self, index: int) -> Item:
        return self._with_weight(super().item(index))

    @cached_property
    def class_pixels(self) -> np.ndarray:
        """Pixels of each class, `int64 [K]`."""
        counts = np.zeros(len(self.class_names), np.int64)
        for index in range(len(self)):
            mask = super().item(index).beside["mask"]
            counts += np.bincount(mask[mask >= 0], minlength=len(counts))
        return counts

    @cached_property
    def small_object(self) -> int:
        """Pixels of an object that only 5 % are smaller than, of a set with `interior`."""
        items = (super(LabelledSet, self).item(index) for index in range(len(self)))
        areas = [np.bincount(item.cells.ravel())[1:] for item in items if item.cells is not None]
        present = np.concatenate(areas)
        return int(np.quantile(present[present > 0], 0.05)) if present.any() else 0

    @override
    def describe(self) -> str:
        shares = self.class_pixels / max(1, self.class_pixels.sum())
        classes = ", ".join(f"{n} {s:.1%}" for n, s in zip(self.class_names, shares, strict=True))
        return f"{super().describe()}: {classes}"

    @override
    def _decode(self, index: int) -> Item:
        pair, size, part = self._pairs[index], self.sizes[index].tolist(), self._cuts(index)
        values = nearest(self._code.read(pair.read_mask(), pair.mask_file)[part], size)
        mask, cells = self._code.classes(values, pair.mask_file), None
        beside = {"mask": mask}
        if self.border or self.interior or self.objects:
            cells = self._code.cells(values, mask, self.config.border_classes)
            beside |= {"interior": interiors(cells)} if self.interior else {}
            beside |= {"objects": cells} if self.objects else {}
        return Item(self._planes(index), beside, cells)

    def _with_weight(self, item: Item) -> Item:
        if not self.border or item.cells is None:
            return item
        w0, sigma, balanced = (
            self.config.border_w0, self.config.border_sigma, balanced_weights(self.class_pixels)
        )  # fmt: skip
        weight = border_weights(item.beside["mask"], item.cells, balanced, w0, sigma)
        return Item(item.image, {**item.beside, "weight": weight})


class TargetSet(PairSet):
    """Whole images with those to predict; an item has "target", float32 `[K, (D,) H, W]`."""

    def __init__(self, report: Report, parts: Sequence[Part] | None = None) -> None:
        self.targets = report.target_images()
        super().__init__(report, parts, 4 * self.targets.channels)

    @override
    def _decode(self, index: int) -> Item:
        target = self.targets.to_unit(self._pairs[index].read_mask())
        return Item(self._planes(index), {"target": self._scaled(target, index)})


class PairStream(PositionStream):
    """Random augmented windows of labelled images, endlessly, as `images.config` says.

    An epoch visits each image as often as windows fit in its area, each time at a random
    place. Images smaller than a window are mirrored at their borders. `context` are pixels added
    on every side of a window, for a network that loses so many (Ronneberger 2015, figure 2).
    """

    images: PairSet
    laborious = True  # each window is deformed by itself

    def __init__(self, images: PairSet, seed: int, context: int = 0) -> None:
        config = images.config
        self.size, self.dims, self.context = config.size, config.dims, context
        super().__init__(images, seed, window_counts(images.sizes, self.size))
        self.margin = context + window_margin(config.augment)
        self.augment = augmentation(config.augment, self.size + 2 * context, config.dims)

    @override
    def __getitems__(self, positions: Positions) -> Batch:
        """The batch at these positions, whatever they are.

        Returns:
            "image" float32 `[B, C, side, side]` in [-1, 1], with side = size + 2 context; "mask"
            int64 `[B, size, size]`, IGNORE_INDEX where unlabelled, and "weight" float32 if the set
            has border weights, or "target" float32 `[B, K, size, size]`; "position" int64 `[B]`.
            Volumes have one more axis of these lengths.
        """
        positions = np.asarray(positions, dtype=np.int64)
        images = self.numbers(positions)
        spare = self.images.sizes[images] - self.size
        room, flips = np.maximum(spare, 0) + 1, [False] * self.dims
        drawn = random_windows(room, images, flips, False, self.seed, positions)
        corners = np.where(spare < 0, spare // 2, drawn.corner)  # centred where it is too small
        places = zip(positions.tolist(), images.tolist(), corners.tolist(), strict=True)
        windows = [self._window(*place) for place in places]
        batch = {key: torch.stack([window[key] for window in windows]) for key in windows[0]}
        batch = {key: _loss_type(planes) for key, planes in batch.items()}
        return batch | {"position": torch.from_numpy(positions)}

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
            key: value.as_subclass(Tensor)[... if key == "image" else inner]
            for key, value in window.items()
        }


class WithExtra(Dataset[Batch]):
    """Windows of the one stream or, for a share of the positions, of another of the same seed."""

    laborious = True

    def __init__(self, pairs: PairStream, extra: PairStream, share: float) -> None:
        self.streams, self.share = (pairs, extra), share

    def __getitems__(self, positions: Positions) -> Batch:
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


def _loss_type(planes: Tensor) -> Tensor:
    """int16 classes as int64, which losses want; other planes as they are."""
    return planes.long() if planes.dtype == torch.int16 else planes

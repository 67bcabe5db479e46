"""Labelled images to cut windows from, and their training stream."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from ddpm_unet.data.augment import augmentation, window_margin
from ddpm_unet.data.cells import balanced_weights, border_weights, interiors, small_object
from ddpm_unet.data.pixels import convert_channels, nearest, normalised, resize, to_unit
from ddpm_unet.data.report import Report
from ddpm_unet.data.splits import AXES, Part
from ddpm_unet.data.stream import Stream, WindowSource
from ddpm_unet.data.windows import Batch, Positions
from ddpm_unet.randomness import uniform

Item = dict[str, np.ndarray]


class PairSet(Dataset[Batch], WindowSource):
    """A map-style data set of whole images and what lies beside them, at `data.scale`, to cut from.

    It is kept in memory if it fits in `data.memory_limit`, and read as needed otherwise.
    """

    sizes: np.ndarray
    laborious = True

    def __init__(
        self, report: Report, parts: Sequence[Part] | None = None, bytes_beside: int = 0
    ) -> None:
        """Take the parts of a split, or all images, of a set that passed its check.

        `bytes_beside` are those of a pixel of what lies beside the images.
        """
        self.config, self.channels = report.config, report.channels
        self.window = self.config.size
        whole: list[Part] = [{"name": name} for name in report.names]
        self.parts = whole if parts is None else list(parts)
        place = {name: index for index, name in enumerate(report.names)}
        chosen = [place[part["name"]] for part in self.parts]
        self._pairs = [report.pairs[index] for index in chosen]
        self.sizes = np.empty((len(chosen), self.config.axes), np.int64)
        for number, (size, index) in enumerate(zip(self.sizes, chosen, strict=True)):
            places = zip(report.sizes[index], self._cuts(number), strict=True)
            kept = [len(range(length)[cut]) for length, cut in places]
            size[:] = np.maximum(1, np.round(np.multiply(kept, report.scales(report.pairs[index]))))
        nbytes = self.sizes.prod(1).sum() * (report.channels * report.dtype.itemsize + bytes_beside)
        self._kept: list[Item] | None = None
        if nbytes <= self.config.memory_limit * 1e6:
            self._kept = [self._decode(index) for index in range(len(self))]

    @abstractmethod
    def _decode(self, index: int) -> Item:
        """Read one item, to which only its numbered "cells" may be added, that none sees."""

    def __len__(self) -> int:
        return len(self.parts)

    @override
    def name(self, index: int) -> str:
        return self._pairs[index].image_file

    @override
    def item(self, index: int) -> Item:
        """One image `[C, (D,) H, W]` of its file's type, and by name what changes with it: "mask",
        int16 classes with IGNORE_INDEX where unlabelled, "objects", int32, others float32.
        """
        return self._decode(index) if self._kept is None else self._kept[index]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The image `[C, (D,) H, W]` in [-1, 1] and what lies beside it, masks as int64."""
        found = {n: torch.tensor(self.finished(n, a)) for n, a in self.item(index).items()}
        return {n: x.long() if n == "mask" else x for n, x in found.items()}

    @override
    def finished(self, key: str, windows: np.ndarray) -> np.ndarray:
        return to_unit(windows, self.config.value_range) if key == "image" else windows

    @override
    def describe(self) -> str:
        pixels = self.sizes.prod(1).sum()
        what, scale = "images" if self.config.axes == 2 else "volumes", self.config.scale
        scaled = f" at data.scale {scale:g}" if scale != 1 else ""
        return f"{len(self)} labelled {what} or parts, {pixels:,} pixels{scaled}"

    def _cuts(self, index: int) -> tuple[slice, ...]:
        """(Planes,) rows and columns of a part."""
        return tuple(slice(*self.parts[index].get(a, [None])) for a in AXES[-self.config.axes :])

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
            self._kept = [self._weighted(item) for item in self._kept]

    @override
    def item(self, index: int) -> Item:
        found = self._weighted(super().item(index))
        return {name: planes for name, planes in found.items() if name != "cells"}

    @cached_property
    def class_pixels(self) -> np.ndarray:
        """Pixels of each class, `int64 [K]`."""
        counts = np.zeros(len(self.class_names), np.int64)
        for index in range(len(self)):
            mask = super().item(index)["mask"]
            counts += np.bincount(mask[mask >= 0], minlength=len(counts))
        return counts

    @cached_property
    def small_object(self) -> int:
        """Pixels of an object that only 5 % are smaller than, of a set with `interior`."""
        return small_object(super(LabelledSet, self).item(i)["cells"] for i in range(len(self)))

    @override
    def describe(self) -> str:
        shares = self.class_pixels / max(1, self.class_pixels.sum())
        classes = ", ".join(f"{n} {s:.1%}" for n, s in zip(self.class_names, shares, strict=True))
        return f"{super().describe()}: {classes}"

    @override
    def _decode(self, index: int) -> Item:
        pair, size, part = self._pairs[index], self.sizes[index].tolist(), self._cuts(index)
        values = nearest(self._code.read(pair.read_mask(), pair.mask_file)[part], size)
        mask = self._code.classes(values, pair.mask_file)
        item = {"image": self._planes(index), "mask": mask}
        if self.border or self.interior or self.objects:
            cells = item["cells"] = self._code.cells(values, mask, self.config.border_classes)
            item |= {"interior": interiors(cells)} if self.interior else {}
            item |= {"objects": cells} if self.objects else {}
        return item

    def _weighted(self, item: Item) -> Item:
        if not self.border or "weight" in item:
            return item
        w0, sigma, balanced = (
            self.config.border_w0, self.config.border_sigma, balanced_weights(self.class_pixels)
        )  # fmt: skip
        return {**item, "weight": border_weights(item["mask"], item["cells"], balanced, w0, sigma)}


class TargetSet(PairSet):
    """Whole images with those to predict; an item has "target", float32 `[K, (D,) H, W]`."""

    def __init__(self, report: Report, parts: Sequence[Part] | None = None) -> None:
        self.targets = report.target_images()
        super().__init__(report, parts, 4 * self.targets.channels)

    @override
    def _decode(self, index: int) -> Item:
        target = self.targets.to_unit(self._pairs[index].read_mask())
        return {"image": self._planes(index), "target": self._scaled(target, index)}


def pair_stream(images: PairSet, seed: int, context: int = 0) -> Stream:
    """The training stream of labelled images, augmented as their settings say.

    `context` are pixels added on every side of a window, for a network that loses so many
    (Ronneberger 2015, figure 2).
    """
    config = images.config
    made = (config.augment, config.size + 2 * context, config.axes)
    return Stream(
        images, seed=seed, change=augmentation(*made), margin=window_margin(*made),
        context=context, foreground=config.foreground,
    )  # fmt: skip


class WithExtra(Dataset[Batch]):
    """Windows of the one stream or, for a share of the positions, of another of the same seed."""

    laborious = True

    def __init__(self, pairs: Stream, extra: Stream, share: float) -> None:
        self.streams, self.share = (pairs, extra), share

    def __getitems__(self, positions: Positions) -> Batch:
        """The batch at these positions, as they give it."""
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

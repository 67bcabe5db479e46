"""Labelled images, or the parts of them that a split names, ready to be trained on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from ddpm_unet.data.border import balanced_weights, border_weights
from ddpm_unet.data.check import Report
from ddpm_unet.data.pixels import convert_channels, nearest, resize, to_unit
from ddpm_unet.data.splits import AXES, Part


@dataclass(frozen=True)
class Item:
    """One image or volume at `data.scale`, and what is cut, turned and deformed with it.

    Attributes:
        image: `[C, (D,) H, W]` uint8, uint16 or float32, as in its file.
        beside: Planes `[..., (D,) H, W]` by name: "mask", int16 classes with IGNORE_INDEX where
            unlabelled; "target" and "weight", float32, which may be interpolated.
        cells: Numbered cells, `int32 [H, W]`, from which weights are still to be made.
    """

    image: np.ndarray
    beside: dict[str, np.ndarray]
    cells: np.ndarray | None = None


class PairSet(Dataset[dict[str, Tensor]], ABC):
    """A map-style data set of whole images and what lies beside them, to cut from.

    It is kept in memory if it fits in `data.memory_limit`, and read as needed otherwise.

    Attributes:
        config: The data settings.
        parts: What the images are.
        sizes: (Depth,) height and width of each at `data.scale`, `int64 [N, dims]`.
        channels: Channels of the images.
    """

    def __init__(
        self, report: Report, parts: Sequence[Part] | None = None, bytes_beside: int = 0
    ) -> None:
        """Take the images of a set that passed its check.

        Args:
            report: From `check_pairs`.
            parts: Those of a split; None for all images.
            bytes_beside: Of a pixel of what lies beside the images.

        Raises:
            UserError: The report has faults, or knows no such part.
        """
        report.stop_at_faults()
        self.config, self.channels = report.config, report.channels
        whole: list[Part] = [{"name": name} for name in report.names]
        self.parts = whole if parts is None else list(parts)
        place = {name: index for index, name in enumerate(report.names)}
        chosen = [place[part["name"]] for part in self.parts]
        self._pairs = [report.pairs[index] for index in chosen]
        dims = self.config.dims
        self.sizes = np.empty((len(chosen), dims), np.int64)
        for size, index, part in zip(self.sizes, chosen, self.parts, strict=True):
            places = zip(report.sizes[index], _cuts(part, dims), strict=True)
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
        """What messages call a item."""
        return self._pairs[index].image_file

    def item(self, index: int) -> Item:
        """One image, as its file has it."""
        return self._decode(index) if self._kept is None else self._kept[index]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One whole item.

        Returns:
            "image" float32 `[C, (D,) H, W]` in [-1, 1] and what lies beside it, classes as int64.
        """
        item = self.item(index)
        image = torch.from_numpy(to_unit(item.image, self.config.value_range))
        beside = {name: torch.tensor(planes) for name, planes in item.beside.items()}
        return {"image": image, **{name: whole_classes(p) for name, p in beside.items()}}

    def describe(self) -> str:
        """One line for the log."""
        pixels = self.sizes.prod(1).sum()
        what, scale = "pictures" if self.config.dims == 2 else "volumes", self.config.scale
        scaled = f" at data.scale {scale:g}" if scale != 1 else ""
        return f"{len(self)} labelled {what} or parts, {pixels:,} pixels{scaled}"

    def _planes(self, index: int) -> np.ndarray:
        """The image at `data.scale`."""
        pair, config = self._pairs[index], self.config
        image = convert_channels(pair.read_image(), config.channels, pair.image_file)
        return self._scaled(image, index)

    def _scaled(self, array: np.ndarray, index: int) -> np.ndarray:
        """The part of an image `[..., C]` that belongs to the set, `[C, ...]` at `data.scale`."""
        part = _cuts(self.parts[index], self.config.dims)
        planes = np.ascontiguousarray(np.moveaxis(array[part], -1, 0))
        return resize(planes, *self.sizes[index].tolist())


class LabelledSet(PairSet):
    """Whole images with their masks, for validation and to cut from.

    An item has "mask", int64 `[(D,) H, W]`, and "weight", float32 `[H, W]`, if there are border
    weights.

    Attributes:
        class_names: Name of each class.
    """

    def __init__(
        self, report: Report, parts: Sequence[Part] | None = None, border: bool = False
    ) -> None:
        """As `PairSet`.

        Args:
            report: From `check_pairs`.
            parts: Those of a split; None for all images.
            border: Make border weights, balanced over these parts (Ronneberger 2015, eq. 2).

        Raises:
            UserError: The report has faults, or knows no such part.
        """
        self._code = report.mask_code()
        self.class_names, self.border = self._code.class_names, border
        super().__init__(report, parts, 2 + 8 * border)
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

    @override
    def describe(self) -> str:
        shares = self.class_pixels / max(1, self.class_pixels.sum())
        classes = ", ".join(f"{n} {s:.1%}" for n, s in zip(self.class_names, shares, strict=True))
        return f"{super().describe()}: {classes}"

    @override
    def _decode(self, index: int) -> Item:
        pair, size = self._pairs[index], self.sizes[index].tolist()
        part = _cuts(self.parts[index], self.config.dims)
        values = self._code.read(pair.read_mask(), pair.mask_file)
        mask = self._code.classes(values, pair.mask_file)
        border = self.config.border_classes
        cells = self._code.cells(values, mask, border) if self.border else None
        return Item(
            self._planes(index),
            {"mask": nearest(mask[part], size)},
            None if cells is None else nearest(cells[part], size),
        )

    def _with_weight(self, item: Item) -> Item:
        if item.cells is None:
            return item
        weight = border_weights(
            item.beside["mask"],
            item.cells,
            balanced_weights(self.class_pixels),
            self.config.border_w0,
            self.config.border_sigma,
        )
        return Item(item.image, {**item.beside, "weight": weight})


class TargetSet(PairSet):
    """Whole images with those to predict; an item has "target", float32 `[K, (D,) H, W]`.

    Attributes:
        targets: What these are.
    """

    def __init__(self, report: Report, parts: Sequence[Part] | None = None) -> None:
        """As `PairSet`."""
        self.targets = report.target_images()
        super().__init__(report, parts, 4 * self.targets.channels)

    @override
    def _decode(self, index: int) -> Item:
        target = self.targets.to_unit(self._pairs[index].read_mask())
        return Item(self._planes(index), {"target": self._scaled(target, index)})


def _cuts(part: Part, dims: int) -> tuple[slice, ...]:
    """(Planes,) rows and columns of a part."""
    return tuple(slice(*part.get(axis, [None])) for axis in AXES[-dims:])


def whole_classes(planes: Tensor) -> Tensor:
    """int16 classes as int64, which losses want; other planes as they are."""
    return planes.long() if planes.dtype == torch.int16 else planes

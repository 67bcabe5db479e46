"""Labelled pictures, or the parts of them that a split names, ready to be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddpm_unet.data.border import balanced_weights, border_weights
from ddpm_unet.data.check import Report
from ddpm_unet.data.fitting import nearest, resize
from ddpm_unet.data.pixels import convert_channels, to_unit
from ddpm_unet.data.splits import AXES, Part


@dataclass(frozen=True)
class LabelledPicture:
    """One picture or volume at `data.scale`; volumes have a depth D before H.

    Attributes:
        image: `[C, H, W]` uint8, uint16 or float32, as in its file.
        mask: Classes, `int16 [H, W]`, IGNORE_INDEX where unlabelled.
        cells: Numbered cells, `int32 [H, W]`, from which weights are still to be made.
        weight: Border weights, `float32 [H, W]`, if they are wanted.
    """

    image: np.ndarray
    mask: np.ndarray
    cells: np.ndarray | None = None
    weight: np.ndarray | None = None


class LabelledSet(Dataset[dict[str, Tensor]]):
    """A map-style data set of whole pictures with their masks, for validation and to cut from.

    It is kept in memory if it fits in `data.memory_limit`, and read as needed otherwise.

    Attributes:
        config: The data settings.
        parts: What the pictures are.
        sizes: (Depth,) height and width of each at `data.scale`, `int64 [N, dims]`.
        channels: Channels of the images.
        class_names: Name of each class.
    """

    def __init__(
        self, report: Report, parts: Sequence[Part] | None = None, border: bool = False
    ) -> None:
        """Take the pictures of a set that passed its check.

        Args:
            report: From `check_pairs`.
            parts: Those of a split; None for all pictures.
            border: Make border weights, balanced over these parts (Ronneberger 2015, eq. 2).

        Raises:
            UserError: The report has faults, or knows no such part.
        """
        self._code = report.stop_at_faults()
        self.config, self.channels = report.config, report.channels
        self.class_names, self.border = self._code.class_names, border
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
        nbytes = self.sizes.prod(1).sum() * (report.bytes_per_pixel + 2 + 8 * border)
        self._kept: list[LabelledPicture] | None = None
        if nbytes <= self.config.memory_limit * 1e6:
            self._kept = [self._decode(index) for index in range(len(self))]
            self._kept = [self._with_weight(picture) for picture in self._kept]

    def __len__(self) -> int:
        return len(self.parts)

    def name(self, index: int) -> str:
        """What messages call a picture."""
        return self._pairs[index].image_file

    def picture(self, index: int) -> LabelledPicture:
        """One picture, as its file has it."""
        if self._kept is not None:
            return self._kept[index]
        return self._with_weight(self._decode(index))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One whole picture.

        Returns:
            "image" float32 `[C, (D,) H, W]` in [-1, 1], "mask" int64 `[(D,) H, W]`, and "weight"
            float32 `[H, W]` if there are border weights.
        """
        picture = self.picture(index)
        item = {
            "image": torch.from_numpy(to_unit(picture.image, self.config.value_range)),
            "mask": torch.from_numpy(picture.mask.astype(np.int64)),
        }
        return item if picture.weight is None else item | {"weight": torch.tensor(picture.weight)}

    @cached_property
    def class_pixels(self) -> np.ndarray:
        """Pixels of each class, `int64 [K]`."""
        counts = np.zeros(len(self.class_names), np.int64)
        for index in range(len(self)):
            mask = (self._kept[index] if self._kept else self._decode(index)).mask
            counts += np.bincount(mask[mask >= 0], minlength=len(counts))
        return counts

    def describe(self) -> str:
        """One line for the log."""
        shares = self.class_pixels / max(1, self.class_pixels.sum())
        classes = ", ".join(f"{n} {s:.1%}" for n, s in zip(self.class_names, shares, strict=True))
        pixels = self.sizes.prod(1).sum()
        what = "pictures" if self.config.dims == 2 else "volumes"
        return f"{len(self)} labelled {what} or parts, {pixels:,} pixels: {classes}"

    def _decode(self, index: int) -> LabelledPicture:
        pair, config = self._pairs[index], self.config
        part, size = _cuts(self.parts[index], config.dims), self.sizes[index].tolist()
        image = convert_channels(pair.read_image(), config.channels, pair.image_file)
        planes = np.ascontiguousarray(np.moveaxis(image[part], -1, 0))
        values = self._code.read(pair.read_mask(), pair.mask_file)
        mask = self._code.classes(values, pair.mask_file)
        cells = self._code.cells(values, mask, config.border_classes) if self.border else None
        return LabelledPicture(
            resize(planes, *size),
            nearest(mask[part], size),
            None if cells is None else nearest(cells[part], size),
        )

    def _with_weight(self, picture: LabelledPicture) -> LabelledPicture:
        if picture.cells is None:
            return picture
        weight = border_weights(
            picture.mask,
            picture.cells,
            balanced_weights(self.class_pixels),
            self.config.border_w0,
            self.config.border_sigma,
        )
        return LabelledPicture(picture.image, picture.mask, weight=weight)


def _cuts(part: Part, dims: int) -> tuple[slice, ...]:
    """(Planes,) rows and columns of a part."""
    return tuple(slice(*part.get(axis, [None])) for axis in AXES[-dims:])

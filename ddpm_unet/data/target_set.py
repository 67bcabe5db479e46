"""Images and the pictures to predict from them, ready to be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from ddpm_unet.data.labelled import PairSet
from ddpm_unet.data.report import Report
from ddpm_unet.data.splits import Part


@dataclass(frozen=True)
class TargetPicture:
    """One picture or volume at `data.scale`; volumes have a depth D before H.

    Attributes:
        image: `[C, H, W]` uint8, uint16 or float32, as in its file.
        target: `float32 [K, H, W]` in [-1, 1].
    """

    image: np.ndarray
    target: np.ndarray

    @property
    def beside(self) -> dict[str, np.ndarray]:
        """What is cut, turned and deformed with the image, by name."""
        return {"target": self.target}


class TargetSet(PairSet[TargetPicture]):
    """Whole pictures with those to predict; an item has "target", float32 `[K, (D,) H, W]`.

    Attributes:
        targets: What these are.
    """

    def __init__(self, report: Report, parts: Sequence[Part] | None = None) -> None:
        """As `PairSet`."""
        self.targets = report.target_pictures()
        super().__init__(report, parts, 4 * self.targets.channels)

    @override
    def _decode(self, index: int) -> TargetPicture:
        target = self.targets.to_unit(self._pairs[index].read_mask())
        return TargetPicture(self._planes(index), self._scaled(target, index))

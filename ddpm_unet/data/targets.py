"""Images to predict: their channels, type and range, and the way to and from the network's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np

from ddpm_unet.config import PairDataConfig
from ddpm_unet.data.pixels import to_unit
from ddpm_unet.errors import UserError

Range = tuple[float, float]
PixelType = Literal["uint8", "uint16", "float32"]


@dataclass(frozen=True)
class Targets:
    """What all images to predict have in common.

    Args:
        channels: Of each.
        dtype: Type of their files' pixels.
        low: The pixel value that the network gives as -1.
        high: That which it gives as 1.
    """

    channels: int
    dtype: PixelType
    low: float
    high: float

    @classmethod
    def of(cls, image: np.ndarray, target_range: Range | None, name: str) -> Targets:
        """Those of an image.

        Args:
            image: `[..., C]`, uint8, uint16 or float32.
            target_range: Values that become -1 and 1; None for the full range of the type.
            name: For the message.

        Raises:
            UserError: Floats outside 0 to 1 and no range.
        """
        if image.dtype.kind == "f":
            to_unit(image, target_range, name, "data.target_range")
            full = 1.0
        else:
            full = float(np.iinfo(image.dtype).max)
        low, high = target_range or (0.0, full)
        dtype = cast(PixelType, image.dtype.name)
        return cls(image.shape[-1], dtype, float(low), float(high))

    def __str__(self) -> str:
        return f"{self.channels} channel{'s' * (self.channels > 1)} of {self.dtype}"

    def to_unit(self, pixels: np.ndarray) -> np.ndarray:
        """Pixel values to what the network gives, float32 in [-1, 1], clipped to it."""
        return to_unit(pixels, (self.low, self.high))

    def to_values(self, unit: np.ndarray) -> np.ndarray:
        """What the network gives to pixel values, float32; it may go beyond the range a little."""
        return (unit + 1) * np.float32((self.high - self.low) / 2) + np.float32(self.low)

    def to_pixels(self, unit: np.ndarray) -> np.ndarray:
        """What the network gives to pixels of the targets' type: clipped to it, and rounded."""
        values = self.to_values(unit)
        if self.dtype == "float32":
            return values
        return values.round().clip(0, np.iinfo(self.dtype).max).astype(self.dtype)


def target_settings(data: PairDataConfig) -> PairDataConfig:
    """The settings of pairs for images to predict, whose inputs keep their intensities.

    Raises:
        UserError: They say that the targets are masks.
    """
    if data.mask_kind not in ("auto", "pictures"):
        raise UserError(f'data.mask_kind {data.mask_kind}: is for task "segment"; leave it out')
    augment = replace(data.augment, intensity=bool(data.augment.intensity))
    return replace(data, mask_kind="pictures", augment=augment)

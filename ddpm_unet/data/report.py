"""What a check of labelled images found."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ddpm_unet.config import PairDataConfig
from ddpm_unet.data.masks import MaskCode
from ddpm_unet.data.pairs import Pair
from ddpm_unet.data.preprocessing import Preprocessing, Targets
from ddpm_unet.errors import UserError

MOST_FAULTS = 20


@dataclass
class Report:
    """What a check found: a table, what is suspicious, and faults to be mended before training."""

    config: PairDataConfig
    """The settings, completed for built-in data."""
    pairs: list[Pair] = field(default_factory=list)
    """Images and masks, those that could be read and fit each other."""
    sizes: list[tuple[int, ...]] = field(default_factory=list)
    """(Depth,) height and width of each, pixels."""
    channels: int = 0
    """Channels of the images, after `data.channels`."""
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.uint8))
    content: str = ""
    """A digest of the pixels of images and masks."""
    highest: float | None = None
    """The largest pixel value of the images, as their files have it."""
    spacing: tuple[float, ...] | None = None
    """Millimetres along slices, rows and columns; None where files do not say or differ."""
    code: MaskCode | None = None
    """How mask values become classes; None after a fault in them, and for images."""
    targets: Targets | None = None
    """What the images to predict are; None for masks."""
    extra: Report | None = None
    """Of the further pairs for training, if there are any."""
    class_pixels: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    """Pixels of each class in each mask, `int64 [N, K]`."""
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Name of each pair."""
        return [pair.name for pair in self.pairs]

    def scales(self, pair: Pair) -> float | tuple[float, ...]:
        """Factors by which an image is resampled, see `Preprocessing.scales`."""
        own = Preprocessing(1, self.config.scale, spacing=self.spacing)
        return own.scales(pair.spacing, pair.image_file)

    def __str__(self) -> str:
        return "\n".join([*self.lines, *(f"warning: {line}" for line in self.warnings)])

    def stop_at_faults(self) -> None:
        """Raise the faults of a set, a line each."""
        if self.faults:
            count = len(self.faults)
            first = [f"{count} faults in the labelled set"] * (count > 1)
            more = [f"... and {count - MOST_FAULTS} more"] * (count > MOST_FAULTS)
            raise UserError("\n".join(first + self.faults[:MOST_FAULTS] + more))

    def mask_code(self) -> MaskCode:
        """The code of masks without faults; errors as `stop_at_faults`."""
        self.stop_at_faults()
        if self.code is None:
            raise UserError('data.mask_kind images: they are for task "regress"; set task to that')
        return self.code

    def target_images(self) -> Targets:
        """What the images without faults are; errors as `stop_at_faults`."""
        self.stop_at_faults()
        if self.targets is None:
            raise UserError(
                f'data.mask_kind {self.config.mask_kind}: is for task "segment"; for task '
                '"regress" set images'
            )
        return self.targets

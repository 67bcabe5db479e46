"""What the check of a labelled set found."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ddpm_unet.config import PairDataConfig
from ddpm_unet.data.masks import MaskCode
from ddpm_unet.data.pairs import Pair
from ddpm_unet.data.targets import Targets
from ddpm_unet.errors import UserError

MOST_FAULTS = 20


@dataclass
class Report:
    """What a check found.

    Attributes:
        config: The settings, completed for built-in data.
        pairs: Images and masks, those that could be read and fit each other.
        sizes: (Depth,) height and width of each, pixels.
        channels: Channels of the images, after `data.channels`.
        bytes_per_pixel: Of the images.
        code: How mask values become classes; None after a fault in them, and for pictures.
        targets: What the pictures to predict are; None for masks.
        extra: Of the further pairs for training, if there are any.
        class_pixels: Pixels of each class in each mask, `int64 [N, K]`.
        lines: The table.
        warnings: What is suspicious, one line each.
        faults: What must be mended before training, one line each.
    """

    config: PairDataConfig
    pairs: list[Pair] = field(default_factory=list)
    sizes: list[tuple[int, ...]] = field(default_factory=list)
    channels: int = 0
    bytes_per_pixel: int = 1
    code: MaskCode | None = None
    targets: Targets | None = None
    extra: Report | None = None
    class_pixels: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Name of each pair."""
        return [pair.name for pair in self.pairs]

    def __str__(self) -> str:
        return "\n".join([*self.lines, *(f"warning: {line}" for line in self.warnings)])

    def stop_at_faults(self) -> None:
        """Go on with a set without faults only.

        Raises:
            UserError: The faults, a line each.
        """
        if self.faults:
            rest = len(self.faults) - MOST_FAULTS
            count = [f"{len(self.faults)} faults in the labelled set"] * (len(self.faults) > 1)
            more = [f"... and {rest} more"] * (rest > 0)
            raise UserError("\n".join(count + self.faults[:MOST_FAULTS] + more))

    def mask_code(self) -> MaskCode:
        """The code of masks without faults; errors as `stop_at_faults`."""
        self.stop_at_faults()
        if self.code is None:
            raise UserError(
                'data.mask_kind pictures: pictures are for task "regress"; set task to that'
            )
        return self.code

    def target_pictures(self) -> Targets:
        """What the pictures without faults are; errors as `stop_at_faults`."""
        self.stop_at_faults()
        if self.targets is None:
            raise UserError(
                f'data.mask_kind {self.config.mask_kind}: is for task "segment"; for task '
                '"regress" set pictures'
            )
        return self.targets

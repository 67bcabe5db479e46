"""Windows as latents: encoded once, kept in a file, drawn by position."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from ddpm_unet.data.stream import Batch, Grid, Stream, of_pictures
from ddpm_unet.data.windows import order
from ddpm_unet.errors import UserError
from ddpm_unet.randomness import normal

MOMENTS = "moments"
BEGIN = 256
"""Where the numbers begin in a file; its header is padded so far."""


class LatentWindows(Dataset[Batch]):
    """The windows at the first positions of a stream or grid, as latents.

    Of a stream it is one itself: epoch after epoch in a new order, with no state. Of a grid,
    position i is window i.

    Args:
        windows: In pixels; gives names, labels and contexts.
        path: Their latents, see `create_file`; they are mapped into memory.
        seed: Of the run. Order and draws are functions of (seed, position).
        sample: Draw latents; False takes their modes.

    Raises:
        UserError: The file is damaged.
    """

    def __init__(self, windows: Stream | Grid, path: Path, seed: int, sample: bool) -> None:
        self.source, self.seed, self.sample = windows, seed, sample
        try:
            self.moments = load_file(path)[MOMENTS]
        except (OSError, KeyError, SafetensorError) as error:
            raise UserError(f"{path}: is damaged ({error}); delete it, to encode anew") from error

    def __len__(self) -> int:
        return len(self.moments)

    def __getitems__(self, positions: Sequence[int] | np.ndarray) -> Batch:
        """The batch at these positions, as `Stream` gives it.

        Returns:
            "image" `float32 [B, C, h, w]`, latents; "position"; "label", "context" and
            "context_mask" if the set has them.
        """
        positions = np.asarray(positions, dtype=np.int64)
        numbers = self._numbers(positions)
        latents, deviation = self.moments[torch.from_numpy(numbers)].unbind(1)
        if self.sample:
            noise = normal(self.seed, "latent", positions, latents.shape[1:])
            latents = latents + deviation * noise
        return {
            "image": latents,
            "position": torch.from_numpy(positions),
            **of_pictures(self.source.images, self.source.windows(numbers)),
        }

    def __getitem__(self, position: int) -> Batch:
        return {key: values[0] for key, values in self.__getitems__([position]).items()}

    def name(self, position: int) -> str:
        """The picture from which a position is cut, for messages."""
        return self.source.name(int(self._numbers(np.array([position]))[0]))

    def _numbers(self, positions: np.ndarray) -> np.ndarray:
        """The window at each position."""
        if isinstance(self.source, Grid):
            return positions
        return order(self.seed, positions, len(self))


def create_file(path: Path, count: int, shape: Sequence[int]) -> None:
    """A safetensors file of `moments float32 [count, 2, C, h, w]`, all zero.

    They are the mean and the standard deviation of the latents of windows 0 to count - 1.

    Args:
        path: The file.
        count: Windows.
        shape: (C, h, w).
    """
    whole = [count, 2, *shape]
    size = 4 * math.prod(whole)
    header = {MOMENTS: {"dtype": "F32", "shape": whole, "data_offsets": [0, size]}}
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", BEGIN - 8) + json.dumps(header).encode().ljust(BEGIN - 8))
        file.truncate(BEGIN + size)


def write_moments(path: Path, first: int, mean: Tensor, deviation: Tensor) -> None:
    """Write `[B, C, h, w]` each into a file of `create_file`, of windows `first` and following."""
    moments = torch.stack([mean, deviation], dim=1).cpu().numpy().astype("<f4")
    with open(path, "r+b") as file:
        file.seek(BEGIN + first * moments[0].nbytes)
        file.write(moments.tobytes())

"""A labelled stream some of whose windows come of further pairs, such as generated ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from ddpm_unet.data.pair_stream import Batch, PairStream
from ddpm_unet.randomness import uniform


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
        """The picture from which a position is cut, for messages."""
        return self.streams[int(self._chosen(np.array([position]))[0])].name(position)

    def _chosen(self, positions: np.ndarray) -> np.ndarray:
        return (uniform(self.streams[0].seed, "extra", positions) < self.share).astype(int)

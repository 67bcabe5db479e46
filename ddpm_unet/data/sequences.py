"""Sequences of vectors that a denoiser attends to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from ddpm_unet.errors import UserError

ENDINGS = frozenset((".npy", ".safetensors"))
TENSOR = "context"


class Sequences:
    """Numbered sequences of unequal lengths, in one tensor that loader processes share.

    Attributes:
        channels: Of a vector.
        longest: Vectors of the longest sequence.
    """

    def __init__(self, sequences: Sequence[np.ndarray], names: Sequence[str]) -> None:
        """Pack sequences `[L, C]`, whose names are for messages.

        Raises:
            UserError: Vectors of different lengths C.
        """
        self.channels = sequences[0].shape[1]
        for sequence, name in zip(sequences, names, strict=True):
            if sequence.shape[1] != self.channels:
                raise UserError(
                    f"{name}: has vectors of {sequence.shape[1]} numbers, {names[0]} of "
                    f"{self.channels}; make them the same"
                )
        self.lengths = torch.tensor([len(sequence) for sequence in sequences])
        self.longest = int(self.lengths.max())
        self._starts = self.lengths.cumsum(0) - self.lengths
        self._flat = torch.from_numpy(np.concatenate(sequences))

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, numbers: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Some sequences, zeros behind the shorter ones.

        Returns:
            `float32 [B, L, C]`, L the longest of all, and where they are, `bool [B, L]`.
        """
        chosen = torch.as_tensor(np.asarray(numbers, dtype=np.int64))
        place = torch.arange(self.longest)
        mask = place < self.lengths[chosen, None]
        rows = torch.where(mask, self._starts[chosen, None] + place, 0)
        return self._flat[rows] * mask[..., None], mask


def read_sequence(path: str) -> np.ndarray:
    """A sequence of vectors, `float32 [L, C]`.

    Args:
        path: A .npy file of `[L, C]`, or of one vector `[C]`; or a .safetensors file of one such
            tensor, or of several with one named "context".

    Raises:
        UserError: Missing, damaged, of another shape, or with numbers that are not finite.
    """
    try:
        if path.endswith(".safetensors"):
            tensors = load_file(path)
            if len(tensors) != 1 and TENSOR not in tensors:
                raise UserError(f"{path}: holds {len(tensors)} tensors; name one of them {TENSOR}")
            array = tensors[TENSOR] if TENSOR in tensors else next(iter(tensors.values()))
        else:
            array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, SafetensorError) as error:
        cause = " ".join(str(error).split())
        raise UserError(f"{path}: is missing or damaged ({cause}); write it again") from error
    if not isinstance(array, np.ndarray) or array.ndim not in (1, 2) or array.size == 0:
        raise UserError(f"{path}: is no sequence of vectors; write an array of shape [L, C]")
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise UserError(f"{path}: holds something else than finite numbers; write it again")
    return array.reshape(-1, array.shape[-1]).astype(np.float32)

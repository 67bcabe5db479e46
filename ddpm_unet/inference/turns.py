"""Test-time augmentation: the mean prediction over mirror images and quarter turns."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor

from ddpm_unet.inference.tiles import Predict


def over_turns(predict: Predict) -> Predict:
    """A prediction that treats all 8 flips and quarter turns of the last two axes alike.

    For microscopy and the like, where up is not special. Eight times the work. Give it a
    `predict` that returns probabilities: their mean is a probability, that of scores is not.

    Args:
        predict: Tiles `[B, C, ..., H, W]` to predictions `[B, K, ..., H', W']`.
    """

    def variants(tiles: Tensor) -> Iterator[Tensor]:
        for mirrored in (False, True):
            for quarters in range(4):
                turned = torch.rot90(tiles.flip(-1) if mirrored else tiles, quarters, (-2, -1))
                back = torch.rot90(predict(turned).float(), -quarters, (-2, -1))
                yield back.flip(-1) if mirrored else back

    return lambda tiles: reduce(torch.add, variants(tiles)) / 8

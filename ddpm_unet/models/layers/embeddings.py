"""Embedding of the time step."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_unet.models.layers.normalisation import ACTIVATIONS


def sinusoids(t: Tensor, channels: int, *, flip_sin_to_cos: bool, freq_shift: int) -> Tensor:
    """Sines and cosines of `t` at geometric frequencies from 1 down to 1/10000.

    Vaswani 2017, section 3.5; Ho 2020 with `freq_shift` 1.

    Args:
        t: Time steps `[B]`, possibly fractional.
        channels: Length of the embedding; an odd one ends in a zero.
        flip_sin_to_cos: Cosines first.
        freq_shift: 1 makes the last frequency exactly 1/10000.

    Returns:
        `float32 [B, channels]`, in this precision whatever that of the network: so does
        diffusers, and in half precision neighbouring steps would be the same.
    """
    half = channels // 2
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(exponents / (half - freq_shift))
    sine, cosine = angles.sin(), angles.cos()
    waves = torch.cat((cosine, sine) if flip_sin_to_cos else (sine, cosine), dim=1)
    return F.pad(waves, (0, channels % 2))


class TimestepEmbedding(nn.Module):
    """The two-layer perceptron after the sinusoids.

    Args:
        in_channels: Length of the sinusoids.
        channels: Length of the embedding.
        act: Activation between the layers, a key of `ACTIVATIONS`.
    """

    def __init__(self, in_channels: int, channels: int, act: str) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, channels)
        self.linear_2 = nn.Linear(channels, channels)
        self.act = ACTIVATIONS[act]

    def forward(self, waves: Tensor) -> Tensor:
        """`[B, in_channels]` of any precision to `[B, channels]` in that of the weights."""
        return self.linear_2(self.act(self.linear_1(waves.to(self.linear_1.weight.dtype))))

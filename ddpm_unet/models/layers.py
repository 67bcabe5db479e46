"""The layers of the denoiser, for images and volumes: plain modules of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "relu": F.relu,
}


def convolution(
    dims: int,
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    bias: bool = True,
) -> nn.Conv2d | nn.Conv3d:
    """A convolution over images (`dims` 2) or volumes (`dims` 3)."""
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    return kind(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=bias)


def zeroed(layer: Layer) -> Layer:
    """The layer with all weights zero, so that its branch starts by adding nothing (Ho 2020)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def sinusoids(t: Tensor, channels: int, *, flip_sin_to_cos: bool, freq_shift: int) -> Tensor:
    """Sines and cosines of time steps `t [B]` at geometric frequencies from 1 down to 1/10000.

    Vaswani 2017, section 3.5; Ho 2020 with `freq_shift` 1, which makes the last frequency exactly
    1/10000. An odd number of channels ends in a zero; `flip_sin_to_cos` puts cosines first.

    Returns:
        `float32 [B, channels]`, whatever the precision of the network: so does diffusers, and in
        half precision neighbouring steps would be the same.
    """
    half = channels // 2
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(exponents / (half - freq_shift))
    sine, cosine = angles.sin(), angles.cos()
    waves = torch.cat((cosine, sine) if flip_sin_to_cos else (sine, cosine), dim=1)
    return F.pad(waves, (0, channels % 2))


class TimestepEmbedding(nn.Module):
    """The two-layer perceptron after the sinusoids, with an activation of `ACTIVATIONS`."""

    def __init__(self, in_channels: int, channels: int, act: str) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, channels)
        self.linear_2 = nn.Linear(channels, channels)
        self.act = ACTIVATIONS[act]

    def forward(self, waves: Tensor) -> Tensor:
        """`[B, in_channels]` to `[B, channels]`."""
        return self.linear_2(self.act(self.linear_1(waves)))


class NormAct(nn.GroupNorm):
    """Group normalisation (Wu 2018), an optional modulation, an activation of `ACTIVATIONS`."""

    def __init__(self, groups: int, channels: int, eps: float, act: str) -> None:
        super().__init__(groups, channels, eps)
        self.act = ACTIVATIONS[act]

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """`act(norm(x) * (1 + scale) + shift)` of `x [B, C, *space]`.

        Scale and shift are `[B or 1, C, *ones]`, or None for no modulation.
        """
        x = super().forward(x)
        if scale is not None and shift is not None:
            x = torch.addcmul(shift, x, 1 + scale)
        return self.act(x)


def halve(x: Tensor) -> Tensor:
    """Means of 2 x 2 (x 2) pixels; of an odd size the last row is dropped, unless it is all."""
    pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    return pool(x, 2, ceil_mode=any(size == 1 for size in x.shape[2:]))


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest-neighbour interpolation to the spatial `size`, about twice the present one."""
    return F.interpolate(x, size=tuple(size), mode="nearest")


def pad_far_side(x: Tensor) -> Tensor:
    """A row of zeros more at the far sides, two for a single one."""
    return F.pad(x, [n for size in reversed(x.shape[2:]) for n in (0, 2 if size == 1 else 1)])


class Downsample(nn.Module):
    """Convolution of stride 2; `padding` 0 pads at the far sides only (Ho 2020)."""

    def __init__(self, dims: int, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = convolution(dims, channels, channels, stride=2, padding=padding)
        self.pads_far_side = padding == 0

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """`[B, C, *space]` to half of each size, rounded down (`padding` 0) or up, at least 1."""
        return self.conv(pad_far_side(x) if self.pads_far_side else x)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement and convolution."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.conv = convolution(dims, channels, channels)

    def forward(self, x: Tensor, emb: Tensor | None, size: Sequence[int]) -> Tensor:
        """`[B, C, *space]` to `[B, C, *size]`; called like a residual block."""
        return self.conv(enlarge(x, size))


class ResidualBlock(nn.Module):
    """Two convolutions around the time embedding, added to the input.

    Ho 2020, appendix B; the modulation and the blocks that resample: Nichol 2021, Dhariwal 2021.

    Args:
        dims: 2 or 3.
        in_channels, out_channels, emb_channels: Channels in and out, and of the time embedding.
        groups, eps: Of both normalisations.
        act: Activation.
        dropout: Probability, before the second convolution.
        scale_shift: Modulate the second normalisation instead of adding the embedding.
        output_scale: Divisor of the sum.
        down: Halve the resolution.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        groups: int,
        eps: float,
        act: str,
        dropout: float = 0.0,
        scale_shift: bool = False,
        output_scale: float = 1.0,
        down: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = NormAct(groups, in_channels, eps, act)
        self.conv1 = convolution(dims, in_channels, out_channels)
        self.time_emb_proj = nn.Linear(emb_channels, out_channels * (2 if scale_shift else 1))
        self.norm2 = NormAct(groups, out_channels, eps, act)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = zeroed(convolution(dims, out_channels, out_channels))
        self.conv_shortcut = (
            convolution(dims, in_channels, out_channels, kernel=1, padding=0)
            if in_channels != out_channels
            else None
        )
        self.scale_shift, self.output_scale, self.down = scale_shift, output_scale, down

    def forward(self, x: Tensor, emb: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """`[B, in_channels, *space]` to `[B, out_channels, *space]`, with `space` halved by `down`.

        Or enlarged to `size`, if any. The embedding `[B or 1, emb_channels]` is activated already.
        """
        shortcut = self.resampled(x, size)
        if self.conv_shortcut is not None:
            shortcut = self.conv_shortcut(shortcut)
        h = self._convolved(self.conv1, self.resampled(self.norm1(x), size))
        modulation = self.modulation(emb, x.ndim)
        if self.scale_shift:
            h = self.norm2(h, *modulation.chunk(2, dim=1))
        else:
            h = self.norm2(self._added(h, modulation))
        h = self._added(self._convolved(self.conv2, self.dropout(h)), shortcut)
        return h if self.output_scale == 1 else h / self.output_scale

    def modulation(self, emb: Tensor, ndim: int) -> Tensor:
        """What the embedding adds to the channels, `[B or 1, channels, *ones]`."""
        projected = self.time_emb_proj(emb)
        return projected.reshape(*projected.shape, *[1] * (ndim - 2))

    def _convolved(self, conv: nn.Module, x: Tensor) -> Tensor:
        return conv(x)

    def _added(self, x: Tensor, other: Tensor) -> Tensor:  # x is of a convolution
        return x + other

    def resampled(self, x: Tensor, size: Sequence[int] | None) -> Tensor:
        """Halved by `down`, or enlarged to `size` if there is one."""
        if self.down:
            return halve(x)
        return x if size is None else enlarge(x, size)

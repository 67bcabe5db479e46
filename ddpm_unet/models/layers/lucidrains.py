"""Layers of denoising-diffusion-pytorch: normalisation by length, attention with memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ddpm_unet.models.layers.convolution import convolution, zeroed
from ddpm_unet.models.layers.residual import ResidualBlock


class RMSNorm(nn.Module):
    """Divides a pixel's channels by their root mean square (Zhang 2019, arXiv:1910.07467)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same."""
        return F.normalize(x, dim=1) * (self.weight * len(self.weight) ** 0.5)[:, None, None]


class PostNormBlock(ResidualBlock):
    """Two convolutions, each followed by its normalisation, added to the input.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        emb_channels: Length of the time embedding, which modulates the first normalisation.
        dropout: Probability, before the second convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, emb_channels: int, dropout: float
    ) -> None:
        nn.Module.__init__(self)
        self.conv1 = convolution(2, in_channels, out_channels)
        self.rms1 = RMSNorm(out_channels)
        self.time_emb_proj = nn.Linear(emb_channels, 2 * out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(2, out_channels, out_channels)
        self.rms2 = RMSNorm(out_channels)
        self.conv_shortcut = (
            convolution(2, in_channels, out_channels, kernel=1, padding=0)
            if in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor, emb: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """`[B, in_channels, H, W]` and the activated `[B or 1, emb_channels]` to `[B, C, H, W]`."""
        scale, shift = self.time_emb_proj(emb)[..., None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.rms1(self.conv1(x)), 1 + scale))
        h = F.silu(self.rms2(self.conv2(self.dropout(h))))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class MemoryAttention(nn.Module):
    """Attention of all pixels to each other and to learned keys and values.

    Args:
        channels: Channels in and out.
        heads: Number of heads.
        head_dim: Channels of a head.
        memory: Learned keys and values of a head.
    """

    def __init__(self, channels: int, heads: int, head_dim: int, memory: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(channels)
        self.to_qkv = convolution(2, channels, 3 * heads * head_dim, kernel=1, padding=0)
        self.to_qkv.register_parameter("bias", None)
        self.memory = nn.Parameter(torch.randn(2, heads, memory, head_dim))
        self.to_out = zeroed(convolution(2, heads * head_dim, channels, kernel=1, padding=0))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to what is to be added to it."""
        rows = rearrange(
            self.to_qkv(self.norm(x)), "b (n h d) y x -> n b h (y x) d", n=3, h=self.heads
        )
        memory = self.memory[:, None].expand(-1, x.shape[0], -1, -1, -1)
        k, v = torch.cat((memory, rows[1:]), dim=3)
        mixed = self.mix(rows[0], k, v)
        return self.to_out(
            rearrange(mixed, "b h n d -> b h d n").reshape(x.shape[0], -1, *x.shape[2:])
        )

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries `[B, h, N, d]`, keys and values `[B, h, M, d]` to `[B, h, N, d]`."""
        return F.scaled_dot_product_attention(q, k, v)


class LinearAttention(MemoryAttention):
    """Attention in time linear in the pixels (Shen 2018, arXiv:1812.01243), normalised at the end.

    Arguments are those of `MemoryAttention`.
    """

    def __init__(self, channels: int, heads: int, head_dim: int, memory: int) -> None:
        super().__init__(channels, heads, head_dim, memory)
        self.norm_out = RMSNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to what is to be added to it."""
        return self.norm_out(super().forward(x))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As of `MemoryAttention`; the softmax is over a query's channels and over the keys."""
        summary = k.softmax(dim=2).transpose(2, 3) @ v
        return q.softmax(dim=3) @ summary * q.shape[3] ** -0.5

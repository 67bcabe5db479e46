"""Self-attention over the pixels, and cross-attention from the pixels to a context sequence."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from ddpm_unet.models.layers import convolution, zeroed


class Attention(nn.Module):
    """Multi-head attention (Vaswani 2017, section 3.2).

    Args:
        channels: Channels of the queries' source and of the output.
        heads, head_dim: Number of heads, and channels of a head.
        context_channels: Channels of the source of keys and values, by default `channels`.
        bias: Biases of the three input projections.
        group_norm: A normalisation for the caller to apply, first in the order of parameters.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        head_dim: int,
        context_channels: int | None = None,
        *,
        bias: bool,
        group_norm: nn.GroupNorm | None = None,
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.group_norm = group_norm
        self.heads = heads
        self.to_q = nn.Linear(channels, inner, bias=bias)
        self.to_k = nn.Linear(context_channels or channels, inner, bias=bias)
        self.to_v = nn.Linear(context_channels or channels, inner, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(
        self, tokens: Tensor, context: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Attend from tokens `[B, N, channels]` to a context, or to themselves if it is None.

        `context` is `[B, L, context_channels]`; `bias` is added to the logits, broadcast to
        `[B, heads, N, L]`. Returns `[B, N, channels]`.
        """
        source = tokens if context is None else context
        q, k, v = self.to_q(tokens), self.to_k(source), self.to_v(source)
        return self.to_out[0](self.mix(q, k, v, bias))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """`softmax(q k^T / sqrt(D) + bias) v` of every head; all `[B, tokens, heads * D]`."""
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        if torch.compiler.is_compiling() or forward_ad._current_level < 0:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:  # which torch's function has no forward derivative for
            logits = q @ k.mT * q.shape[-1] ** -0.5
            mixed = (logits if bias is None else logits + bias).softmax(-1) @ v
        return mixed.transpose(1, 2).flatten(2)


class SelfAttention(Attention):
    """Attention of all pixels to each other, added to the input (Ho 2020).

    `groups` and `eps` are the normalisation's (no groups: none); `output_scale` divides the sum.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        head_dim: int,
        *,
        groups: int | None,
        eps: float,
        output_scale: float = 1.0,
    ) -> None:
        norm = nn.GroupNorm(groups, channels, eps) if groups else None
        super().__init__(channels, heads, head_dim, bias=True, group_norm=norm)
        self.output_scale = output_scale
        zeroed(self.to_out[0])

    def forward(
        self, x: Tensor, context: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """`[B, C, *space]` to the same; called like `Transformer`, without using the context."""
        h = x if self.group_norm is None else self.group_norm(x)
        h = super().forward(h.flatten(2).transpose(1, 2).contiguous())
        x = x + h.transpose(1, 2).reshape(x.shape)
        return x if self.output_scale == 1 else x / self.output_scale


class GEGLU(nn.Module):
    """Gated linear unit (Shazeer 2020, equation 5)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., channels]` to `[..., hidden]`."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, perceptron (Rombach 2022, appendix E.2.1).

    With `only_cross_attention` the first attention attends to the context too.
    """

    def __init__(
        self, channels: int, heads: int, context_channels: int, only_cross_attention: bool
    ) -> None:
        super().__init__()
        head_dim = channels // heads
        first = context_channels if only_cross_attention else None
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads, head_dim, first, bias=False)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, head_dim, context_channels, bias=False)
        self.norm3 = nn.LayerNorm(channels)
        # The identity stands where diffusers numbers a dropout of probability 0.
        wide = [GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)]
        self.ff = nn.ModuleDict({"net": nn.Sequential(*wide)})
        self.only_cross_attention = only_cross_attention

    def forward(self, tokens: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        """`[B, N, channels]` to the same; arguments as in `Attention`."""
        first = (context, bias) if self.only_cross_attention else ()
        tokens = tokens + self.attn1(self.norm1(tokens), *first)
        tokens = tokens + self.attn2(self.norm2(tokens), context, bias)
        return tokens + self.ff["net"](self.norm3(tokens))


class Transformer(nn.Module):
    """Transformer blocks over the pixels, added to the input (Rombach 2022).

    With `linear` the projections into and out of the blocks are linear layers, not 1x1
    convolutions; `only_cross_attention` is that of `TransformerBlock`.
    """

    def __init__(
        self,
        dims: int,
        channels: int,
        heads: int,
        layers: int,
        context_channels: int,
        *,
        groups: int,
        linear: bool = False,
        only_cross_attention: bool = False,
    ) -> None:
        super().__init__()
        inner = heads * (channels // heads)
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        project = nn.Linear if linear else partial(convolution, dims, kernel=1, padding=0)
        self.proj_in = project(channels, inner)
        proj_out = zeroed(project(inner, channels))
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(inner, heads, context_channels, only_cross_attention)
            for _ in range(layers)
        )
        self.proj_out = proj_out  # after the blocks, as in diffusers

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        """`[B, C, *space]` to the same, by a context `[B, L, context_channels]`.

        `bias` is added to the logits over the context, `[B, 1, 1, L]`.
        """
        h = self.norm(x)
        if not self.linear:
            h = self.proj_in(h)
        tokens = h.flatten(2).transpose(1, 2).contiguous()
        if self.linear:
            tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, context, bias)
        if self.linear:
            tokens = self.proj_out(tokens)
        h = tokens.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])
        return x + (h if self.linear else self.proj_out(h))

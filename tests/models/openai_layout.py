"""The U-Net of Dhariwal 2021 written for comparing: the module names of guided-diffusion.

Plain torch and nothing of the package, except that `Transformer`, whose names are the same in
latent-diffusion, can be put in place of the attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Settings:
    """In the words of guided-diffusion."""

    in_channels: int = 3
    out_channels: int = 3
    model_channels: int = 32
    channel_mult: tuple[int, ...] = (1, 2)
    num_res_blocks: int = 1
    attention_levels: tuple[int, ...] = (1,)
    num_heads: int = 2
    new_order: bool = False
    scale_shift: bool = False
    resblock_updown: bool = False
    num_classes: int | None = None


class Residual(nn.Module):
    def __init__(self, s: Settings, i: int, o: int, resample: Callable = lambda x: x) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, i), nn.SiLU(), nn.Conv2d(i, o, 3, padding=1)
        )
        width = o * (2 if s.scale_shift else 1)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * s.model_channels, width))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, o), nn.SiLU(), nn.Dropout(0), nn.Conv2d(o, o, 3, padding=1)
        )
        self.skip_connection = nn.Conv2d(i, o, 1) if i != o else nn.Identity()
        self.resample = resample
        self.scale_shift = s.scale_shift

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        h = self.in_layers[2](self.resample(self.in_layers[:2](x)))
        told = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + told)
        return self.skip_connection(self.resample(x)) + h


class Attention(nn.Module):
    def __init__(self, s: Settings, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        self.heads, self.new_order = s.num_heads, s.new_order

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        rows = self.qkv(self.norm(x).flatten(2))
        size = rows.shape[1] // 3 // self.heads
        outputs = []
        for head in range(self.heads):
            if self.new_order:  # all queries, all keys, all values
                starts = [(part * self.heads + head) * size for part in range(3)]
            else:  # the first head's queries, keys and values; the second head's; ...
                starts = [(head * 3 + part) * size for part in range(3)]
            q, k, v = (rows[:, start : start + size] for start in starts)
            weight = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(size), dim=2)
            outputs.append(v @ weight.transpose(1, 2))
        return x + self.proj_out(torch.cat(outputs, dim=1)).reshape(x.shape)


class Plain(nn.Module):
    """A strided or an enlarging convolution, named as theirs."""

    def __init__(self, channels: int, down: bool) -> None:
        super().__init__()
        layer = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=1)
        self.op, self.conv = (layer, None) if down else (None, layer)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        return self.conv(enlarge(x)) if self.op is None else self.op(x)


class Entry(nn.Conv2d):
    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        return super().forward(x)


def enlarge(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


class OpenAIUNet(nn.Module):
    """Outputs `[B, out_channels, H, W]`, as of guided-diffusion's `UNetModel`.

    Args:
        s: Settings.
        attention: What attends instead of self-attention, from channels to a layer.
    """

    def __init__(self, s: Settings, attention: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__()
        base = s.model_channels
        attend = attention or (lambda channels: Attention(s, channels))
        self.base = base
        self.time_embed = nn.Sequential(
            nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, 4 * base)
        )
        if s.num_classes:
            self.label_emb = nn.Embedding(s.num_classes, 4 * base)
        widths = [base * mult for mult in s.channel_mult]
        entries, skips, now = [[Entry(s.in_channels, base, 3, padding=1)]], [base], base
        for level, width in enumerate(widths):
            for _ in range(s.num_res_blocks):
                entry = [Residual(s, now, width)]
                entries.append(entry + [attend(width)] * (level in s.attention_levels))
                now = width
                skips.append(now)
            if level < len(widths) - 1:
                halve = nn.AvgPool2d(2)
                small = Residual(s, now, now, halve) if s.resblock_updown else Plain(now, True)
                entries.append([small])
                skips.append(now)
        self.input_blocks = nn.ModuleList(map(nn.ModuleList, entries))
        middle = [Residual(s, now, now), attend(now), Residual(s, now, now)]
        self.middle_block = nn.ModuleList(middle)
        entries = []
        for level, width in reversed(list(enumerate(widths))):
            for layer in range(s.num_res_blocks + 1):
                entry = [Residual(s, now + skips.pop(), width)]
                entry += [attend(width)] * (level in s.attention_levels)
                now = width
                if level and layer == s.num_res_blocks:
                    large = (
                        Residual(s, now, now, enlarge) if s.resblock_updown else Plain(now, False)
                    )
                    entry.append(large)
                entries.append(entry)
        self.output_blocks = nn.ModuleList(map(nn.ModuleList, entries))
        self.out = nn.Sequential(
            nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(now, s.out_channels, 3, padding=1)
        )

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        half = self.base // 2
        angles = t[:, None].float() * 10000 ** (-torch.arange(half) / half)
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        if labels is not None:
            emb = emb + self.label_emb(labels)
        skips = []
        for entry in self.input_blocks:
            for layer in entry:
                x = layer(x, emb, context)
            skips.append(x)
        for layer in self.middle_block:
            x = layer(x, emb, context)
        for entry in self.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            for layer in entry:
                x = layer(x, emb, context)
        return self.out(x)

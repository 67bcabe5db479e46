"""A `UNet` whose time embeddings are computed before it samples."""

from __future__ import annotations

from copy import deepcopy
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_unet.models.layers import ResidualBlock
from ddpm_unet.models.unet import UNet

LARGEST = 2**26
"""Numbers in a table at most (256 MiB in float32). Where more are needed, a step costs so much
besides that the table would save nothing that can be measured."""


class PrecomputedUNet(UNet):
    """What `precompute_time_embeddings` returns."""

    times: Tensor
    table: Tensor
    told: frozenset[float]  # the times, which no device is asked for

    def embed(self, t: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """The row `[B or 1, columns]` of what all residual blocks add for time and class."""
        classes = self.config.num_class_embeds
        if (class_labels is None) != (classes is None):
            return super().embed(t, class_labels)  # which says what is wrong
        number = getattr(t, "number", t)  # of a batch at one time; see `batch_time`
        other = not isinstance(number, Tensor) and float(torch.tensor(number)) not in self.told
        if not isinstance(t, Tensor):
            t = torch.full((1,), t, device=self.times.device)  # no device is waited for
        exact = t.reshape(-1).to(self.times)
        index = torch.searchsorted(self.times, exact).clamp_(max=len(self.times) - 1)
        known = self.times[index] == exact
        if other or (known.device.type == "cpu" and not known.all()):
            emb = super().embed(t, class_labels)
            parts = [part for part in self.modules() if isinstance(part, Columns)]
            return torch.cat([part.projection(emb) for part in parts], dim=1)
        if class_labels is not None and classes is not None:
            index = index * classes + class_labels
        rows = self.table[index]
        # Elsewhere than on a CPU, to ask would be to wait for the device.
        return rows if known.device.type == "cpu" else rows.where(known[:, None], torch.nan)


class Columns(nn.Module):
    """In place of a projection of the embedding: its part of the row."""

    def __init__(self, projection: nn.Module, start: int, stop: int) -> None:
        super().__init__()
        self.projection, self.start, self.stop = projection, start, stop

    def forward(self, rows: Tensor) -> Tensor:
        """`[B, all]` to `[B, stop - start]`."""
        return rows[:, self.start : self.stop]


@torch.no_grad()
def precompute_time_embeddings(unet: UNet, timesteps: Tensor) -> UNet:
    """The same network, which looks up what time and class add in each of its residual blocks.

    The lookup is made on the device, which nobody waits for. All the rest is computed by the
    U-Net's own weights, which must not change any more.

    Args:
        unet: A trained network, on its device.
        timesteps: Those that it will be called with, `[T]`, repeated or not. Of another one it
            computes the embedding at the usual cost, elsewhere than on a CPU if it is a number or
            one of `batch_time`, which no device must be asked for, and else answers NaN.

    Returns:
        Such a network, or `unet` itself where the table would be too large or the class embedding
        is no table.
    """
    classes = unet.config.num_class_embeds
    each = classes or 1
    blocks = [name for name, m in unet.named_modules() if isinstance(m, ResidualBlock)]
    projections = [unet.get_submodule(f"{name}.time_emb_proj") for name in blocks]
    device = unet.conv_in.weight.device
    times = timesteps.to(device, torch.float32).unique()
    widths = [int(projection.out_features) for projection in projections]  # type: ignore[arg-type]
    if unet.config.class_embed_type is not None or len(times) * each * sum(widths) > LARGEST:
        return unet
    labels = torch.arange(each, device=device).repeat(len(times)) if classes else None
    emb = unet.embed(times.repeat_interleave(each), labels)
    twin: Any = deepcopy(unet, memo={id(tensor): tensor for tensor in unet.parameters()})
    twin.__class__ = PrecomputedUNet
    twin.told = frozenset(timesteps.float().tolist())
    twin.register_buffer("times", times, persistent=False)
    table = torch.cat([projection(emb) for projection in projections], dim=1)
    twin.register_buffer("table", table, persistent=False)
    for name, width, stop in zip(blocks, widths, accumulate(widths), strict=True):
        block = twin.get_submodule(name)
        block.time_emb_proj = Columns(block.time_emb_proj, stop - width, stop)
    return twin

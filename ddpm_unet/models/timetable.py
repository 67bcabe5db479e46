"""A U-Net that knows its timesteps, with all that depends on them alone worked out beforehand."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from ddpm_unet.models.layers.residual import ResidualBlock
from ddpm_unet.models.unet import UNet

LARGEST = 2**26
"""Numbers in a table at most (256 MiB in float32). Where more are needed, a step costs so much
besides that the table would save nothing that can be measured."""


@torch.no_grad()
def timetabled(unet: UNet, timesteps: Tensor) -> UNet:
    """The same network, which looks up what time and class add in each of its residual blocks.

    All the rest is computed by the U-Net's own weights, which must not change any more. Asked
    of another timestep, or of several at once, it gives the same at the usual cost.

    Args:
        unet: A trained network, on its device.
        timesteps: Those that it will be told, `[T]`, repeated or not.

    Returns:
        Such a network, or `unet` itself where the table would be too large or where what it is
        told of a class is no number.
    """
    classes = unet.config.num_class_embeds
    named = [(name, m) for name, m in unet.named_modules() if isinstance(m, ResidualBlock)]
    widths = [block.time_emb_proj.out_features for _, block in named]
    times = timesteps.unique().tolist()
    size = len(times) * (classes or 1) * sum(widths)
    if unet.config.class_embed_type is not None or size > LARGEST:
        return unet

    def rows(t: Tensor, class_labels: Tensor | None) -> Tensor:
        emb = unet.embed(t, class_labels)
        return torch.cat([block.time_emb_proj(emb) for _, block in named], dim=1)

    device = unet.conv_in.weight.device
    each = classes or 1
    labels = torch.arange(each, device=device).repeat(len(times)) if classes else None
    told_all = torch.tensor(times, device=device).repeat_interleave(each)
    table = dict(zip(times, rows(told_all, labels).split(each), strict=True))

    def embed(t: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        t = torch.as_tensor(t).reshape(-1)
        told = set(t.tolist())
        row = table.get(told.pop())
        if row is None or told or (class_labels is None) != (classes is None):
            return rows(t, class_labels)
        return row if class_labels is None else row[class_labels]

    twin = deepcopy(unet, memo={id(tensor): tensor for tensor in unet.parameters()})
    start = 0
    for (name, _), width in zip(named, widths, strict=True):
        twin.get_submodule(name).time_emb_proj = Columns(start, start + width)
        start += width
    twin.embed = embed  # type: ignore[method-assign]
    return twin


class Columns(nn.Module):
    """What stands in place of a projection: its part of the row."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, rows: Tensor) -> Tensor:
        """`[B, all]` to `[B, stop - start]`."""
        return rows[:, self.start : self.stop]

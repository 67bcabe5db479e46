"""Settings of networks that are built, and run, in no time, images for them, and noise."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
"""Of a `UNet` of two levels, of which the coarse one attends."""
TINY = {
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
"""Of one level, in 8 channels."""
AUTOENCODER = {
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
}
"""Of diffusers' AutoencoderKL that halves images."""


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal, by the seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Means(nn.Module):
    """Features that are the mean levels of the four quarters."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def write_images(folder: Path, count: int, *shape: int, most: int = 255) -> None:
    """PNGs of random pixels, 0.png, 1.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, most + 1, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def monai_name(name: str, cross: bool = False) -> str:
    """MONAI 1.6's name of a tensor of ours."""
    whole = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "conv_in.conv",
        "conv_norm_out": "out.0",
        "conv_out": "out.2.conv",
    }
    module, _, leaf = name.rpartition(".")
    if module in whole:
        return f"{whole[module]}.{leaf}"
    changes = {
        "mid_block.resnets.0": "middle_block.resnet_1",
        "mid_block.resnets.1": "middle_block.resnet_2",
        "mid_block.attentions.0": "middle_block.attention",
        "conv1": "conv1.conv",
        "conv2": "conv2.conv",
        "conv_shortcut": "skip_connection.conv",
        "downsamplers.0.conv.": "downsampler.op.conv.",
        "upsamplers.0.conv.": "upsampler.postconv.conv.",
        "downsamplers.0": "downsampler",
        "upsamplers.0": "upsampler",
        "proj_in": "proj_in.conv",
        "proj_out": "proj_out.conv",
        "group_norm": "norm",
        "to_out.0": "out_proj",
        "ff.net.0.proj": "ff.linear1",
        "ff.net.2": "ff.linear2",
    }
    if not cross:
        changes |= {letter: f"attn.{letter}" for letter in ("to_q", "to_k", "to_v", "out_proj")}
    for ours, theirs in changes.items():
        name = name.replace(ours, theirs)
    return name

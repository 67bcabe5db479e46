"""lucidrains' denoising-diffusion-pytorch, from version 2 on: its network is a `LucidrainsUNet`.

Everything is in the tensors but the base of the sinusoids' frequencies, which is its default,
10000. (Version 1 had group normalisation.) With self-conditioning, the network's input is the
previous estimate of the image, then the noisy image.
"""

from __future__ import annotations

import re
from math import gcd

from torch import Tensor

from ddpm_unet.config import UNetConfig
from ddpm_unet.config.foreign import LucidrainsConfig
from ddpm_unet.models.foreign.checkpoint import Checkpoint, PeerNetwork

NAME = "denoising-diffusion-pytorch"
PEER = "denoising-diffusion-pytorch itself"
ANCHOR = "final_res_block.block1.proj.weight"
MOST_GROUPS = 32

# Patterns in their names and what is ours in place of them, one after the other.
RENAMED = (
    (r"^init_conv\.", "conv_in."),
    (r"^final_conv\.", "conv_out."),
    (r"^time_mlp\.1\.", "time_embedding.linear_1."),
    (r"^time_mlp\.3\.", "time_embedding.linear_2."),
    (r"^mid_block1\.", "mid_block.resnets.0."),
    (r"^mid_block2\.", "mid_block.resnets.1."),
    (r"^mid_attn\.", "mid_block.attention."),
    (r"^(down|up)s\.(\d+)\.([01])\.", r"\1_blocks.\2.resnets.\3."),
    (r"^(down|up)s\.(\d+)\.2\.", r"\1_blocks.\2.attention."),
    (r"^(down|up)s\.(\d+)\.3\.(1\.)?", r"\1_blocks.\2.resampler."),
    (r"\.to_out\.0\.", ".to_out."),
    (r"\.to_out\.1\.", ".norm_out."),
    (r"\.mem_kv$", ".memory"),
    (r"\.block([12])\.proj\.", r".conv\1."),
    (r"\.block([12])\.norm\.", r".rms\1."),
    (r"\.mlp\.1\.", ".time_emb_proj."),
    (r"\.res_conv\.", ".conv_shortcut."),
    (r"\.g$", ".weight"),
)


def config(given: Checkpoint) -> UNetConfig:
    """The architecture.

    Raises:
        UserError: Names the first tensor of another network than a `LucidrainsUNet`.
    """
    levels = range(given.count("downs"))
    widths = tuple(given.shape(f"downs.{i}.0.block1.proj.weight")[1] for i in levels)
    if "time_mlp.0.weights" in given.weights:
        given.refuse("time_mlp.0.weights", "is of learned or random frequencies of the time")
    sinusoids = given.shape("time_mlp.1.weight")[1]
    if sinusoids != widths[0]:
        given.refuse(
            "time_mlp.1.weight",
            f"reads {sinusoids} sinusoids, not as many as the first level has channels,"
            f" {widths[0]}",
        )
    full = tuple(f"downs.{i}.2.to_out.weight" in given.weights for i in levels)
    memories = [given.shape(f"downs.{i}.2.mem_kv") for i in levels]
    return LucidrainsConfig(
        in_channels=given.shape("init_conv.weight")[1],
        out_channels=given.shape("final_conv.weight")[0],
        block_out_channels=widths,
        norm_num_groups=gcd(widths[0], MOST_GROUPS),
        mid_channels=given.shape("mid_block1.block1.proj.weight")[1],
        full_attention=full,
        attention_heads=tuple(shape[1] for shape in memories),
        head_dims=tuple(shape[3 if f else 2] for shape, f in zip(memories, full, strict=True)),
        memory=memories[0][2 if full[0] else 3],
    )


def rename(given: Checkpoint) -> dict[str, Tensor]:
    """The weights by the names of `LucidrainsUNet`."""
    last = given.count("ups")
    weights = {}
    for name, tensor in given.weights.items():
        linear = f"{name.removesuffix('mem_kv')}to_out.1.g" in given.weights
        for pattern, ours in RENAMED:
            name = re.sub(pattern, ours, name)
        if name.endswith(".memory") and linear:
            tensor = tensor.transpose(2, 3)
        elif name.endswith("norm_out.weight") or re.search(r"(norm|rms[12])\.weight$", name):
            tensor = tensor.flatten()
        elif re.match(r"down.*resampler\.weight", name) and tensor.shape[2] == 1:
            # Channels of 2 x 2 pixels side by side, one after the other.
            tensor = tensor.reshape(len(tensor), -1, 2, 2)
        weights[name.replace("final_res_block.", f"up_blocks.{last}.")] = tensor
    return weights


def peer(given: Checkpoint, config: UNetConfig) -> PeerNetwork:
    """denoising-diffusion-pytorch's own network with these weights.

    Raises:
        ImportError: It is not installed.
    """
    from denoising_diffusion_pytorch import Unet

    assert isinstance(config, LucidrainsConfig)
    base = config.block_out_channels[0]
    model = Unet(
        base,
        dim_mults=tuple(width // base for width in config.channels_below),
        channels=config.in_channels,
        out_dim=config.out_channels,
        full_attn=config.full_attention,
        attn_heads=config.attention_heads,
        attn_dim_head=config.head_dims,
    ).eval()
    model.load_state_dict(given.weights)
    return lambda x, t, context, labels: model(x, t)

"""MONAI's DiffusionModelUNet, and the same network of MONAI Generative: Pinaya 2022.

The architecture is that of diffusers, in two or three dimensions. The number of heads, and groups
and epsilon of the group normalisations, are not in the tensors.
"""

from __future__ import annotations

import re
from math import gcd

import torch
from torch import Tensor

from ddpm_unet.config import UNetConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models.foreign.checkpoint import Checkpoint, PeerNetwork
from ddpm_unet.models.foreign.levels import Levels, network

NAME = "MONAI"
PEER = "MONAI itself"
ANCHOR = "middle_block.resnet_1.conv1.conv.weight"
TRANSFORMERS = "middle_block.attention.transformer_blocks"
# The epsilon of the normalisation before a transformer in Stable Diffusion, and in `UNet`.
TRANSFORMER_EPS = 1e-6

# Patterns in their names and what is ours in place of them, one after the other.
RENAMED = (
    (r"^time_embed\.0\.", "time_embedding.linear_1."),
    (r"^time_embed\.2\.", "time_embedding.linear_2."),
    (r"^out\.0\.", "conv_norm_out."),
    (r"^out\.2\.conv\.", "conv_out."),
    (r"^middle_block\.resnet_1\.", "mid_block.resnets.0."),
    (r"^middle_block\.resnet_2\.", "mid_block.resnets.1."),
    (r"^middle_block\.attention\.", "mid_block.attentions.0."),
    (r"\b(conv_in|conv[12]|proj_in|proj_out|skip_connection)\.conv\.", r"\1."),
    (r"\.(op|postconv|conv)\.conv\.", ".conv."),
    (r"\.(down|up)sampler\.", r".\1samplers.0."),
    (r"\.skip_connection\.", ".conv_shortcut."),
    (r"\.attn\.", "."),
    (r"\.(out_proj|proj_attn)\.", ".to_out.0."),
    (r"\.ff\.linear1\.", ".ff.net.0.proj."),
    (r"\.ff\.linear2\.", ".ff.net.2."),
)
SELF_ATTENTION = (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm.")


def read_levels(given: Checkpoint) -> Levels:
    """What names and shapes say.

    Raises:
        UserError: Names a tensor that is missing.
    """
    number = given.count("down_blocks")
    resampler = "down_blocks.0.downsampler.norm1.weight"
    depth = given.count(TRANSFORMERS)
    return Levels(
        tuple(given.shape(f"down_blocks.{i}.resnets.0.norm2.weight")[0] for i in range(number)),
        tuple(given.count(f"down_blocks.{i}.resnets") for i in range(number)),
        tuple(given.has(f"down_blocks.{i}.attentions") for i in range(number)),
        tuple(given.has(f"up_blocks.{i}.attentions") for i in range(number)),
        resampler if resampler in given.weights else None,
        (depth,) * number if depth else None,
        given.shape(f"{TRANSFORMERS}.0.attn2.to_k.weight")[1] if depth else None,
    )


def config(given: Checkpoint) -> UNetConfig:
    """The architecture.

    Raises:
        UserError: It is no network that `UNet` can hold, or something is left open.
    """
    levels, told = read_levels(given), given.told
    common = gcd(*levels.channels)
    groups = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
    questions = {
        "norm_num_groups": f"N (of {groups}; MONAI's default is 32)",
        "norm_eps": "X (MONAI's default is 1e-6)",
    }
    if levels.transformers and told.norm_eps not in (None, TRANSFORMER_EPS):
        raise UserError(
            f"{given.file}: norm_eps {told.norm_eps} is not supported beside transformers, which"
            f" have {TRANSFORMER_EPS} in UNet"
        )
    classes = "class_embedding.weight" in given.weights
    return network(
        given,
        levels,
        questions,
        dims=given.weights["conv_in.conv.weight"].ndim - 2,
        in_channels=given.shape("conv_in.conv.weight")[1],
        out_channels=given.shape("out.2.conv.weight")[0],
        norm_num_groups=told.norm_num_groups,
        norm_eps=told.norm_eps,
        num_class_embeds=given.shape("class_embedding.weight")[0] if classes else None,
    )


def rename(given: Checkpoint) -> dict[str, Tensor]:
    """The weights by the names of `UNet`."""
    patterns = RENAMED if given.has(TRANSFORMERS) else (*RENAMED, SELF_ATTENTION)
    weights = {}
    for name, tensor in given.weights.items():
        for pattern, ours in patterns:
            name = re.sub(pattern, ours, name)
        module, qkv, leaf = name.rpartition(".qkv.")
        if qkv:  # use_combined_linear
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                weights[f"{module}.to_{letter}.{leaf}"] = part
        else:
            weights[name] = tensor
    for module in [n.removesuffix(".to_q.weight") for n in weights if n.endswith(".to_q.weight")]:
        if f"{module}.to_out.0.weight" not in weights:  # include_fc=False
            channels = len(weights[f"{module}.to_q.weight"])
            weights[f"{module}.to_out.0.weight"] = torch.eye(channels)
            weights[f"{module}.to_out.0.bias"] = torch.zeros(channels)
    return weights


def peer(given: Checkpoint, config: UNetConfig) -> PeerNetwork:
    """MONAI's own network with these weights.

    Raises:
        ImportError: It is not installed.
    """
    from monai.networks.nets import DiffusionModelUNet

    levels, dims = read_levels(given), given.head_dims
    model = DiffusionModelUNet(
        spatial_dims=config.dims,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_res_blocks=levels.layers,
        channels=levels.channels,
        attention_levels=levels.down_attends,
        norm_num_groups=config.norm_num_groups,
        norm_eps=config.norm_eps,
        resblock_updown=levels.resampler is not None,
        num_head_channels=dims(levels.channels, levels.attends),
        with_conditioning=levels.context is not None,
        transformer_num_layers=(levels.transformers or (1,))[0],
        cross_attention_dim=levels.context,
        num_class_embeds=config.num_class_embeds,
        include_fc=any(".attn.out_proj." in n or ".attn1.out_proj." in n for n in given.weights),
        use_combined_linear=any(".qkv." in name for name in given.weights),
    ).eval()
    if model.state_dict().keys() == given.weights.keys():
        model.load_state_dict(given.weights)
    else:
        model.load_old_state_dict(dict(given.weights))
    return lambda x, t, context, labels: model(x, t, context, labels)

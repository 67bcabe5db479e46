"""MONAI's DiffusionModelUNet, and the same network of MONAI Generative: Pinaya 2022."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ddpm_unet.config import UNetConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models.convert.checkpoint import Checkpoint, Levels, divisors

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


class Monai(Checkpoint):
    """MONAI: the architecture of diffusers, in two or three dimensions.

    The number of heads, and groups and epsilon of the group normalisations, are not in the tensors.
    """

    NAME = "MONAI"
    ANCHOR = "middle_block.resnet_1.conv1.conv.weight"

    def config(self) -> UNetConfig:
        """The architecture."""
        levels, hints = self.levels(), self.hints
        questions = {
            "norm_num_groups": f"N (of {divisors(levels.channels)}; MONAI's default is 32)",
            "norm_eps": "X (MONAI's default is 1e-6)",
        }
        if levels.transformers and hints.norm_eps not in (None, TRANSFORMER_EPS):
            raise UserError(
                f"{self.file}: norm_eps {hints.norm_eps} is not supported beside transformers,"
                f" which have {TRANSFORMER_EPS} in UNet"
            )
        classes = "class_embedding.weight" in self.weights
        return self.network(
            levels,
            questions,
            dims=self.weights["conv_in.conv.weight"].ndim - 2,
            in_channels=self.shape("conv_in.conv.weight")[1],
            out_channels=self.shape("out.2.conv.weight")[0],
            norm_num_groups=hints.norm_num_groups,
            norm_eps=hints.norm_eps,
            num_class_embeds=self.shape("class_embedding.weight")[0] if classes else None,
        )

    def renamed(self) -> dict[str, Tensor]:
        """The weights by the names of `UNet`."""
        patterns = RENAMED if self.has(TRANSFORMERS) else (*RENAMED, SELF_ATTENTION)
        weights = {}
        for name, tensor in self.weights.items():
            for pattern, ours in patterns:
                name = re.sub(pattern, ours, name)
            module, qkv, leaf = name.rpartition(".qkv.")
            if qkv:  # use_combined_linear
                for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                    weights[f"{module}.to_{letter}.{leaf}"] = part
            else:
                weights[name] = tensor
        for name in [n for n in weights if n.endswith(".to_q.weight")]:
            out = f"{name.removesuffix('.to_q.weight')}.to_out.0"
            if f"{out}.weight" not in weights:  # include_fc=False
                channels = len(weights[name])
                weights[f"{out}.weight"] = torch.eye(channels)
                weights[f"{out}.bias"] = torch.zeros(channels)
        return weights

    def levels(self) -> Levels:
        """What names and shapes say."""
        number = self.count("down_blocks")
        resampler = "down_blocks.0.downsampler.norm1.weight"
        depth = self.count(TRANSFORMERS)
        return Levels(
            tuple(self.shape(f"down_blocks.{i}.resnets.0.norm2.weight")[0] for i in range(number)),
            tuple(self.count(f"down_blocks.{i}.resnets") for i in range(number)),
            tuple(self.has(f"down_blocks.{i}.attentions") for i in range(number)),
            tuple(self.has(f"up_blocks.{i}.attentions") for i in range(number)),
            resampler if resampler in self.weights else None,
            (depth,) * number if depth else None,
            self.shape(f"{TRANSFORMERS}.0.attn2.to_k.weight")[1] if depth else None,
        )

"""openai/guided-diffusion and improved-diffusion (Nichol 2021, Dhariwal 2021), and their heirs.

CompVis/latent-diffusion and Stable Diffusion 1.x and 2.x (Rombach 2022) have the same names, with a
transformer in place of every attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ddpm_unet.config import UNetConfig
from ddpm_unet.models.convert.checkpoint import Checkpoint, Levels

GROUPS = 32
TOP = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
SHARED = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "op": "conv",
}


class GuidedDiffusion(Checkpoint):
    """guided-diffusion and improved-diffusion.

    A level of n residual blocks is n + 1 entries of `input_blocks`, the last of which halves the
    resolution, and n + 1 entries of `output_blocks`, the last of which doubles it. The number of
    heads and the order of queries, keys and values within `qkv` are not in the tensors. The group
    normalisations have 32 groups and the sinusoids start with the cosines, always.
    """

    NAME = "guided-diffusion"
    ANCHOR = "middle_block.1.qkv.weight"
    LAYERS = SHARED | {"norm": "group_norm", "proj_out": "to_out.0"}

    def config(self) -> UNetConfig:
        """The architecture."""
        levels = self.levels()
        order = "heads_first or qkv_first (use_new_attention_order)"
        questions = {"qkv_order": None if self.hints.heads == 1 else order}
        return self.network(levels, questions, **self.settings(levels.channels))

    def renamed(self) -> dict[str, Tensor]:
        """The weights by the names of `UNet`."""
        modules = places(self.levels())
        weights = {}
        for name, tensor in self.weights.items():
            # The projections of the attention are convolutions of sequences.
            tensor = tensor.squeeze(2) if tensor.ndim == 3 else tensor
            ours = our_name(name, modules, self.LAYERS)
            module, qkv, leaf = ours.rpartition(".qkv.")
            if qkv:
                for letter, part in zip("qkv", self._split(tensor), strict=True):
                    weights[f"{module}.to_{letter}.{leaf}"] = part
            else:
                weights[ours] = tensor
        return weights

    def levels(self) -> Levels:
        """What names and shapes say, but for transformers."""
        per_level = self._blocks_per_level()
        number = self.count("output_blocks") // per_level
        starts = [i * per_level for i in range(number)]
        resampler = f"input_blocks.{per_level}.0.in_layers.0.weight"
        return Levels(
            tuple(self.shape(f"input_blocks.{k + 1}.0.out_layers.0.weight")[0] for k in starts),
            (per_level - 1,) * number,
            tuple(self.has(f"input_blocks.{k + 1}.1") for k in starts),
            tuple(self.has(f"output_blocks.{k}.1.norm") for k in starts),
            resampler if number > 1 and resampler in self.weights else None,
        )

    def settings(self, channels: Sequence[int]) -> dict[str, Any]:
        """What networks with a context and without have in common, besides their levels."""
        entry = self.shape("input_blocks.0.0.weight")
        if len(entry) != 4:
            self.refuse("input_blocks.0.0.weight", "is not a convolution of images")
        sinusoids = self.shape("time_embed.0.weight")[1]
        if sinusoids != channels[0]:
            self.refuse(
                "time_embed.0.weight",
                f"reads {sinusoids} sinusoids, not as many as the first level has channels,"
                f" {channels[0]}",
            )
        modulation = self.shape("input_blocks.1.0.emb_layers.1.weight")[0]
        classes = "label_emb.weight" in self.weights
        if self.has("label_emb") and not classes:
            self.refuse("label_emb.0.0.weight", "embeds vectors, not classes")
        return {
            "in_channels": entry[1],
            "out_channels": self.shape("out.2.weight")[0],
            "norm_num_groups": GROUPS,
            "resnet_time_scale_shift": "default" if modulation == channels[0] else "scale_shift",
            "num_class_embeds": self.shape("label_emb.weight")[0] if classes else None,
        }

    def _blocks_per_level(self) -> int:
        """Entries of `output_blocks` up to the first that doubles the resolution."""
        self.shape("output_blocks.0.0.in_layers.0.weight")
        blocks = self.count("output_blocks")
        for block in range(blocks):
            for child in (f"output_blocks.{block}.1", f"output_blocks.{block}.2"):
                if self.has(f"{child}.conv") or self.has(f"{child}.in_layers"):
                    return block + 1
        return blocks

    def _split(self, qkv: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values of all heads."""
        if self.hints.qkv_order == "qkv_first":
            return qkv.chunk(3)
        heads = self.hints.heads or len(qkv) // 3 // (self.hints.head_dim or 1)
        return [part.flatten(0, 1) for part in qkv.unflatten(0, (heads, 3, -1)).unbind(1)]


class LatentDiffusion(GuidedDiffusion):
    """latent-diffusion and Stable Diffusion. The number of heads is not in the tensors."""

    NAME = "latent-diffusion"
    ANCHOR = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    LAYERS = SHARED

    def config(self) -> UNetConfig:
        """The architecture."""
        levels = self.levels()
        step = levels.layers[0] + 1
        depths = [
            self.count(f"input_blocks.{1 + i * step}.1.transformer_blocks")
            for i in range(len(levels.channels))
        ]
        depths[-1] = self.count("middle_block.1.transformer_blocks")
        context = self.shape(self.ANCHOR)[1]
        levels = replace(levels, transformers=tuple(depths), context=context)
        linear = len(self.shape("middle_block.1.proj_in.weight")) == 2
        rest = self.settings(levels.channels) | {"use_linear_projection": linear}
        return self.network(levels, {}, **rest)


def places(levels: Levels) -> dict[str, str]:
    """Our name of each of their modules."""
    modules = dict(TOP)
    step = levels.layers[0] + 1
    for i, attends in enumerate(levels.up_attends):
        down, up = f"down_blocks.{i}", f"up_blocks.{i}"
        for j in range(step - 1):
            modules[f"input_blocks.{1 + i * step + j}.0"] = f"{down}.resnets.{j}"
            modules[f"input_blocks.{1 + i * step + j}.1"] = f"{down}.attentions.{j}"
        modules[f"input_blocks.{(i + 1) * step}.0"] = f"{down}.downsamplers.0"
        for j in range(step):
            modules[f"output_blocks.{i * step + j}.0"] = f"{up}.resnets.{j}"
            modules[f"output_blocks.{i * step + j}.1"] = f"{up}.attentions.{j}"
        modules[f"output_blocks.{(i + 1) * step - 1}.{1 + attends}"] = f"{up}.upsamplers.0"
    return modules


def our_name(name: str, modules: Mapping[str, str], layers: Mapping[str, str]) -> str:
    """The name of a tensor in `UNet`, or its own if it has no place there."""
    parts = name.split(".")
    for length in (3, 2, 1):
        module = modules.get(".".join(parts[:length]))
        if module is not None:
            layer = ".".join(parts[length:-1])
            return ".".join(part for part in (module, layers.get(layer, layer), parts[-1]) if part)
    return name


def name_average(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give back to the weights' average, `model_ema.`, the dots that its names have lost."""
    dotted = {
        f"model_ema.{name.replace('.', '')}": f"model_ema.{name}"
        for name in (full.removeprefix("model.") for full in weights if full.startswith("model."))
    }
    return {dotted.get(name, name): tensor for name, tensor in weights.items()}

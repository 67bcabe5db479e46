"""openai/guided-diffusion and improved-diffusion: Nichol 2021, Dhariwal 2021.

A level of n residual blocks is n + 1 entries of `input_blocks`, the last of which halves the
resolution, and n + 1 entries of `output_blocks`, the last of which doubles it. The number of
heads and the order of queries, keys and values within `qkv` are not in the tensors. The group
normalisations have 32 groups and the sinusoids start with the cosines, always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ddpm_unet.config import UNetConfig
from ddpm_unet.config.foreign import ForeignConfig
from ddpm_unet.models.foreign.checkpoint import Checkpoint, PeerNetwork
from ddpm_unet.models.foreign.levels import Levels, network

NAME = "guided-diffusion"
PEER = "guided-diffusion itself"
ANCHOR = "middle_block.1.qkv.weight"
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
LAYERS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "op": "conv",
}
SELF_ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}


def read_levels(given: Checkpoint) -> Levels:
    """What names and shapes say, but for transformers.

    Raises:
        UserError: Names a tensor that is missing.
    """
    per_level = blocks_per_level(given)
    number = given.count("output_blocks") // per_level
    starts = [i * per_level for i in range(number)]
    resampler = f"input_blocks.{per_level}.0.in_layers.0.weight"
    return Levels(
        tuple(given.shape(f"input_blocks.{k + 1}.0.out_layers.0.weight")[0] for k in starts),
        (per_level - 1,) * number,
        tuple(given.has(f"input_blocks.{k + 1}.1") for k in starts),
        tuple(given.has(f"output_blocks.{k}.1.norm") for k in starts),
        resampler if number > 1 and resampler in given.weights else None,
    )


def blocks_per_level(given: Checkpoint) -> int:
    """Entries of `output_blocks` up to the first that doubles the resolution."""
    given.shape("output_blocks.0.0.in_layers.0.weight")
    blocks = given.count("output_blocks")
    for block in range(blocks):
        for child in (1, 2):
            if any(given.has(f"output_blocks.{block}.{child}.{x}") for x in ("conv", "in_layers")):
                return block + 1
    return blocks


def settings(given: Checkpoint, channels: Sequence[int]) -> dict[str, Any]:
    """What networks with a context and without have in common, besides their levels.

    Raises:
        UserError: Names the first tensor that does not fit.
    """
    entry = given.shape("input_blocks.0.0.weight")
    if len(entry) != 4:
        given.refuse("input_blocks.0.0.weight", "is not a convolution of images")
    sinusoids = given.shape("time_embed.0.weight")[1]
    if sinusoids != channels[0]:
        given.refuse(
            "time_embed.0.weight",
            f"reads {sinusoids} sinusoids, not as many as the first level has channels,"
            f" {channels[0]}",
        )
    modulation = given.shape("input_blocks.1.0.emb_layers.1.weight")[0]
    classes = "label_emb.weight" in given.weights
    if given.has("label_emb") and not classes:
        given.refuse("label_emb.0.0.weight", "embeds vectors, not classes")
    return {
        "in_channels": entry[1],
        "out_channels": given.shape("out.2.weight")[0],
        "norm_num_groups": GROUPS,
        "resnet_time_scale_shift": "default" if modulation == channels[0] else "scale_shift",
        "num_class_embeds": given.shape("label_emb.weight")[0] if classes else None,
    }


def config(given: Checkpoint) -> UNetConfig:
    """The architecture.

    Raises:
        UserError: It is no network that `UNet` can hold, or something is left open.
    """
    levels = read_levels(given)
    order = None if given.told.heads == 1 else "heads_first or qkv_first (use_new_attention_order)"
    return network(given, levels, {"qkv_order": order}, **settings(given, levels.channels))


def rename(given: Checkpoint) -> dict[str, Tensor]:
    """The weights by the names of `UNet`."""
    modules = places(read_levels(given))
    weights = {}
    for name, tensor in given.weights.items():
        # The projections of the attention are convolutions of sequences.
        tensor = tensor.squeeze(2) if tensor.ndim == 3 else tensor
        ours = our_name(name, modules, LAYERS | SELF_ATTENTION)
        module, qkv, leaf = ours.rpartition(".qkv.")
        if qkv:
            for letter, part in zip("qkv", split(tensor, given.told), strict=True):
                weights[f"{module}.to_{letter}.{leaf}"] = part
        else:
            weights[ours] = tensor
    return weights


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


def split(qkv: Tensor, told: ForeignConfig) -> Sequence[Tensor]:
    """Queries, keys and values of all heads, from rows in the order that was told."""
    if told.qkv_order == "qkv_first":
        return qkv.chunk(3)
    heads = told.heads or len(qkv) // 3 // (told.head_dim or 1)
    return [part.flatten(0, 1) for part in qkv.unflatten(0, (heads, 3, -1)).unbind(1)]


def peer(given: Checkpoint, config: UNetConfig) -> PeerNetwork:
    """guided-diffusion's own network with these weights.

    Raises:
        ImportError: It is not installed.
    """
    from guided_diffusion.unet import UNetModel

    levels, told, base = read_levels(given), given.told, config.block_out_channels[0]
    model = UNetModel(
        image_size=None,
        in_channels=config.in_channels,
        model_channels=base,
        out_channels=config.out_channels,
        num_res_blocks=levels.layers[0],
        attention_resolutions=[2**i for i, used in enumerate(levels.down_attends) if used],
        channel_mult=[channels / base for channels in levels.channels],
        num_classes=config.num_class_embeds,
        num_heads=told.heads or 1,
        num_head_channels=told.head_dim or -1,
        use_scale_shift_norm=config.resnet_time_scale_shift == "scale_shift",
        resblock_updown=levels.resampler is not None,
        use_new_attention_order=told.qkv_order == "qkv_first",
    ).eval()
    model.load_state_dict(given.weights)
    return lambda x, t, context, labels: model(x, t, labels)

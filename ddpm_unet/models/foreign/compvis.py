"""CompVis/latent-diffusion and Stable Diffusion 1.x and 2.x: Rombach 2022.

The names are those of guided-diffusion, with a transformer in place of every attention. The
number of heads is not in the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from tempfile import TemporaryDirectory

from torch import Tensor

from ddpm_unet.config import UNetConfig
from ddpm_unet.models.foreign.checkpoint import Checkpoint, PeerNetwork
from ddpm_unet.models.foreign.guided_diffusion import (
    LAYERS,
    our_name,
    places,
    read_levels,
    settings,
)
from ddpm_unet.models.foreign.levels import network
from ddpm_unet.models.pretrained import write_config

NAME = "latent-diffusion"
PEER = "diffusers, which reads such files too"
ANCHOR = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"


def name_average(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give back to the weights' average, `model_ema.`, the dots that its names have lost."""
    dotted = {
        f"model_ema.{name.replace('.', '')}": f"model_ema.{name}"
        for name in (full.removeprefix("model.") for full in weights if full.startswith("model."))
    }
    return {dotted.get(name, name): tensor for name, tensor in weights.items()}


def config(given: Checkpoint) -> UNetConfig:
    """The architecture.

    Raises:
        UserError: It is no network that `UNet` can hold, or something is left open.
    """
    levels = read_levels(given)
    step = levels.layers[0] + 1
    depths = [
        given.count(f"input_blocks.{1 + i * step}.1.transformer_blocks")
        for i in range(len(levels.channels))
    ]
    depths[-1] = given.count("middle_block.1.transformer_blocks")
    levels = replace(levels, transformers=tuple(depths), context=given.shape(ANCHOR)[1])
    linear = len(given.shape("middle_block.1.proj_in.weight")) == 2
    rest = settings(given, levels.channels) | {"use_linear_projection": linear}
    return network(given, levels, {}, **rest)


def rename(given: Checkpoint) -> dict[str, Tensor]:
    """The weights by the names of `UNet`."""
    modules = places(read_levels(given))
    return {our_name(name, modules, LAYERS): tensor for name, tensor in given.weights.items()}


def peer(given: Checkpoint, config: UNetConfig) -> PeerNetwork:
    """The network that diffusers makes of the same checkpoint."""
    from diffusers import UNet2DConditionModel

    checkpoint = {f"model.diffusion_model.{name}": t for name, t in given.weights.items()}
    with TemporaryDirectory() as folder:
        write_config(config, folder)
        model = UNet2DConditionModel.from_single_file(checkpoint, config=folder).eval()
    return lambda x, t, context, labels: model(x, t, context, class_labels=labels).sample

"""diffusers' networks as the reference: configurations, random weights and comparisons."""

from __future__ import annotations

import math
from typing import Any

import small
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from ddpm_unet.models import UNet

Settings = dict[str, Any]

# google/ddpm-cifar10-32, where it is not diffusers' default
CIFAR: Settings = {
    "attention_head_dim": None,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-06,
    "sample_size": 32,
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}

# The U-Net of Stable Diffusion 1.x, which is diffusers' default but for these
STABLE_DIFFUSION: Settings = {"cross_attention_dim": 768, "sample_size": 64}
NARROW_STABLE_DIFFUSION = STABLE_DIFFUSION | {
    "block_out_channels": (32, 64, 128, 128),
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
}

SMALL: Settings = small.SMALL | {"attention_head_dim": 4}
SMALL_CONDITIONAL: Settings = SMALL | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": 10,
}


def reference(settings: Settings) -> UNet2DModel | UNet2DConditionModel:
    """diffusers' network of these settings, with random weights in place of all initial ones."""
    kind = UNet2DConditionModel if "cross_attention_dim" in settings else UNet2DModel
    network = kind(**settings)
    randomise(network)
    return network.eval()


@torch.no_grad()
def randomise(network: nn.Module, seed: int = 0) -> None:
    """Random weights everywhere, of such size that every layer matters in the output."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        parameter.normal_(generator=generator)
        if parameter.ndim > 1:
            parameter.mul_(1.5 / math.sqrt(parameter[0].numel()))
        else:
            parameter.mul_(0.3).add_(1.0 if name.endswith("weight") else 0.0)


def inputs(
    settings: Settings, space: tuple[int, ...], dtype: torch.dtype, batch: int = 2
) -> dict[str, Tensor]:
    """Random arguments of a network of these settings, by our names."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    conditional = "cross_attention_dim" in settings
    given = {
        "x": normal(batch, settings.get("in_channels", 4 if conditional else 3), *space),
        "t": torch.randint(1000, (batch,), generator=generator),
    }
    if conditional:
        widths = settings["cross_attention_dim"]
        given["context"] = normal(batch, 7, widths if isinstance(widths, int) else widths[0])
    if settings.get("class_embed_type") == "identity":
        given["class_labels"] = normal(batch, 4 * settings["block_out_channels"][0])
    elif settings.get("class_embed_type") == "timestep" or settings.get("num_class_embeds"):
        given["class_labels"] = torch.arange(batch)
    return given


def reference_output(network: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """What diffusers makes of arguments by our names."""
    names = {"context": "encoder_hidden_states", "context_mask": "encoder_attention_mask"}
    rest = {names.get(k, k): v for k, v in given.items() if k not in ("x", "t")}
    return network(given["x"], given["t"], **rest).sample


def outputs_and_gradients(network: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output, and the gradient of a random projection of it to weights and inputs."""
    given = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in given.items()}
    network.zero_grad()
    output = network(**given) if isinstance(network, UNet) else reference_output(network, given)
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    (output * direction.to(output.dtype)).sum().backward()
    results = {name: p.grad for name, p in network.named_parameters()}
    results |= {name: v.grad for name, v in given.items() if v.is_floating_point()}
    return {name: v for name, v in results.items() if v is not None} | {"output": output.detach()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor within a relative error.

    Gradients are measured against at least 1/1000 of the largest one: some, as that of a key's
    bias, are zero in exact arithmetic.
    """
    assert ours.keys() == theirs.keys()
    largest = max(g.norm() for name, g in theirs.items() if name != "output")
    for name, value in theirs.items():
        size = value.norm() if name == "output" else torch.maximum(value.norm(), largest / 1000)
        error = (ours[name] - value).norm() / size
        assert error < tolerance, f"{name}: relative error {error:.1e}"

"""The networks that are timed, their twins in other libraries, and the work they do."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm_unet.config import ClassicConfig, UNetConfig
from ddpm_unet.cpu import accelerate_cpu
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.inference.pipeline import read_pipeline
from ddpm_unet.models import UNet
from ddpm_unet.models.classic import ClassicUNet

ROOT = Path(__file__).parents[2]
HISTOLOGY = ROOT / "samples" / "histology64" / "model"

SMALL = UNetConfig(
    sample_size=32,
    block_out_channels=(16, 32),
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
)
"""164,563 parameters."""

FACES = UNetConfig(
    sample_size=64,
    block_out_channels=(128, 128, 256, 256, 512, 512),
    down_block_types=(*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
    attention_head_dim=None,
    downsample_padding=0,
    flip_sin_to_cos=False,
    freq_shift=1,
    norm_eps=1e-6,
)
"""The network of google/ddpm-celebahq-256, 114M parameters, here for images of 64 x 64."""

STABLE_DIFFUSION = UNetConfig(
    in_channels=4,
    out_channels=4,
    sample_size=64,
    block_out_channels=(320, 640, 1280, 1280),
    down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    mid_block_type="UNetMidBlock2DCrossAttn",
    up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    cross_attention_dim=768,
)
"""The network of Stable Diffusion 1.x, 860M parameters."""


def cifar() -> UNetConfig:
    """The network of `configs/ddpm_cifar10.yaml`, without dropout: 35.7M parameters."""
    settings = yaml.safe_load((ROOT / "configs" / "ddpm_cifar10.yaml").read_text())["model"]
    return UNetConfig(**settings | {"dropout": 0.0, "sample_size": 32})


def milesial(width: int, fast: bool = True) -> ClassicUNet:
    """The common variant of the 2015 network, of `width` channels at the finest level (64).

    Args:
        width: Channels of the finest level.
        fast: By our compiled functions, not torch's own.
    """
    network = ClassicUNet(ClassicConfig(padding="same", norm="batch", dropout=0, base_width=width))
    network = randomised(network).eval()
    return accelerate_cpu(network) if fast else network


def random_unet(config: UNetConfig) -> UNet:
    """Ours, with random weights everywhere: a new network would return zeros."""
    return accelerate_cpu(randomised(UNet(config)).eval())


def histology() -> tuple[UNet, GaussianDiffusion]:
    """The shipped model as the scripts use it on a CPU."""
    unet, diffusion = read_pipeline(HISTOLOGY)
    assert isinstance(diffusion, GaussianDiffusion)
    return accelerate_cpu(unet), diffusion


@torch.no_grad()
def randomised(network: Any, seed: int = 0) -> Any:
    """The network itself, with random weights, such that every layer matters in the output."""
    generator = torch.Generator().manual_seed(seed)
    for name, weights in network.named_parameters():
        weights.normal_(generator=generator)
        if weights.ndim > 1:
            weights.mul_(1.5 / math.sqrt(weights[0].numel()))
        else:
            weights.mul_(0.3).add_(1.0 if name.endswith("weight") else 0.0)
    return network


def diffusers_twin(unet: UNet) -> Any:
    """Diffusers' network of the same weights, read from the folder that ours writes."""
    from diffusers import UNet2DConditionModel, UNet2DModel

    kind = UNet2DConditionModel if unet.config.conditional else UNet2DModel
    with TemporaryDirectory() as folder:
        unet.save_pretrained(folder)
        return kind.from_pretrained(folder).eval()


def lucidrains_unet(dim: int = 152) -> Any:
    """denoising-diffusion-pytorch's network; 152 channels make its work that of DDPM-CIFAR."""
    from denoising_diffusion_pytorch import Unet

    return randomised(Unet(dim, dim_mults=(1, 2, 2, 2))).eval()


def random_batch(config: UNetConfig, batch: int, size: int | None = None) -> tuple[Tensor, Tensor]:
    """Random images `[B, C, H, W]` and timesteps `int64 [B]`."""
    generator = torch.Generator().manual_seed(0)
    side = size or config.sample_size
    assert isinstance(side, int)
    shape = (batch, config.in_channels, side, side)
    timesteps = torch.randint(1000, (batch,), generator=generator)
    return torch.randn(shape, generator=generator), timesteps


def gflop(network: nn.Module, *inputs: Tensor, backward: bool = False) -> float:
    """10^9 operations of a pass for one image, counted by torch without computing anything.

    A product and a sum count two. The layers are counted as plain convolutions and products,
    whatever computes them faster here.

    Args:
        network: Any; with `backward` a plain one, as diffusers' are: ours computes some of its
            activations twice.
        inputs: Of a batch of any size, of which the first image is counted.
        backward: With the gradients of all weights.
    """
    shadow = copy.deepcopy(network).to("meta")
    ghosts = [torch.empty_like(x[:1], device="meta") for x in inputs]
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(backward):
        output = shadow(*ghosts)
        output = getattr(output, "sample", output)
        if backward:
            output.sum().backward()
    return counter.get_total_flops() / 1e9


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference of two outputs, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def gradient_difference(ours: nn.Module, theirs: nn.Module) -> float:
    """Norm of the difference of two networks' gradients, relative to that of the gradient."""
    others = dict(theirs.named_parameters())
    pairs = [(p.grad, others[name].grad) for name, p in ours.named_parameters()]
    gaps = [float((a - b).norm()) for a, b in pairs if a is not None and b is not None]
    sizes = [float(b.norm()) for _, b in pairs if b is not None]
    return math.hypot(*gaps) / math.hypot(*sizes)


Work = Callable[[], object]

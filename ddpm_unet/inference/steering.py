"""The denoiser of a job: a network, what it is told, and what guides it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ddpm_unet.diffusion.conditioning import (
    ALWAYS,
    autoguidance,
    classifier_free_guidance,
    concat_cond,
)
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.errors import UserError
from ddpm_unet.inference.conditions import Conditioning
from ddpm_unet.inference.pipeline import read_pipeline
from ddpm_unet.models import UNet
from ddpm_unet.models.pretrained import check_weights, read_file

CHECKPOINT = "ema.safetensors"
TOLD = ("in_channels", "out_channels", "dims", "num_class_embeds", "cross_attention_dim")


def steered(
    network: Callable[..., Tensor],
    null_class: int | None,
    scale: float | None = None,
    interval: tuple[float, float] | None = None,
    guide: Callable[..., Tensor] | None = None,
) -> Callable[..., Tensor]:
    """A denoiser `(x, t, **conditions) -> prediction` of a network.

    Args:
        network: Told in the form of `UNet`.
        null_class: See `drop_cond`.
        scale: Of guidance, if any.
        interval: The timesteps within which it is guided; None for all.
        guide: Another network, told the same; without one the network told nothing is the guide.
    """
    denoiser = concat_cond(network)
    if scale is None:
        return denoiser
    if guide is None:
        return classifier_free_guidance(denoiser, scale, null_class, interval or ALWAYS)
    return autoguidance(denoiser, concat_cond(guide), scale, interval or ALWAYS)


def check_guidance(
    told: Conditioning,
    scale: float | None,
    interval: tuple[float, float] | None,
    guide: Path | None,
) -> None:
    """Refuse guidance without a guide, and the reverse.

    Raises:
        UserError: Names the flag.
    """
    if scale is None and (interval or guide):
        flag = "--guide" if guide else "--guidance_interval"
        raise UserError(f"{flag}: guides nothing without --guidance, its scale; give both")
    if scale is not None and scale != 1 and not (told.withheld or guide):
        raise UserError(
            "--guidance: the model was never told nothing, so it cannot guide itself; train it "
            "with condition_dropout, or give an earlier checkpoint of its run as --guide"
        )
    if scale is not None and not math.isfinite(scale):
        raise UserError(f"--guidance {scale}: give a finite number")
    if interval and not interval[0] <= interval[1]:
        raise UserError(f"--guidance_interval {interval[0]:g} {interval[1]:g}: give LO before HI")


def read_guide(folder: Path, unet: UNet, diffusion: GaussianDiffusion, told: Conditioning) -> UNet:
    """The network that guides another.

    Args:
        folder: A checkpoint of the same run, whose averaged weights are taken, or the folder of
            a model that is told the same and predicts the same, of any size.
        unet: The network to be guided.
        diffusion: Its forward process.
        told: What it is told.

    Raises:
        UserError: Names what is missing or differs.
    """
    if (folder / CHECKPOINT).is_file():
        weights = read_file(folder / CHECKPOINT)
        with torch.device("meta"):
            guide = UNet(unet.config)
        cure = "take a checkpoint of the model's own run"
        check_weights(folder, guide.state_dict(), weights, cure)
        guide.load_state_dict(weights, assign=True)
        return guide.eval()
    guide, process = read_pipeline(folder)
    own, others = asdict(guide.config), asdict(unet.config)
    differing = [
        *(name for name in TOLD if own[name] != others[name]),
        *(name for name, value in process.config.items() if value != getattr(diffusion, name)),
        *(["conditions.json"] if Conditioning.read(folder) != told else []),
    ]
    if differing:
        raise UserError(
            f"{folder}: differs from the model in {differing[0]}; a guide must be told the same, "
            "predict the same and see the same noise"
        )
    return guide

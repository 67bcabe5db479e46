"""Denoising unlabelled images in the steps, and by the weights, that segment labelled ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ddpm_unet.config import SegmentConfig
from ddpm_unet.data.sources import open_images, open_stream
from ddpm_unet.data.stream import Stream, to_model_range
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.inference.pipeline import read_diffusion
from ddpm_unet.training.job import Batch

SCRATCH = "scratch"


class JointDenoising:
    """The denoiser's part in transfer "joint".

    Unlabelled images are cut in windows of `data.size`, at `data.scale` times `unlabelled.scale`
    and with the labelled images' channels; their value range is `data.value_range` unless they
    have one of their own. The forward process is the one that the denoiser was trained with.

    Args:
        config: All settings.
        channels: Channels of the labelled images.

    Raises:
        UserError: The unlabelled images cannot be used, or the denoiser's folder has no schedule.
    """

    def __init__(self, config: SegmentConfig, channels: int) -> None:
        self.seed, self.told = config.seed, config.head.timestep
        self.settings = replace(
            config.unlabelled,
            dims=config.data.dims,
            size=config.data.size,
            scale=config.data.scale * config.unlabelled.scale,
            channels=channels,
            value_range=config.unlabelled.value_range or config.data.value_range,
        )
        self.images = open_images(self.settings)
        self.loss_options = config.diffusion.loss_options
        self.diffusion = (
            GaussianDiffusion.from_config(config.diffusion)
            if config.init == SCRATCH
            else read_diffusion(Path(str(config.init)))
        )
        self.diffusion.check_loss(**self.loss_options)

    def beside(self, labelled: Dataset[Batch], channels: int) -> Dataset[Batch]:
        """A labelled stream with unlabelled images, of the U-Net's channels, at its positions."""
        return WithUnlabelled(
            labelled, open_stream(self.settings, self.seed, self.images), channels
        )

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """One pass over clean labelled and noisy unlabelled images.

        Returns:
            Logits of the labelled ones, and the denoising loss of each unlabelled one, `[B]`.
        """
        clean = to_model_range(batch["unlabelled"])
        images = batch["image"].expand(-1, *clean.shape[1:])
        timesteps, noise = self.diffusion.draw(
            self.seed, batch["position"], clean.shape[1:], images.device
        )
        told = torch.full_like(timesteps, self.told)
        logits = images.new_empty(0)

        def denoiser(noisy: Tensor, t: Tensor) -> Tensor:
            nonlocal logits
            predictions, scores = model(torch.cat([images, noisy]), torch.cat([told, t]), both=True)
            logits = scores[: len(images)]
            return predictions[len(images) :]

        losses = self.diffusion.losses(denoiser, clean, timesteps, noise, **self.loss_options)
        return logits, losses


class WithUnlabelled(Dataset[Batch]):
    """A labelled stream with an unlabelled image at every position."""

    def __init__(self, labelled: Dataset[Batch], unlabelled: Stream, channels: int) -> None:
        self.labelled, self.unlabelled, self.channels = labelled, unlabelled, channels

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """The labelled batch, and "unlabelled" images, grey ones repeated to `channels`."""
        labelled: Any = self.labelled
        images = self.unlabelled.__getitems__(positions)["image"]
        unlabelled = images.expand(-1, self.channels, *images.shape[2:]).contiguous()
        return {**labelled.__getitems__(positions), "unlabelled": unlabelled}

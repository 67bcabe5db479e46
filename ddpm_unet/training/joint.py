"""Denoising unlabelled images in the steps, and by the weights, that segment labelled ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ddpm_unet.data.stream import to_model_range
from ddpm_unet.diffusion.process import Diffusion
from ddpm_unet.training.job import Batch


@dataclass
class JointDenoising:
    """The denoiser's part in transfer "joint".

    The labelled images are clean, the unlabelled ones are noised in the same pass.

    Args:
        diffusion: The forward process that the denoiser was trained with.
        windows: Unlabelled training batches by position.
        timestep: That the network is given for clean images.
        loss_options: Arguments of `Diffusion.losses`.
        seed: Of timesteps and noise.
        description: A line for the log.
    """

    diffusion: Diffusion
    windows: Any
    timestep: int = 0
    loss_options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    description: str = ""

    def __post_init__(self) -> None:
        self.diffusion.check_loss(**self.loss_options)

    def beside(self, labelled: Dataset[Batch], channels: int) -> Dataset[Batch]:
        """A labelled stream with unlabelled images, of the U-Net's channels, at its positions."""
        return WithUnlabelled(labelled, self.windows, channels)

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of clean labelled images, and denoising losses `[B]` of noisy unlabelled ones."""
        clean = to_model_range(batch["unlabelled"])
        images = batch["image"].expand(-1, *clean.shape[1:])
        timesteps, noise = self.diffusion.draw(
            self.seed, batch["position"], clean.shape[1:], images.device
        )
        clean_at = torch.full_like(timesteps, self.timestep)
        logits = images.new_empty(0)

        def denoiser(noisy: Tensor, t: Tensor) -> Tensor:
            nonlocal logits
            both = torch.cat([images, noisy]), torch.cat([clean_at, t])
            predictions, scores = model(*both, both=True)
            logits = scores[: len(images)]
            return predictions[len(images) :]

        losses = self.diffusion.losses(denoiser, clean, timesteps, noise, **self.loss_options)
        return logits, losses


@dataclass
class WithUnlabelled(Dataset[Batch]):
    """A labelled stream with an unlabelled image at every position, of so many channels."""

    labelled: Any
    unlabelled: Any
    channels: int

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """The labelled batch, and "unlabelled" images, grey ones repeated to `channels`."""
        images = self.unlabelled.__getitems__(positions)["image"]
        unlabelled = images.expand(-1, self.channels, *images.shape[2:]).contiguous()
        return {**self.labelled.__getitems__(positions), "unlabelled": unlabelled}

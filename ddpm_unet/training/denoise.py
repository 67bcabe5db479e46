"""The job of learning to denoise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ddpm_unet.config import DenoiseConfig
from ddpm_unet.data.sources import held_out, open_images
from ddpm_unet.data.stream import Stream, to_model_range
from ddpm_unet.diffusion.objective import Objective
from ddpm_unet.diffusion.samplers import make_scheduler
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.plots import save_grid
from ddpm_unet.inference.generate import generate_together, of_class
from ddpm_unet.inference.pipeline import image_shape, write_pipeline
from ddpm_unet.models import UNet
from ddpm_unet.training.job import Batch, even_batches, micro_batches
from ddpm_unet.training.settings import check_preview


class DenoiseJob:
    """A U-Net that predicts the noise in images (Ho 2020).

    Args:
        config: All settings.

    Raises:
        UserError: The data cannot be used, or do not fit the network.
    """

    criterion: str | None = None

    def __init__(self, config: DenoiseConfig) -> None:
        check_preview(config.preview, config.diffusion.num_train_timesteps)
        self.config = config
        self.images = open_images(config.data)
        self.held_out = held_out(config.data)
        self.objective = Objective(config.diffusion)

    def describe(self) -> str:
        """One line on the data."""
        return self.images.describe()

    def build_model(self) -> UNet:
        """The network, freshly initialised."""
        model = self.config.model
        channels = self.images.layout.channels
        if model.in_channels != channels:
            raise UserError(
                f"model.in_channels = {model.in_channels}, but the images have {channels}; "
                f"set model.in_channels and model.out_channels to {channels}, or data.channels"
            )
        if model.dims != self.config.data.dims:
            raise UserError(
                f"model.dims = {model.dims}, but data.dims = {self.config.data.dims}; set both to "
                "2 for pictures, or 3 for volumes"
            )
        classes = len(self.images.classes) if self.config.data.class_labels else None
        if model.num_class_embeds != classes:
            cure = (
                f"set it to {classes}" if classes else "set it to null, or data.class_labels true"
            )
            raise UserError(
                f"model.num_class_embeds = {model.num_class_embeds}, but the images come with "
                f"{classes or 'no'} classes; {cure}"
            )
        return UNet(replace(model, sample_size=self.config.data.size))

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """One group: everything learns at the same rate."""
        return [{"params": list(model.parameters())}]

    def batches(
        self, model: nn.Module, first_step: int, accelerator: Accelerator
    ) -> Iterator[Batch]:
        """This process's micro-batches."""
        config = self.config
        stream = Stream(self.images, config.data, config.seed)
        return micro_batches(stream, first_step, config.train, config.data.workers, accelerator)

    def name(self, position: int) -> str:
        """The picture at a stream position."""
        return Stream(self.images, self.config.data, self.config.seed).name(position)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Denoising loss per image, at the timestep and noise of its stream position."""
        return self._losses(model, batch, batch["position"], self.config.seed)

    def validate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Denoising loss on held-out windows, with the same timesteps and noise every time."""
        if self.held_out is None:
            return {}
        count = min(self.config.preview.validation_images, len(self.held_out))
        size = self.config.train.micro_batch or self.config.train.batch_size
        total = torch.zeros((), device=accelerator.device)
        for positions, counts in even_batches(count, size, accelerator):
            batch = self.held_out.__getitems__(positions)
            batch = {key: value.to(accelerator.device) for key, value in batch.items()}
            with accelerator.autocast():
                losses = self._losses(model, batch, positions, seed=0)
            total += losses.sum() * counts
        return {"val_loss": float(accelerator.reduce(total, "sum")) / count}

    def draw(self, model: nn.Module, accelerator: Accelerator, path: Path) -> None:
        """A grid of samples, by a few steps of DDIM."""
        network: Any = model
        with accelerator.autocast():
            images = generate_together(
                network,
                make_scheduler("ddim", self.config.diffusion),
                image_shape(network.config),
                self.config.preview.num_images,
                seed=self.config.seed,
                steps=self.config.preview.steps,
                accelerator=accelerator,
                conditions=of_class(None, network.config.num_class_embeds, accelerator.device),
            )
        if accelerator.is_main_process:
            save_grid(images, path)

    def export(self, model: nn.Module, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Write a diffusers pipeline folder."""
        network: Any = model
        write_pipeline(folder, network, self.config.diffusion, state_dict)

    def _losses(
        self, model: nn.Module, batch: Batch, positions: Sequence[int], seed: int
    ) -> Tensor:
        images = to_model_range(batch["image"])
        conditions = {"class_labels": batch["label"]} if "label" in batch else {}
        self.objective.to(images.device)
        timesteps, noise = self.objective.draw(seed, positions, images.shape[1:], images.device)
        return self.objective.losses(model, images, timesteps, noise, **conditions)

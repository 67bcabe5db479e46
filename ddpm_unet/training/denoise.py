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
from ddpm_unet.config.reading import check_limits
from ddpm_unet.data.image_set import ImageSet
from ddpm_unet.data.sources import concat_condition, held_out, open_stream
from ddpm_unet.data.stream import Grid, Stream, to_model_range
from ddpm_unet.diffusion.conditioning import (
    SelfConditioning,
    concat_cond,
    draw_dropped,
    drop_cond,
)
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import make_scheduler
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.plots import save_grid
from ddpm_unet.inference.conditioning import Cond, Conditioning, class_cond
from ddpm_unet.inference.denoiser import generate_together
from ddpm_unet.inference.pipeline import image_shape, write_pipeline
from ddpm_unet.models import UNet
from ddpm_unet.models.autoencoder import Autoencoder
from ddpm_unet.training.job import Batch, even_batches, micro_batches
from ddpm_unet.training.latent_space import LatentSpace, LatentWindows


class DenoiseJob:
    """A U-Net that predicts the noise in images (Ho 2020).

    Args:
        config: All settings.

    Raises:
        UserError: The data cannot be used, or do not fit the network.
    """

    criterion: str | None = None

    def __init__(self, config: DenoiseConfig) -> None:
        check_limits(config)
        if config.train.early_stopping_patience:
            raise UserError(
                f"train.early_stopping_patience {config.train.early_stopping_patience}: is for "
                "segmentation, a denoiser has no score to wait for; set it to 0"
            )
        steps, timesteps = config.preview.steps, config.diffusion.num_train_timesteps
        if steps > timesteps:
            raise UserError(f"preview.steps {steps}: must be between 1 and {timesteps}")
        self.config = config
        self.stream: Stream | LatentWindows = open_stream(config.data, config.seed)
        self._described = self.stream.describe()
        self.images = self.stream.images
        self.held_out: Grid | LatentWindows | None = held_out(config.data)
        self.latent = _latent_space(config, self.images)
        latents: dict[str, Any] = {"clip_sample": False} if self.latent else {}
        self.diffusion = GaussianDiffusion.from_config(config.diffusion, **latents)
        self.diffusion.check_loss(**config.diffusion.loss_options)
        self.self_conditioning = SelfConditioning(self.diffusion)
        self.told = Conditioning(
            image_channels=self.latent.channels if self.latent else self.images.layout.channels,
            class_names=self.images.classes if config.data.class_labels else (),
            cond_dropout=config.condition_dropout > 0,
            concat_cond=concat_condition(config.data, self.images),
            text_encoder=config.data.text_encoder,
            self_conditioning=config.self_conditioning,
            mask_classes=(config.data.condition_classes or 0) * config.data.joint_masks,
        )

    def describe(self) -> str:
        """What the data are, and in which space they are denoised."""
        data, images = self.config.data, self._described
        if data.fit == "crop" and data.scale != 1:
            images += f", at data.scale {data.scale:g}"
        return "\n".join([images, *([self.latent.describe()] if self.latent else [])])

    def build_model(self) -> UNet:
        """The network, freshly initialised."""
        model = self.config.model
        check_network(self.config, self.told, self.images)
        size = self.latent.size if self.latent else self.config.data.size
        return UNet(replace(model, sample_size=size))

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """One group: everything learns at the same rate."""
        return [{"params": list(model.parameters())}]

    def batches(
        self, model: nn.Module, first_step: int, accelerator: Accelerator
    ) -> Iterator[Batch]:
        """This process's micro-batches."""
        config = self.config
        if self.latent and isinstance(self.stream, Stream):
            self.stream = self.latent.training(self.stream, accelerator)
            if isinstance(self.held_out, Grid):
                count = config.preview.validation_images
                self.held_out = self.latent.validation(self.held_out, count, accelerator)
        workers = config.data.workers
        return micro_batches(self.stream, first_step, config.train, workers, accelerator)

    @property
    def digest(self) -> str | None:
        """Of the data."""
        return None

    def name(self, position: int) -> str:
        """The picture at a stream position."""
        return self.stream.name(position)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Denoising loss per image, at the timestep and noise of its stream position."""
        seed, share = self.config.seed, self.config.condition_dropout
        return self._losses(model, batch, batch["position"], seed, share)

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

    def preview(self, model: nn.Module, accelerator: Accelerator, path: Path) -> None:
        """A grid of samples, by a few steps of DDIM; beside each its mask, or what it goes by."""
        network: Any = model
        conditions = self._of_grid(accelerator.device)
        with accelerator.autocast():
            drawn = generate_together(
                concat_cond(network),
                make_scheduler("ddim", self.diffusion),
                image_shape(network.config, channels=self.told.drawn_channels),
                self.config.preview.num_images,
                seed=self.config.seed,
                steps=self.config.preview.steps,
                accelerator=accelerator,
                cond=conditions,
                self_conditioning=self.told.self_conditioning,
            )
        if accelerator.is_main_process:
            images, masks = self.told.split(drawn)
            if self.latent:
                images = self.latent.autoencoder.to(accelerator.device).decode(images)
            if masks is not None:
                levels = masks[:, None] * (2 / (self.told.mask_classes - 1)) - 1
                images = torch.cat([images, levels.expand_as(images)], dim=-1)
            if self.told.concat_cond:
                planes = conditions(range(len(images)))["concat_cond"]
                beside = self.told.concat_cond.shown(planes, images.shape[1])
                images = torch.cat([beside.to(images.device), images], dim=-1)
            save_grid(images, path)

    def export(self, model: nn.Module, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Write a diffusers pipeline folder."""
        network: Any = model
        autoencoder = self.latent.autoencoder if self.latent else None
        write_pipeline(folder, network, self.diffusion, state_dict, autoencoder)
        if self.told != Conditioning(image_channels=self.told.image_channels):
            self.told.write(folder)

    def _losses(
        self,
        model: nn.Module,
        batch: Batch,
        positions: Sequence[int],
        seed: int,
        share_withheld: float = 0.0,
    ) -> Tensor:
        images = self.told.with_masks(to_model_range(batch["image"]), batch.get("condition"))
        timesteps, noise = self.diffusion.draw(seed, positions, images.shape[1:], images.device)
        told = self.conditions(batch, images, positions, seed)
        if share_withheld:
            dropped = draw_dropped(seed, positions, share_withheld, images.device)
            told = drop_cond(told, dropped, len(self.told.class_names))
        denoiser = concat_cond(model)
        if self.told.self_conditioning:
            noisy = self.diffusion.add_noise(images, timesteps, noise)
            told["estimate"] = self.self_conditioning.estimate(
                denoiser, noisy, timesteps, seed, positions, **told
            )
        options = self.config.diffusion.loss_options
        return self.diffusion.losses(denoiser, images, timesteps, noise, **options, **told)

    def conditions(
        self, batch: Batch, images: Tensor, positions: Sequence[int], seed: int
    ) -> dict[str, Tensor]:
        """What the denoiser is told of the images of a batch, by argument."""
        names = {"class_labels": "label", "context": "context", "context_mask": "context_mask"}
        told = {name: batch[key] for name, key in names.items() if key in batch}
        if self.told.concat_cond is not None:
            condition = batch.get("condition")
            told["concat_cond"] = self.told.concat_cond.of_batch(images, condition, seed, positions)
        return told

    def _of_grid(self, device: torch.device) -> Cond:
        """For grids: all classes in turn, or the conditions of the first held-out windows."""
        if self.told.concat_cond is None and self.images.context is None:
            return class_cond(None, len(self.told.class_names) or None, device)
        kept = self.held_out
        source = kept or self.stream

        def conditions(indices: Sequence[int]) -> dict[str, Tensor]:
            positions = [i % len(kept) for i in indices] if kept else list(indices)
            batch = {k: v.to(device) for k, v in source.__getitems__(positions).items()}
            return self.conditions(batch, to_model_range(batch["image"]), positions, seed=0)

        return conditions


def _latent_space(config: DenoiseConfig, images: ImageSet) -> LatentSpace | None:
    latent = config.latent
    if latent.autoencoder is None:
        return None
    if config.data.condition:
        raise UserError(
            f"data.condition {config.data.condition}: latents are denoised without condition "
            "images; set it, or latent.autoencoder, to null"
        )
    return LatentSpace(
        Autoencoder(latent.autoencoder),
        images,
        epochs=latent.epochs,
        sample=latent.sample,
        cache=latent.cache,
    )


def check_network(config: DenoiseConfig, told: Conditioning, images: ImageSet) -> None:
    """Refuse a network that cannot take the images, or what it would be told of them.

    Raises:
        UserError: Names the setting and the cure.
    """
    model, channels = config.model, told.drawn_channels
    what = "latents" if config.latent.autoencoder else "images"
    what += " with their masks" * (told.mask_classes > 0)
    assert channels is not None, "a job knows the channels of its images"
    if config.condition_dropout and not (told.class_names or told.concat_cond or images.context):
        raise UserError(
            f"condition_dropout {config.condition_dropout:g}: the images come without a class, "
            "context or condition to withhold; set it to 0"
        )
    given = {
        f"the {what}'": channels,
        "an estimate's": channels * told.self_conditioning,
        "the condition's": told.concat_cond.channels if told.concat_cond else 0,
    }
    needed = sum(given.values())
    if model.in_channels != needed:
        if needed == channels == config.diffusion.output_channels(channels):
            or_data = ", or data.channels" * (what == "images")
            raise UserError(
                f"model.in_channels = {model.in_channels}, but the {what} have {channels}; "
                f"set model.in_channels and model.out_channels to {channels}{or_data}"
            )
        parts = ", ".join(f"{whose} {count}" for whose, count in given.items() if count)
        raise UserError(
            f"model.in_channels = {model.in_channels}, but the network is given {parts}; set "
            f"model.in_channels to {needed}"
        )
    outputs = config.diffusion.output_channels(channels)
    if model.out_channels != outputs and outputs != channels:
        raise UserError(
            f"model.out_channels = {model.out_channels}, but diffusion.variance_type learned_range "
            f"predicts a variance for each of the images' {channels} channels; set it to {outputs}"
        )
    if model.out_channels != outputs:
        raise UserError(
            f"model.out_channels = {model.out_channels}, but the {what} have {channels} channels; "
            "set it to that"
        )
    if model.dims != config.data.dims:
        raise UserError(
            f"model.dims = {model.dims}, but data.dims = {config.data.dims}; set both to "
            "2 for pictures, or 3 for volumes"
        )
    classes = len(told.class_names) + told.cond_dropout if told.class_names else None
    if model.num_class_embeds != classes:
        cure = f"set it to {classes}" if classes else "set it to null, or data.class_labels true"
        none = " and one for none" if told.cond_dropout else ""
        raise UserError(
            f"model.num_class_embeds = {model.num_class_embeds}, but the images come with "
            f"{len(told.class_names) or 'no'} classes{none}; {cure}"
        )
    if model.class_embed_type and not told.class_names:
        raise UserError(
            f"model.class_embed_type {model.class_embed_type}: the images come without classes; "
            "set it to null, or data.class_labels true"
        )
    context = images.context.channels if images.context else None
    if context is None and model.conditional:
        raise UserError(
            "model.cross_attention_dim: the network attends to a context; set data.context to a "
            "folder of sequences, or model.cross_attention_dim to null"
        )
    widths = model.cross_attention_dim
    if context is not None and {context} != set(widths if isinstance(widths, tuple) else [widths]):
        raise UserError(
            f"model.cross_attention_dim = {widths}, but the vectors of data.context have {context} "
            f"numbers; set it to {context}"
        )

"""The job of learning to denoise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ddpm_unet.config import PreviewConfig
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.data.stream import to_bytes, to_model_range
from ddpm_unet.diffusion.conditioning import concat_cond, draw_dropped, drop_cond, own_estimate
from ddpm_unet.diffusion.edm import EDMDiffusion
from ddpm_unet.diffusion.samplers import make_sampler
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.extractors import load_extractor
from ddpm_unet.evaluation.fidelity import Description, compare, describe
from ddpm_unet.evaluation.plots import save_grid
from ddpm_unet.inference.conditioning import Cond, Conditioning, cond_in_turn
from ddpm_unet.inference.denoiser import Denoiser, generate_together
from ddpm_unet.inference.pipeline import image_shape
from ddpm_unet.models.lora import has_lora, merge_lora, write_lora
from ddpm_unet.training.job import Batch, Build, Job, total_over
from ddpm_unet.training.latent_space import LatentSpace


@dataclass(eq=False)
class DenoiseJob(Job):
    """A U-Net that predicts the noise in images (Ho 2020).

    Args:
        network: A `UNet`, or what builds it once the generators are seeded.
        diffusion: The forward process.
        windows: Gives the training batches by position: `windows.__getitems__(positions)`.
        held_out: Likewise for validation, with a length; None for none.
        conditioning: What the network is conditioned on.
        cond_dropout: Share of the images that are denoised without it.
        latent: The space that is denoised in; None for pixels.
        loss_options: Arguments of `GaussianDiffusion.losses`.
        previews: Grids and validation.
        batch_size: Images at a time in validation.
        seed: Of timesteps, noise and what is dropped.
        workers, description, digest: See `Job`.
        loss: In place of the denoising loss: `(network, batch) -> [B]`, or one number. Of the
            batch, "image" is `float32 [B, C, *space]` in [-1, 1].
        preprocessing: Of the images, kept in the model's folder: samples are in their units.

    Raises:
        UserError: The previews take more steps than the process has, or the loss makes no sense.
    """

    network: Build
    diffusion: Any
    windows: Any
    _: KW_ONLY
    held_out: Any = None
    conditioning: Conditioning = field(default_factory=Conditioning)
    cond_dropout: float = 0.0
    latent: LatentSpace | None = None
    loss_options: dict[str, Any] = field(default_factory=dict)
    previews: PreviewConfig = field(default_factory=PreviewConfig)
    batch_size: int = 16
    seed: int = 0
    workers: int | None = 0
    description: str = ""
    digest: str | None = None
    loss: Callable[[nn.Module, Batch], Tensor] | None = None
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        steps, timesteps = self.previews.steps, getattr(self.diffusion, "num_timesteps", None)
        if timesteps is not None and steps > timesteps:
            raise UserError(f"preview.steps {steps}: must be between 1 and {timesteps}")
        self.diffusion.check_loss(**self.loss_options)
        self._encoded = False

    def stream(self, model: nn.Module, accelerator: Accelerator) -> Any:
        """The training windows; of a latent space, encoded now unless they lie in the cache."""
        if self.latent and not self._encoded:
            self.windows = self.latent.training(self.windows, accelerator)
            if self.held_out is not None:
                count = self.previews.validation_images
                self.held_out = self.latent.validation(self.held_out, count, accelerator)
            self._encoded = True
        return self.windows

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Denoising loss per image, at the timestep and noise of its stream position."""
        return self._losses(model, batch, batch["position"], self.seed, self.cond_dropout)

    def validate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Loss on held-out windows, with the same timesteps and noise every time."""
        if self.held_out is None:
            return {}
        count = min(self.previews.validation_images, len(self.held_out))

        def summed(positions: range, batch: Batch) -> Tensor:
            return self._losses(model, batch, positions, seed=0).sum()

        total = total_over(self.held_out, count, self.batch_size, accelerator, summed)
        return {"val_loss": float(total) / count}

    def preview(self, model: nn.Module, accelerator: Accelerator, path: Path) -> None:
        """A grid of samples, by a few steps; beside each its mask, or its condition."""
        own, cond = self.conditioning, self._cond_of_grid(accelerator.device)
        drawn = self._draw(model, accelerator, self.previews.num_images)
        if not accelerator.is_main_process:
            return
        images, masks = own.split(drawn)
        if self.latent:
            images = self.latent.autoencoder.to(accelerator.device).decode(images)
        if masks is not None:
            levels = masks[:, None] * (2 / (own.mask_classes - 1)) - 1
            images = torch.cat([images, levels.expand_as(images)], dim=-1)
        if own.concat_cond:
            given = cond(range(len(images)))["concat_cond"]
            shown = own.concat_cond.shown(given, images.shape[1])
            images = torch.cat([shown.to(images.device), images], dim=-1)
        save_grid(images, path)

    def export(self, model: nn.Module, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Write a diffusers pipeline folder; of low-rank changes their file too."""
        network: Any = model
        autoencoder = self.latent.autoencoder if self.latent else None
        if has_lora(network):
            write_lora(network, state_dict, folder)
            network, state_dict = merge_lora(network, state_dict)
        own = (self.conditioning, autoencoder, self.preprocessing)
        Denoiser(network, self.diffusion, None, *own).save_pretrained(folder, state_dict)

    def cond(
        self, batch: Batch, images: Tensor, positions: Sequence[int], seed: int
    ) -> dict[str, Tensor]:
        """What the denoiser is conditioned on for the images of a batch, by argument."""
        names = {"class_labels": "label", "context": "context", "context_mask": "context_mask"}
        found = {name: batch[key] for name, key in names.items() if key in batch}
        if not self.conditioning.class_names:
            found.pop("class_labels", None)
        own = self.conditioning.concat_cond
        if own is not None:
            found["concat_cond"] = own.of_batch(images, batch.get("condition"), seed, positions)
        return found

    def evaluator(self) -> Callable[[nn.Module, Accelerator, Path], dict[str, float]] | None:
        """What scores generated images in training; None for a denoiser of latents.

        The function draws `preview.evaluation_images`, and gives the scores of `fidelity.compare`
        with as many windows of the training, by "gen_" and their name, on every process; the first
        images are drawn into a file. Slices of volumes count as images.

        Raises:
            UserError: The extractor's weights are not installed.
        """
        if self.latent:
            return None
        extractor = load_extractor("efficientnet-lite0")

        def described(images: Tensor) -> Description:
            if images.ndim == 5:
                images = images.transpose(1, 2).flatten(0, 1)
            images = images[:, : 3 if images.shape[1] >= 3 else 1]
            return describe(to_bytes(images), extractor)

        def evaluate(model: nn.Module, accelerator: Accelerator, path: Path) -> dict[str, float]:
            count = self.previews.evaluation_images
            extractor.to(accelerator.device)
            drawn = self.conditioning.split(self._draw(model, accelerator, count))[0]
            real = to_model_range(self.windows.__getitems__(range(count))["image"])
            scores = compare(described(drawn), described(real))
            if accelerator.is_main_process:
                save_grid(drawn[: self.previews.num_images], path)
            return {f"gen_{name}": value for name, value in scores.items()}

        return evaluate

    def _draw(self, model: nn.Module, accelerator: Accelerator, count: int) -> Tensor:
        """Draw images by a few steps, with all processes, for all processes."""
        network: Any = model
        own = self.conditioning
        sampler = "heun" if isinstance(self.diffusion, EDMDiffusion) else "ddim"
        with accelerator.autocast():
            return generate_together(
                concat_cond(network),
                make_sampler(sampler, self.diffusion),
                image_shape(network.config, channels=own.drawn_channels),
                count,
                seed=self.seed,
                steps=self.previews.steps,
                accelerator=accelerator,
                cond=self._cond_of_grid(accelerator.device),
                self_conditioning=own.self_conditioning,
            )

    def _losses(
        self,
        model: nn.Module,
        batch: Batch,
        positions: Sequence[int],
        seed: int,
        cond_dropout: float = 0.0,
    ) -> Tensor:
        own, diffusion, images = self.conditioning, self.diffusion, to_model_range(batch["image"])
        if self.loss is not None:
            return self.loss(model, {**batch, "image": images}).expand(len(positions))
        images = own.with_masks(images, batch.get("condition"))
        timesteps, noise = diffusion.draw(seed, positions, images.shape[1:], images.device)
        cond = self.cond(batch, images, positions, seed)
        if cond_dropout:
            dropped = draw_dropped(seed, positions, cond_dropout, images.device)
            cond = drop_cond(cond, dropped, len(own.class_names))
        denoiser = concat_cond(model)
        if own.self_conditioning:
            noisy = diffusion.add_noise(images, timesteps, noise)
            cond["estimate"] = own_estimate(
                diffusion, denoiser, noisy, timesteps, seed, positions, **cond
            )
        return diffusion.losses(denoiser, images, timesteps, noise, **self.loss_options, **cond)

    def _cond_of_grid(self, device: torch.device) -> Cond:
        """For grids: all classes in turn, or the conditions of the first held-out windows."""
        kept = self.held_out
        source = self.windows if kept is None else kept
        first = source.__getitems__([0])
        if self.conditioning.concat_cond is None and "context" not in first:
            return cond_in_turn(range(len(self.conditioning.class_names)), device=device)

        def cond(indices: Sequence[int]) -> dict[str, Tensor]:
            positions = list(indices) if kept is None else [i % len(kept) for i in indices]
            batch = {k: v.to(device) for k, v in source.__getitems__(positions).items()}
            return self.cond(batch, to_model_range(batch["image"]), positions, seed=0)

        return cond

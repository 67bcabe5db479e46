"""The job of learning an autoencoder whose latents a denoiser can work on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ddpm_unet.config import AutoencodeConfig
from ddpm_unet.config.reading import check_limits
from ddpm_unet.data.folder import with_dims
from ddpm_unet.data.sources import held_out, open_stream
from ddpm_unet.data.stream import to_model_range
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.plots import save_grid
from ddpm_unet.files import replace_json
from ddpm_unet.models.pretrained import CONFIG, write_weights
from ddpm_unet.randomness import normal
from ddpm_unet.training.job import Batch, Job, total_over

MEASURED = 64
"""Windows by whose latents the scaling_factor is set."""


class Reconstruction(AutoencoderKL, nn.Module):
    """An AutoencoderKL that is called with images, and the noise of their latents."""

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The images again, `[B, C, H, W]`, and the divergence of their latents from standard
        normal ones, nats per number, `[B]` (Kingma 2014, arXiv:1312.6114, appendix B).
        """
        network: Any = self
        found = network.encode(images).latent_dist
        again = network.decode(found.mean + found.std * noise).sample
        divergence = (found.mean.square() + found.var - 1 - found.logvar) / 2
        return again, divergence.flatten(1).mean(1)


class AutoencodeJob(Job):
    """An autoencoder of images: mean absolute error, and a little divergence of its latents.

    Neither perception nor a discriminator is in the loss (as in Rombach 2022), so what the
    latents cannot hold comes out smooth. Refuses data that do not fit the network.
    """

    def __init__(self, config: AutoencodeConfig) -> None:
        check_limits(config)
        config.data = with_dims(config.data, config.data.source)
        self.config, self.workers = config, config.data.workers
        factor = 2 ** (len(config.model.block_out_channels) - 1)
        if config.data.size % factor or config.data.axes != 2:
            raise UserError(
                f"data.size {config.data.size}, data.dims {config.data.axes}: the autoencoder "
                f"takes images whose sides are multiples of {factor}; change data.size"
            )
        if config.data.condition or config.data.context:
            raise UserError("data.condition, data.context: an autoencoder takes no conditioning")
        for channels in config.model.block_out_channels:
            if channels % config.model.norm_num_groups:
                raise UserError(
                    f"model.block_out_channels {channels}: must be a multiple of "
                    f"model.norm_num_groups {config.model.norm_num_groups}"
                )
        self.windows = open_stream(config.data, config.seed)
        self.images, self.digest = self.windows.images, self.windows.digest
        self.held_out = held_out(config.data)
        side = config.data.size // factor
        self.latent_shape = (config.model.latent_channels, side, side)
        latents = " x ".join(map(str, self.latent_shape))
        self.description = (
            f"{self.windows.describe()}\nlatents: {latents} of windows of {config.data.size}"
        )

    def build_model(self) -> nn.Module:
        """The network, freshly initialised."""
        settings, levels = asdict(self.config.model), len(self.config.model.block_out_channels)
        return Reconstruction(
            in_channels=self.images.layout.channels,
            out_channels=self.images.layout.channels,
            sample_size=self.config.data.size,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            **settings,
        )

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean absolute error of each image and its part of the divergence."""
        images = to_model_range(batch["image"])
        noise = self._noise(batch["position"], images.device)
        again, divergence = model(images, noise)
        error = (again.float() - images).abs().flatten(1).mean(1)
        return error + self.config.kl_weight * divergence.float()

    def validate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Errors of held-out windows after their latents' means: absolute, and PSNR in decibels."""
        if self.held_out is None:
            return {}
        count = min(self.config.preview.validation_images, len(self.held_out))
        size = self.config.train.micro_batch or self.config.train.batch_size

        def summed(positions: range, batch: Batch) -> Tensor:
            images, again = self._again(model, batch)
            error = (again.clamp(-1, 1) - images).flatten(1)
            return torch.stack([error.abs().mean(1).sum(), error.square().mean(1).sum()])

        total = total_over(self.held_out, count, size, accelerator, summed)
        absolute, square = (total / count).tolist()
        psnr = 10 * torch.log10(torch.tensor(4 / square))  # the range is 2
        return {"val_loss": absolute, "val_psnr": float(psnr)}

    def preview(self, model: nn.Module, accelerator: Accelerator, path: Path) -> None:
        """Images, each beside what comes back of it."""
        positions = range(self.config.preview.num_images)
        source = self.held_out if self.held_out and len(self.held_out) >= len(positions) else None
        batch = (source or self.windows).__getitems__(positions)
        with accelerator.autocast():
            images, again = self._again(model, {"image": batch["image"].to(accelerator.device)})
        if accelerator.is_main_process:
            save_grid(torch.cat([images, again], dim=-1), path)

    def export(self, model: nn.Module, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Write an AutoencoderKL folder whose scaling_factor makes the latents' spread 1."""
        network: Any = model
        own = {key: value for key, value in network.config.items() if not key.startswith("_")}
        settings = {"_class_name": "AutoencoderKL", **own}
        averaged = AutoencoderKL.from_config(settings)
        averaged.load_state_dict({name: value.cpu() for name, value in state_dict.items()})
        positions, size = range(MEASURED), self.config.train.batch_size
        latents = []
        with torch.no_grad():
            for first in positions[::size]:
                part = positions[first : first + size]
                images = to_model_range(self.windows.__getitems__(part)["image"])
                found = averaged.eval().encode(images).latent_dist
                latents.append(found.mean + found.std * self._noise(torch.tensor(part), "cpu"))
        settings["scaling_factor"] = float(f"{1 / torch.cat(latents).std():.5g}")
        write_weights(state_dict, folder)
        replace_json(folder / CONFIG, settings)

    def _again(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images, and what comes back of their latents' means."""
        images = to_model_range(batch["image"])
        again, _ = model(images, images.new_zeros(len(images), *self.latent_shape))
        return images, again.float()

    def _noise(self, positions: Tensor, device: torch.device | str) -> Tensor:
        """Noise of the latents, a function of (seed, position)."""
        return normal(self.config.seed, "latent", positions.numpy(), self.latent_shape, device)

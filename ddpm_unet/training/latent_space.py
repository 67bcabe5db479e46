"""The space that a job denoises in where it is that of an autoencoder's latents."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from ddpm_unet.config import DenoiseConfig
from ddpm_unet.data.image_set import ImageSet
from ddpm_unet.data.latents import LatentWindows, create_file, write_moments
from ddpm_unet.data.sources import CACHE
from ddpm_unet.data.stream import Grid, Stream, to_model_range
from ddpm_unet.errors import UserError
from ddpm_unet.models.autoencoder import Autoencoder
from ddpm_unet.training.distributed import on_main, share_json

BATCH = 16
FREE = ("source", "root", "workers", "memory_limit", "max_pixels", "class_labels", "context",
        "text_encoder")  # fmt: skip
"""Settings of the data that change no pixel of a window of given pictures."""


class LatentSpace:
    """An autoencoder, and the windows of a job as its latents.

    Augmentation acts before encoding: each of `latent.epochs` passes over the pictures has its
    own windows, flips and turns, the same whatever the seed of the run.

    Attributes:
        autoencoder: Read from `latent.autoencoder`.
        channels: Of a latent.
        size: Height and width of the latents of a window.

    Args:
        config: All settings.
        images: To train on.

    Raises:
        UserError: There is no autoencoder, or it cannot take the images.
    """

    def __init__(self, config: DenoiseConfig, images: ImageSet) -> None:
        self.config, self.images, data = config, images, config.data
        if data.dims != 2:
            raise UserError("latent.autoencoder: is for pictures; set data.dims 2")
        if data.condition:
            raise UserError(
                f"data.condition {data.condition}: pictures to go by have no place among latents; "
                "set it, or latent.autoencoder, to null"
            )
        self.autoencoder = Autoencoder(str(config.latent.autoencoder))
        self.channels = self.autoencoder.latent_channels
        if images.layout.channels != self.autoencoder.channels:
            wanted = self.autoencoder.channels
            raise UserError(
                f"{self.autoencoder.folder}: is for images of {wanted} channels, and these have "
                f"{images.layout.channels}; set data.channels {wanted}"
            )
        self.size = self.autoencoder.latent_size(data.size, "data.size")

    def describe(self) -> str:
        """One line for the log."""
        return (
            f"in latents of {self.channels} x {self.size} x {self.size}, "
            f"{self.config.latent.epochs} epochs of windows encoded by {self.autoencoder.folder}"
        )

    def training(self, accelerator: Accelerator) -> LatentWindows:
        """The training stream, encoded now unless it lies in the cache."""
        windows = Stream(self.images, self.config.data, seed=0)
        count = self.config.latent.epochs * windows.epoch_length
        return self._latents(windows, count, self.config.seed, accelerator)

    def validation(self, grid: Grid, accelerator: Accelerator) -> LatentWindows:
        """Likewise the windows that are needed of those held out."""
        count = min(self.config.preview.validation_images, len(grid))
        return self._latents(grid, count, 0, accelerator)

    def _latents(
        self, windows: Stream | Grid, count: int, seed: int, accelerator: Accelerator
    ) -> LatentWindows:
        latent = self.config.latent
        folder = Path(latent.cache) if latent.cache else CACHE / "latents"
        path = folder / f"{self._key(windows, count)}.safetensors"
        if not share_json(path.is_file(), accelerator):
            self._encode(windows, count, path, accelerator)
        return LatentWindows(windows, path, seed, latent.sample)

    def _key(self, windows: Stream | Grid, count: int) -> str:
        settings = {k: v for k, v in asdict(self.config.data).items() if k not in FREE}
        said = [
            self.autoencoder.fingerprint(),
            windows.images.fingerprint(),
            type(windows).__name__,
            count,
            settings,
        ]
        return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()

    def _encode(
        self, windows: Stream | Grid, count: int, path: Path, accelerator: Accelerator
    ) -> None:
        """Every process encodes its share into one file, which then gets its name."""
        encoder = self.autoencoder.to(accelerator.device)
        part = path.with_name(f"{path.name}.{share_json(os.getpid(), accelerator)}.unfinished")
        shape = (self.channels, self.size, self.size)

        def create() -> None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                create_file(part, count, shape)
            except OSError as error:
                raise UserError(
                    f"{path.parent}: cannot be written to ({error.strerror}); give another folder "
                    "as latent.cache"
                ) from error

        try:
            on_main(accelerator, create)
            starts = range(0, count, BATCH)[accelerator.process_index :: accelerator.num_processes]
            hidden = None if accelerator.is_main_process else True
            for first in tqdm(starts, "encoding", unit="batch", leave=False, disable=hidden):
                numbers = range(first, min(first + BATCH, count))
                images = to_model_range(windows.__getitems__(numbers)["image"])
                mean, deviation = encoder.encode(images.to(accelerator.device))
                if not torch.isfinite(mean + deviation).all():
                    raise UserError(
                        f"{windows.name(first)}: it, or one of the {BATCH - 1} windows after its, "
                        f"has latents that are not finite; look at {encoder.folder}"
                    )
                write_moments(part, first, mean, deviation)
            accelerator.wait_for_everyone()
            on_main(accelerator, lambda: os.replace(part, path))
        finally:
            if accelerator.is_main_process:
                part.unlink(missing_ok=True)

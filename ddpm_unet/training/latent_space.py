"""Denoising in the latents of an autoencoder: windows encoded once, kept in a file, drawn by
position.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm
from typing_extensions import override

from ddpm_unet.data.collection import digest_of
from ddpm_unet.data.image_set import ImageSet
from ddpm_unet.data.sources import CACHE
from ddpm_unet.data.stream import Grid, Stream, to_model_range
from ddpm_unet.data.windows import Batch, Positions, PositionStream
from ddpm_unet.errors import UserError
from ddpm_unet.models.autoencoder import Autoencoder
from ddpm_unet.randomness import normal
from ddpm_unet.training.distributed import on_main, share_json

BATCH = 16


class LatentWindows(PositionStream):
    """The windows at the first positions of a stream or grid, as latents.

    Of a stream it is one itself: epoch after epoch in a new order, with no state. Of a grid,
    position i is window i.

    Args:
        windows: In pixels; gives names, labels and contexts.
        path: Mean and standard deviation of their latents, `float32 [N, 2, C, h, w]`, as .npy; it
            is mapped into memory.
        seed: Of the run. Order and draws are functions of (seed, position).
        sample: Draw latents; False takes their modes.
    """

    def __init__(self, windows: Stream, path: Path, seed: int, sample: bool) -> None:
        try:
            self.moments = torch.from_numpy(np.load(path, mmap_mode="c"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: is damaged ({error}); delete it, to encode anew") from error
        super().__init__(windows, seed, np.ones(len(self.moments), np.int64))
        self.sample = sample

    def __len__(self) -> int:
        return len(self.moments)

    @override
    def __getitems__(self, positions: Positions) -> Batch:
        """The batch at these positions, as of `Stream`; "image" are latents `[B, C, h, w]`."""
        positions = np.asarray(positions, dtype=np.int64)
        numbers = self.numbers(positions)
        latents, deviation = self.moments[torch.from_numpy(numbers)].unbind(1)
        if self.sample:
            noise = normal(self.seed, "latent", positions, latents.shape[1:])
            latents = latents + deviation * noise
        return {
            "image": latents,
            "position": torch.from_numpy(positions),
            **self.images.images.whole(self.images.numbers(numbers), ()),
        }

    @override
    def numbers(self, positions: Positions) -> np.ndarray:
        grid = isinstance(self.images, Grid)
        return np.asarray(positions, dtype=np.int64) if grid else super().numbers(positions)


class LatentSpace:
    """An autoencoder, and the windows of a job as its latents.

    Augmentation acts before encoding: each of `epochs` passes over the images has its own
    windows, flips and turns, the same whatever the seed of the run.

    Args:
        autoencoder: Its input channels must be the images'.
        images: To train on.
        epochs: Passes over the images whose windows are encoded.
        sample: Draw each latent anew; False takes its mode.
        cache: Folder where encoded windows are kept; None for ~/.cache/ddpm_unet/latents.

    Attributes:
        channels, size: Of the latents of a window, and their height and width.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        images: ImageSet,
        *,
        epochs: int = 4,
        sample: bool = True,
        cache: str | Path | None = None,
    ) -> None:
        self.autoencoder, self.images = autoencoder, images
        self.epochs, self.sample = epochs, sample
        self.cache = Path(cache) if cache else CACHE / "latents"
        if images.layout.sizes.shape[1] != 2:
            raise UserError("an autoencoder encodes images; set dims to 2")
        self.channels, wanted = autoencoder.latent_channels, autoencoder.channels
        if images.layout.channels != wanted:
            raise UserError(
                f"{autoencoder.folder}: is for images of {wanted} channels, and these have "
                f"{images.layout.channels}; set channels to {wanted}"
            )
        self.size = autoencoder.latent_size(images.fit.size, "size")

    def describe(self) -> str:
        """One line for the log."""
        return (
            f"in latents of {self.channels} x {self.size} x {self.size}, "
            f"{self.epochs} epochs of windows encoded by {self.autoencoder.folder}"
        )

    def training(self, stream: Stream, accelerator: Accelerator) -> LatentWindows:
        """The windows of a training stream, encoded now unless they lie in the cache."""
        windows = Stream(stream.images, flips=stream.flips, rot90=stream.rot90, seed=0)
        count = self.epochs * windows.epoch_length
        return self._latents(windows, count, stream.seed, accelerator)

    def validation(self, grid: Grid, count: int, accelerator: Accelerator) -> LatentWindows:
        """Likewise the first windows of those held out."""
        return self._latents(grid, min(count, len(grid)), 0, accelerator)

    def _latents(
        self, windows: Stream, count: int, seed: int, accelerator: Accelerator
    ) -> LatentWindows:
        said = json.dumps([self.autoencoder.fingerprint(), windows.fingerprint(), count])
        path = self.cache / f"{digest_of(said)}.npy"
        if not share_json(path.is_file(), accelerator):
            self._encode(windows, count, path, accelerator)
        return LatentWindows(windows, path, seed, self.sample)

    def _encode(self, windows: Stream, count: int, path: Path, accelerator: Accelerator) -> None:
        """Every process encodes its share into one file, which then gets its name."""
        encoder = self.autoencoder.to(accelerator.device)
        part = path.with_name(f"{path.name}.{share_json(os.getpid(), accelerator)}.unfinished")
        shape = (count, 2, self.channels, self.size, self.size)

        def create() -> None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                np.lib.format.open_memmap(part, "w+", "<f4", shape)
            except OSError as error:
                raise UserError(
                    f"{path.parent}: cannot be written to ({error.strerror}); give another folder "
                    "as latent.cache"
                ) from error

        try:
            on_main(accelerator, create)
            begin = np.load(part, mmap_mode="r").offset
            starts = range(0, count, BATCH)[accelerator.process_index :: accelerator.num_processes]
            hidden = None if accelerator.is_main_process else True
            for first in tqdm(starts, "encoding", unit="batch", leave=False, disable=hidden):
                numbers = range(count)[first : first + BATCH]
                images = to_model_range(windows.__getitems__(numbers)["image"])
                mean, deviation = encoder.encode(images.to(accelerator.device))
                if not torch.isfinite(mean + deviation).all():
                    raise UserError(
                        f"{windows.name(first)}: it, or one of the {BATCH - 1} windows after its, "
                        f"has latents that are not finite; look at {encoder.folder}"
                    )
                moments = torch.stack([mean, deviation], dim=1).cpu().numpy().astype("<f4")
                with open(part, "r+b") as file:  # where a full disk is an OSError
                    file.seek(begin + first * moments[0].nbytes)
                    file.write(moments.tobytes())
            accelerator.wait_for_everyone()
            on_main(accelerator, lambda: os.replace(part, path))
        finally:
            if accelerator.is_main_process:
                part.unlink(missing_ok=True)

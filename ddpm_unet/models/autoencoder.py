"""Images to latents and back: an AutoencoderKL of diffusers (Rombach 2022, arXiv:2112.10752)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ddpm_unet.config.reading import read_json
from ddpm_unet.errors import UserError, cause_of
from ddpm_unet.files import replace_json
from ddpm_unet.models.pretrained import (
    CONFIG,
    WEIGHTS,
    check_weights,
    model_folder,
    pipeline_root,
    read_weights,
    write_weights,
)

PLACES = ("vae", "vqvae")
"""Where diffusers' pipelines have their autoencoder."""

PIXELS = 2**19
"""So many are encoded or decoded at once, or else a single image."""


class Autoencoder:
    """Images `[B, channels, H, W]` in [-1, 1], and latents `[B, latent_channels, H / factor, ...]`.

    Latents are given in the scale that denoisers see: (z - shift_factor) * scaling_factor. It
    computes in float32, whatever the precision around it.

    Args:
        folder: Of an AutoencoderKL, or of a pipeline that has one.

    Raises:
        UserError: There is none, or it is unreadable or damaged; names the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = model_folder(folder, PLACES, "an autoencoder")
        self.settings = read_json(self.folder / CONFIG)
        kind = self.settings.get("_class_name")
        if kind != "AutoencoderKL":
            raise UserError(
                f"{self.folder}: is a {kind or 'folder of something else'}, no autoencoder; give "
                "the folder of a diffusers AutoencoderKL"
            )
        from diffusers import AutoencoderKL  # takes seconds

        try:
            self.network = AutoencoderKL.from_config(self.settings).eval().requires_grad_(False)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            fault = f"{self.folder / CONFIG}: makes no AutoencoderKL ({cause_of(error)})"
            raise UserError(fault) from error
        weights = read_weights(self.folder)
        cure = "take the weights of this autoencoder"
        check_weights(self.folder, self.network.state_dict(), weights, cure)
        self.network.load_state_dict(weights)
        config = self.network.config
        self.channels, self.latent_channels = config.in_channels, config.latent_channels
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.scale, self.shift = config.scaling_factor, config.shift_factor or 0.0

    def to(self, device: torch.device | str) -> Autoencoder:
        """Move it to a device; returns itself."""
        self.network.to(device)
        return self

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, which is the mode, and standard deviation of the latents, `float32 [B, C, h, w]`.

        The images are on its device, with sides that are multiples of `factor`.
        """

        def encode(part: Tensor) -> Tensor:
            found = self.network.encode(part).latent_dist
            return torch.cat([found.mean - self.shift, found.std], dim=1) * self.scale

        pixels = images.shape[-2] * images.shape[-1]
        mean, deviation = _in_parts(encode, images, pixels).chunk(2, dim=1)
        return mean, deviation

    def decode(self, latents: Tensor) -> Tensor:
        """Images `float32 [B, channels, H, W]`, about in [-1, 1], of latents on its device.

        Within bfloat16's autocast it decodes so; float16 does not hold what such networks make.
        """

        def decode(part: Tensor) -> Tensor:
            return self.network.decode(part / self.scale + self.shift).sample

        pixels = latents.shape[-2] * latents.shape[-1] * self.factor**2
        kind = latents.device.type
        short = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
        return _in_parts(decode, latents, pixels, short)

    def latent_size(self, size: int, setting: str) -> int:
        """A side of the latents of images of side `size`, which messages call `setting`.

        Raises:
            UserError: It is no multiple of `factor`.
        """
        if size % self.factor:
            low = size // self.factor * self.factor
            near = f"{low} or {low + self.factor}" if low else f"{self.factor}"
            raise UserError(
                f"{setting} {size}: the autoencoder makes one latent of {self.factor} x "
                f"{self.factor} pixels; give a multiple, such as {near}"
            )
        return size // self.factor

    def fingerprint(self) -> str:
        """A digest of its settings and weights."""
        said = {key: value for key, value in self.settings.items() if not key.startswith("_")}
        digest = hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16)
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def write(self, folder: Path) -> None:
        """Write it into `folder`, unless one is there already."""
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return
        write_weights(self.network.state_dict(), folder)
        replace_json(folder / CONFIG, self.settings)


def _in_parts(
    function: Callable[[Tensor], Tensor], batch: Tensor, pixels: int, short: bool = False
) -> Tensor:
    """A function of a batch of images of so many pixels, of parts of bounded size: `float32`.

    It is computed in float32, unless `short`.
    """
    with torch.no_grad(), torch.autocast(batch.device.type, torch.bfloat16, enabled=short):
        parts = batch.float().split(max(1, PIXELS // pixels))
        return torch.cat([function(part).float() for part in parts])


def autoencoder_of(folder: Path) -> Autoencoder | None:
    """The autoencoder of the pipeline in `folder`, or around it; None where pixels are denoised."""
    root = pipeline_root(folder)
    found = next((root / place for place in PLACES if (root / place).is_dir()), None)
    return None if found is None else Autoencoder(found)

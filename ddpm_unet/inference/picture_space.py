"""Between pictures and what a denoiser draws: pictures themselves, or an autoencoder's latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddpm_unet.errors import UserError
from ddpm_unet.inference.editing import Edit
from ddpm_unet.models.autoencoder import Autoencoder, autoencoder_of


class PictureSpace:
    """The space of a model's folder.

    Args:
        folder: A pipeline's.
        device: Where the autoencoder computes, if there is one.

    Raises:
        UserError: The folder's autoencoder cannot be used.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        found = autoencoder_of(folder)
        self.autoencoder: Autoencoder | None = found and found.to(device)
        self.device = device

    def sides(self, sides: Sequence[int] | None, flag: str) -> list[int] | None:
        """What the denoiser draws for pictures of these sides; None stays None.

        Raises:
            UserError: No whole number of latents.
        """
        if sides is None:
            return None
        if self.autoencoder is None:
            return list(sides)
        return [self.autoencoder.latent_size(side, flag) for side in sides]

    def shape(self, drawn: Sequence[int]) -> tuple[int, ...]:
        """Shape of the picture for what is drawn, both (C, H, W)."""
        if self.autoencoder is None:
            return tuple(drawn)
        factor = self.autoencoder.factor
        return (self.autoencoder.channels, *(factor * length for length in drawn[1:]))

    def beginning(self, edit: Edit, drawn: Sequence[int], sized: bool) -> Tensor | None:
        """What an edit begins with, `[N, C, H, W]` as the denoiser draws; None for noise alone.

        Args:
            edit: What is asked for.
            drawn: Shape of what is drawn, (C, H, W).
            sized: Pictures must be of this size, not only of one.

        Raises:
            UserError: See `Edit.pictures`; or a hole, which latents cannot have.
        """
        shape = self.shape(drawn)
        if self.autoencoder and edit.mask:
            raise UserError(
                "--mask: the model draws latents, which mix what is in the hole and around it; "
                "leave it out, or take a model of pixels"
            )
        pictures = edit.pictures(shape[0], shape[1:] if sized else None)
        if self.autoencoder is None or pictures is None:
            return pictures
        for side in pictures.shape[2:]:
            self.autoencoder.latent_size(side, "a picture of")
        return self.autoencoder.encode(pictures.to(self.device))[0].cpu()

    def pictures(self, drawn: Tensor) -> Tensor:
        """Pictures `[B, C, H, W]` in [-1, 1] of what was drawn."""
        return drawn if self.autoencoder is None else self.autoencoder.decode(drawn)

"""Pictures that sampling begins with, fills, or goes between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_unet.data.images import read_image
from ddpm_unet.data.pixels import convert_channels, to_unit
from ddpm_unet.diffusion.editing import Inversion, inpaint, slerp
from ddpm_unet.errors import UserError


@dataclass(frozen=True)
class Edit:
    """What is asked for, by the flags of `scripts/sample.py`.

    Args:
        image: A picture to go on from.
        strength: Share of the steps taken from it; None for half of them.
        mask: A picture of its size, white where it is to be painted anew, from noise.
        resamplings: With a mask, see `inpaint`.
        ends: Two pictures to go between.

    Raises:
        UserError: Things that do not go together; names the flag.
    """

    image: Path | None = None
    strength: float | None = None
    mask: Path | None = None
    resamplings: int = 5
    ends: Sequence[Path] | None = None

    def __post_init__(self) -> None:
        if not self.image and (self.mask or self.strength is not None):
            flag = "--mask" if self.mask else "--strength"
            raise UserError(f"{flag}: needs a picture to begin with; give --init_image too")
        if self.mask and self.strength is not None:
            raise UserError("--strength: a hole is painted from noise; leave it or --mask out")
        if self.ends and self.image:
            raise UserError("--interpolate: goes between its own pictures; leave --init_image out")

    def pictures(self, channels: int, size: Sequence[int] | None) -> Tensor | None:
        """All pictures but the mask, `float32 [N, channels, H, W]`, see `read_images`."""
        paths = [*(self.ends or ()), *([self.image] if self.image else [])]
        return read_images(paths, channels, size) if paths else None

    def options(
        self, pictures: Tensor | None, num_images: int, told: bool, self_conditioning: bool
    ) -> dict[str, Any]:
        """Arguments of `generate` that draw images from the `pictures`.

        Args:
            pictures: What `pictures` gave.
            num_images: Images in all.
            told: The denoiser is told something of each image.
            self_conditioning: It is told its own estimate.

        Raises:
            UserError: See `painting` and `interpolation`; a denoiser that is told more than they
                tell it.
        """
        if pictures is None:
            return {"self_conditioning": self_conditioning}
        if self.ends or self.mask:
            flag = "--interpolate" if self.ends else "--mask"
            if self_conditioning or (told and self.ends):
                what = "its own estimate" if self_conditioning else "conditions"
                raise UserError(f"{flag}: the model is told {what}, which is not known here")
        if self.ends:
            return {"draw": interpolation(pictures, num_images)}
        if self.mask:
            return {"draw": painting(pictures[0], self.mask, self.resamplings)}
        strength = 0.5 if self.strength is None else self.strength
        return {
            "start": pictures,
            "strength": strength,
            "self_conditioning": self_conditioning,
        }


def read_images(paths: Sequence[Path], channels: int, size: Sequence[int] | None = None) -> Tensor:
    """Pictures of one size, `float32 [N, channels, H, W]` in [-1, 1], black to white.

    Raises:
        UserError: One cannot be read, or is not of `size` (height and width) or, without it, of
            the size of the first.
    """
    images = []
    for path in paths:
        picture = convert_channels(read_image(path), channels, path.name)
        size = size or picture.shape[:2]
        if picture.shape[:2] != tuple(size):
            have, want = (" x ".join(map(str, s)) for s in (picture.shape[:2], size))
            raise UserError(f"{path}: has {have} pixels, not {want}; resize it, or change --size")
        images.append(torch.from_numpy(to_unit(picture, name=path.name)).movedim(-1, 0))
    return torch.stack(images)


def painting(image: Tensor, mask: Path, resamplings: int) -> Callable[..., Tensor]:
    """What draws images like `image` `[C, H, W]`, other than it where `mask` is white.

    Returns:
        A function with the arguments of `sample`; its steps are those of DDPM.

    Raises:
        UserError: The mask cannot be read, is of another size, or leaves nothing to paint.
    """
    hole = read_images([mask], 1, image.shape[1:])[0] > 0
    if not hole.any():
        raise UserError(f"{mask}: is black everywhere; make white what is to be painted")

    def draw(denoiser: Any, scheduler: Any, shape: Sequence[int], **options: Any) -> Tensor:
        return inpaint(denoiser, scheduler, image, hole, resamplings=resamplings, **options)

    return draw


def interpolation(ends: Tensor, num_images: int) -> Callable[..., Tensor]:
    """What draws images evenly spaced from one to another, along the arc between their noises.

    The ends are inverted when the first batch is drawn, and how far the way back misses them is
    printed. Nothing is random: seeds do nothing.

    Args:
        ends: Two images, `[2, C, H, W]` in [-1, 1].
        num_images: Images in all, the ends among them.

    Returns:
        A function with the arguments of `sample`; its steps are those of DDIM.

    Raises:
        UserError: Less than two images.
    """
    if num_images < 2:
        raise UserError(f"--num_images {num_images}: the two ends are among them; give 2 or more")
    inverted: list[Tensor] = []

    def draw(
        denoiser: Any,
        scheduler: Any,
        shape: Sequence[int],
        *,
        indices: Sequence[int],
        steps: int,
        device: torch.device,
        progress: bool = False,
        **unused: Any,
    ) -> Tensor:
        path = Inversion(denoiser, scheduler, steps, device)
        if not inverted:
            inverted.extend(path.to_noise(ends, progress=progress))
            error = (path.to_images(torch.stack(inverted)).cpu() - ends).square().mean().sqrt()
            if progress:
                tqdm.write(f"inverted and back: off by {error / 2:.2%} of the range, rms")
        shares = [i / (num_images - 1) for i in indices]
        return path.to_images(slerp(inverted[0], inverted[1], shares), progress)

    return draw

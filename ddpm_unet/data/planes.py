"""The planes that a denoiser goes by, beside the noisy image, and how they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_unet import randomness
from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data.image_set import ImageSet
from ddpm_unet.data.images import read_image
from ddpm_unet.data.pixels import to_unit
from ddpm_unet.data.stream import to_model_range
from ddpm_unet.data.volumes import read_volume
from ddpm_unet.errors import UserError


@dataclass(frozen=True)
class Planes:
    """What the planes are; all of them are float32.

    Args:
        kind: "picture", grey or colour in [-1, 1]; "classes", a mask, one plane of 0 and 1 for
            each class; "lower", the image itself at a lower resolution, every pixel repeated; or
            "hole", the image itself with a hole of 0, and a plane of -1 in the hole and 1 around.
        channels: Number of planes.
        factor: "lower": how many times smaller.
    """

    kind: Literal["picture", "classes", "lower", "hole"]
    channels: int
    factor: int = 1

    def of_batch(
        self,
        images: Tensor,
        condition: Tensor | None,
        seed: int,
        positions: randomness.Positions,
    ) -> Tensor:
        """The planes of a training batch, `[B, channels, *space]`.

        Args:
            images: `float32 [B, C, *space]` in [-1, 1].
            condition: What the batch carries beside them; kinds "picture" and "classes".
            seed: Seed of the run.
            positions: Of the images in the stream; holes are functions of (seed, position).
        """
        if self.kind == "lower":
            return lowered(images, self.factor)
        if self.kind == "hole":
            known = known_around_holes(seed, positions, images.shape[2:])
            return with_hole(images, known.to(images.device))
        assert condition is not None, "the batch carries no condition"
        if self.kind == "classes":
            return one_hot(condition, self.channels)
        return to_model_range(condition)

    def of_file(self, path: str, dims: int = 2, max_pixels: float = 200.0) -> Tensor:
        """The planes of a picture or volume, `[channels, *space]`; of a transparent one its hole.

        Raises:
            UserError: It cannot be read, or has other channels or classes.
        """
        read = read_volume if dims == 3 else read_image
        picture = read(path, max_pixels, self.kind == "classes")
        if self.kind == "classes":
            classes = class_indices(picture, self.channels, path)
            return one_hot(torch.from_numpy(np.moveaxis(classes, -1, 0)[None]), self.channels)[0]
        if picture.shape[-1] != self.channels:
            alpha = " (the last is its transparency, which is the hole)" * (self.kind == "hole")
            raise UserError(
                f"{path}: has {picture.shape[-1]} channels, the model goes by {self.channels}"
                f"{alpha}; save it so"
            )
        planes = torch.from_numpy(np.moveaxis(to_unit(picture, name=path), -1, 0).copy())
        if self.kind == "hole":
            return with_hole(planes[None, :-1], planes[None, -1:] >= 0)[0]
        return enlarged(planes[None], self.factor)[0]

    def shown(self, planes: Tensor, channels: int) -> Tensor:
        """Images `[B, channels, *space]` in [-1, 1] of planes, for people."""
        if self.kind == "classes":
            planes = planes.argmax(1, keepdim=True) * (2 / (self.channels - 1)) - 1
        elif self.kind == "hole":
            planes = planes[:, :-1]
        if planes.shape[1] != channels:
            planes = planes[:, :1].expand(-1, channels, *planes.shape[2:])
        return planes


def planes_of(config: ImageDataConfig, images: ImageSet) -> Planes | None:
    """The planes that the settings ask for, of these images; None for none.

    Masks to be denoised with the images (`joint_masks`) are not gone by.
    """
    kind, _, factor = (config.condition or "").partition(":")
    channels = images.layout.channels
    if kind == "lower":
        return Planes("lower", channels, int(factor))
    if kind == "hole":
        return Planes("hole", channels + 1)
    if images.condition is None or config.joint_masks:
        return None
    if config.condition_classes:
        return Planes("classes", config.condition_classes)
    return Planes("picture", images.condition.layout.channels)


def lowered(images: Tensor, factor: int) -> Tensor:
    """Means of blocks of factor pixels a side, in the place of their pixels."""
    small = [length // factor for length in images.shape[2:]]
    return enlarged(F.interpolate(images, size=small, mode="area"), factor)


def enlarged(images: Tensor, factor: int) -> Tensor:
    """`[B, C, *space]` with every pixel repeated along every axis."""
    return F.interpolate(images, scale_factor=factor, mode="nearest") if factor > 1 else images


def with_hole(images: Tensor, known: Tensor) -> Tensor:
    """`[B, C + 1, *space]` of images, and where they are known, `bool [B, 1, *space]`."""
    return torch.cat([images * known, known * 2.0 - 1], dim=1)


def known_around_holes(seed: int, positions: randomness.Positions, space: Sequence[int]) -> Tensor:
    """False in a random box of an eighth to five eighths of each side, `bool [B, 1, *space]`."""
    hole = torch.ones(len(positions), 1, *[1] * len(space), dtype=torch.bool)
    for axis, length in enumerate(space):
        extent = randomness.integers(seed, f"hole/extent/{axis}", positions, length // 2 + 1)
        extent += max(1, length // 8)
        start = randomness.integers(seed, f"hole/start/{axis}", positions, length - extent + 1)
        place = np.arange(length)
        inside = (place >= start[:, None]) & (place < (start + extent)[:, None])
        shape = [len(inside), 1, *(length if i == axis else 1 for i in range(len(space)))]
        hole = hole & torch.from_numpy(inside).reshape(shape)
    return ~hole


def one_hot(classes: Tensor, count: int) -> Tensor:
    """`[B, 1, *space]` of class indices to `float32 [B, count, *space]` of 0 and 1."""
    numbers = torch.arange(count, device=classes.device)
    return (classes == numbers.reshape(-1, *[1] * (classes.ndim - 2))).float()


def class_indices(mask: np.ndarray, count: int, name: str) -> np.ndarray:
    """The classes of a mask file `[..., C]`, `int16 [..., 1]`.

    Raises:
        UserError: It is coloured, or has other values than 0 to count - 1.
    """
    if mask.shape[-1] != 1 or mask.dtype.kind != "u":
        raise UserError(
            f"{name}: is no mask of class indices ({mask.dtype}, {mask.shape[-1]} channels); save "
            "it as grey or palette picture, or set data.condition_classes null"
        )
    if mask.max() >= count:
        raise UserError(
            f"{name}: has the class {mask.max()}, but the {count} classes are numbered 0 to "
            f"{count - 1}; see data.condition_classes"
        )
    return mask.astype(np.int16)

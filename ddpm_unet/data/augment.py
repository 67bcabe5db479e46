"""Random changes of an image together with its mask, by torchvision's transforms and tv_tensors.

A sample is a dict of tv_tensors: "image" (`Image`, float32 in [-1, 1], `[C, H, W]`), "mask"
(`Mask` of integers, `[H, W]`) and perhaps "weight" (`Mask` of floats, `[H, W]`). Classes are
never interpolated, weights are, and only images change in intensity. Every draw comes from
torch's global generator, to be set by `randomness.seeded`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ddpm_unet.config import AugmentConfig


def augmentation(config: AugmentConfig, size: int) -> v2.Transform:
    """The changes of a configuration, from windows of size + 2 `window_margin` to ones of size."""
    changes: list[v2.Transform] = [v2.Identity()]
    if config.elastic_sigma:
        changes.append(ElasticDeformation(size, config.elastic_sigma, config.elastic_grid))
    if config.flips:
        changes += [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
    if config.turns:
        changes.append(QuarterTurns())
    if config.brightness or config.contrast or config.gamma or config.noise:
        changes.append(Intensity(config.brightness, config.contrast, config.gamma, config.noise))
    return v2.Compose(changes)


def window_margin(config: AugmentConfig) -> int:
    """Pixels around a window that its elastic deformation may draw on: three sigma."""
    return math.ceil(3 * config.elastic_sigma)


def cut_window(planes: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    """The window `[..., size, size]` at (top, left) of `[..., H, W]`, mirrored beyond its edges."""
    height, width = planes.shape[-2:]
    if top >= 0 and left >= 0 and top + size <= height and left + size <= width:
        return planes[..., top : top + size, left : left + size]
    rows, columns = _mirrored(top, size, height), _mirrored(left, size, width)
    return planes[..., rows[:, None], columns]


def _mirrored(start: int, count: int, length: int) -> np.ndarray:
    """Indices of an endless row that runs to and fro between 0 and length - 1."""
    places = np.arange(start, start + count) % max(2 * (length - 1), 1)
    return np.minimum(places, 2 * (length - 1) - places)


class ElasticDeformation(v2.Transform):
    """Random displacements on a coarse grid, joined by bicubic interpolation (Ronneberger 2015).

    Args:
        size: Height and width of the result. What the input has more is margin on all sides.
        sigma: Standard deviation of the grid's displacements in both directions, pixels.
        grid: Nodes along each side; the outermost lie on the corners.
    """

    def __init__(self, size: int, sigma: float, grid: int = 3) -> None:
        super().__init__()
        self.size, self.sigma, self.grid = size, sigma, grid
        line = torch.arange(size, dtype=torch.float32)
        self.places = torch.stack(torch.meshgrid(line, line, indexing="xy"))
        # Bicubic interpolation is linear and separable: a matrix for each direction.
        self.bicubic = F.interpolate(
            torch.eye(grid)[None, None], size=(size, grid), mode="bicubic", align_corners=True
        )[0, 0]

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Where each pixel comes from, for `grid_sample`."""
        window = flat_inputs[0].shape[-1]
        nodes = self.sigma * torch.randn(2, self.grid, self.grid)
        displacement = self.bicubic @ nodes @ self.bicubic.T
        places = self.places + (window - self.size) / 2 + displacement
        return {"source": (places * (2 / (window - 1)) - 1).permute(1, 2, 0)[None]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Linear interpolation of images and weights, the nearest pixel of masks."""
        linear = inpt.is_floating_point()
        sampled = F.grid_sample(
            inpt.as_subclass(Tensor).float().reshape(1, -1, *inpt.shape[-2:]),
            params["source"],
            mode="bilinear" if linear else "nearest",
            padding_mode="reflection",
            align_corners=True,
        )
        sampled = sampled.reshape(*inpt.shape[:-2], self.size, self.size).to(inpt.dtype)
        return tv_tensors.wrap(sampled, like=inpt)


class QuarterTurns(v2.Transform):
    """A turn by 0, 90, 180 or 270 degrees."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The number of quarters."""
        return {"quarters": int(torch.randint(4, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Turn."""
        return tv_tensors.wrap(inpt.rot90(params["quarters"], (-2, -1)), like=inpt)


class Intensity(v2.Transform):
    """Grey curve, contrast, brightness and white noise of an image of any number of channels.

    With the image mapped to [0, 1], u -> (u^g - mean) c + mean + b + noise, clipped to [0, 1].

    Args:
        brightness: b is uniform in +- brightness.
        contrast: c is uniform in 1 +- contrast.
        gamma: log g is uniform in +- gamma.
        noise: The noise's standard deviation is uniform in 0 to noise.
    """

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, brightness: float, contrast: float, gamma: float, noise: float) -> None:
        super().__init__()
        self.brightness, self.contrast, self.gamma, self.noise = brightness, contrast, gamma, noise

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The strengths of the four changes."""
        shift, scale, curve, noise = torch.rand(4).tolist()
        return {
            "brightness": self.brightness * (2 * shift - 1),
            "contrast": 1 + self.contrast * (2 * scale - 1),
            "gamma": math.exp(self.gamma * (2 * curve - 1)),
            "noise": self.noise * noise,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Change an image's intensities."""
        image = inpt.as_subclass(Tensor).add(1).div_(2).clamp_(0, 1).pow_(params["gamma"])
        mean = image.mean((-2, -1), keepdim=True)
        image = (image - mean).mul_(params["contrast"]).add_(mean + params["brightness"])
        image.add_(torch.randn_like(image), alpha=params["noise"])
        return tv_tensors.wrap(image.clamp_(0, 1).mul_(2).sub_(1), like=inpt)

"""Random changes of an image together with its mask, by torchvision's transforms and tv_tensors.

A sample is a dict of tv_tensors: "image" (`Image`, float32 in [-1, 1], `[C, H, W]`), "mask"
(`Mask` of integers, `[H, W]`) and perhaps "weight" (`Mask` of floats, `[H, W]`); or "target"
(`Mask` of floats, `[K, H, W]`), an image. Those of a volume have a depth before their height.
Classes are never interpolated, weights and targets are, and only images change in intensity.
Every draw comes from torch's global generator, to be set by `randomness.seeded`.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ddpm_unet.config import AugmentConfig


def augmentation(config: AugmentConfig, size: int, dims: int = 2) -> v2.Transform:
    """The changes of a configuration, from windows of size + 2 `window_margin` to ones of size."""
    changes: list[v2.Transform] = [v2.Identity()]
    if config.elastic_sigma or config.rotation or config.zoom:
        bend = (config.elastic_sigma, config.elastic_grid, config.rotation, config.zoom)
        changes.append(Deformation(size, *bend, dims))
    changes.append(Orientation(config.flips, config.rot90, dims))
    changing = config.brightness or config.contrast or config.gamma or config.noise
    if config.color and config.intensity is not False:
        changes.append(Color(config.color))
    if changing and config.intensity is not False:
        changes.append(Intensity(config.brightness, config.contrast, config.gamma, config.noise))
    return v2.Compose(changes)


def window_margin(config: AugmentConfig, size: int, dims: int = 2) -> int:
    """Pixels around a window that its deformation may draw on: three sigma, and turned corners."""
    angle = math.radians(min(config.rotation, 45.0))
    reach = min(math.cos(angle) + (dims - 1) * math.sin(angle), math.sqrt(dims))
    return math.ceil(3 * config.elastic_sigma + size / 2 * (reach * math.exp(config.zoom) - 1))


class Deformation(v2.Transform):
    """A random turn and zoom about the middle, and displacements on a coarse grid, in one sampling.

    Displacements have `sigma` pixels of standard deviation in every direction, on a grid of so many
    nodes along each side, the outermost on the corners, joined by bicubic interpolation
    (Ronneberger 2015). What the input has more than `size` is margin.

    Args:
        rotation: Degrees; the angle about each axis (of images the only one) is uniform in +- it.
        zoom: The natural logarithm of the magnification is uniform in +- it.
    """

    def __init__(
        self, size: int, sigma: float = 0.0, grid: int = 3, rotation: float = 0.0,
        zoom: float = 0.0, dims: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.size, self.sigma, self.grid, self.dims = size, sigma, grid, dims
        self.rotation, self.zoom = math.radians(rotation), zoom
        line = torch.arange(size, dtype=torch.float32)
        # x before y (before z), as `grid_sample` wants them.
        self.places = torch.stack(torch.meshgrid(*[line] * dims, indexing="ij")[::-1])
        # Bicubic interpolation is linear and separable: a matrix for each direction.
        self.bicubic = F.interpolate(
            torch.eye(grid)[None, None], size=(size, grid), mode="bicubic", align_corners=True
        )[0, 0]

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Where each pixel comes from, for `grid_sample`."""
        window = flat_inputs[0].shape[-1]
        displacement = self.sigma * torch.randn(self.dims, *[self.grid] * self.dims)
        for _ in range(self.dims):  # each turn interpolates the first axis and puts it last
            displacement = torch.tensordot(displacement, self.bicubic, dims=([1], [1]))
        places = self.places + (window - self.size) / 2 + displacement
        if self.rotation or self.zoom:
            middle = (window - 1) / 2
            places = torch.tensordot(self._turn(), places - middle, dims=1) + middle
        return {"source": (places * (2 / (window - 1)) - 1).movedim(0, -1)[None]}

    def _turn(self) -> Tensor:
        """A rotation, divided by the magnification: `[dims, dims]`."""
        turn = torch.eye(self.dims) * math.exp(self.zoom * (2 * float(torch.rand(())) - 1))
        for plane in itertools.combinations(range(self.dims), 2):
            angle = self.rotation * (2 * torch.rand(()) - 1)
            about = torch.eye(self.dims)
            about[[*plane, *plane], [*plane, *plane[::-1]]] = torch.stack(
                [angle.cos(), angle.cos(), -angle.sin(), angle.sin()]
            )
            turn = about @ turn
        return turn

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply it."""
        linear = inpt.is_floating_point()
        sampled = F.grid_sample(
            inpt.as_subclass(Tensor).float().reshape(1, -1, *inpt.shape[-self.dims :]),
            params["source"],
            mode="bilinear" if linear else "nearest",
            padding_mode="reflection",
            align_corners=True,
        )
        size = [self.size] * self.dims
        sampled = sampled.reshape(*inpt.shape[: -self.dims], *size).to(inpt.dtype)
        return tv_tensors.wrap(sampled, like=inpt)


class Orientation(v2.Transform):
    """Mirrored along every axis, then turned by quarters (volumes: in the plane of slices)."""

    def __init__(self, flips: bool, rot90: bool, dims: int) -> None:
        super().__init__()
        self.flips, self.rot90, self.dims = flips, rot90, dims

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """What is drawn."""
        mirrored = [axis for axis in (-1, -2) if self.flips and torch.rand(1) < 0.5]
        if self.flips and self.dims == 3 and torch.randint(2, ()):
            mirrored.append(-3)
        return {"mirrored": mirrored, "quarters": int(torch.randint(4, ())) if self.rot90 else 0}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply it."""
        turned = inpt.flip(params["mirrored"]).rot90(params["quarters"], (-2, -1))
        return tv_tensors.wrap(turned, like=inpt)


class Color(v2.Transform):
    """Amounts of stains, hue and saturation of an RGB image.

    Amounts of haematoxylin, eosin and DAB are taken from the optical density (Ruifrok 2001), and
    each becomes a + b times itself (Tellez 2018, arXiv:1808.05896). Hue and saturation then change.

    Args:
        strength: b and the saturation's factor are uniform in 1 +- strength, a in +- strength, the
            hue's shift in +- strength / 4 of a full turn.
    """

    _transformed_types = (tv_tensors.Image,)
    absorption = F.normalize(
        torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
    )
    """Of red, green and blue by each stain."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """What is drawn."""
        drawn = self.strength * (2 * torch.rand(8) - 1)
        rest = {"saturation": 1 + float(drawn[6]), "hue": float(drawn[7]) / 4}
        return {"factors": 1 + drawn[:3], "shifts": drawn[3:6], **rest}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply it."""
        light = inpt.as_subclass(Tensor).add(1).div_(2).clamp_(1 / 256, 1)
        amounts = torch.linalg.solve(self.absorption.T, -light.log().flatten(1))
        amounts = amounts * params["factors"][:, None] + params["shifts"][:, None]
        light = (self.absorption.T @ -amounts).exp_().clamp_(max=1).reshape(light.shape)
        light = v2.functional.adjust_saturation(light, params["saturation"])
        light = v2.functional.adjust_hue(light, params["hue"])
        return tv_tensors.wrap(light.mul_(2).sub_(1), like=inpt)


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
        """What is drawn."""
        shift, scale, curve, noise = torch.rand(4).tolist()
        return {
            "brightness": self.brightness * (2 * shift - 1),
            "contrast": 1 + self.contrast * (2 * scale - 1),
            "gamma": math.exp(self.gamma * (2 * curve - 1)),
            "noise": self.noise * noise,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply it."""
        image = inpt.as_subclass(Tensor).add(1).div_(2).clamp_(0, 1).pow_(params["gamma"])
        mean = image.mean(tuple(range(1, image.ndim)), keepdim=True)
        image = (image - mean).mul_(params["contrast"]).add_(mean + params["brightness"])
        image.add_(torch.randn_like(image), alpha=params["noise"])
        return tv_tensors.wrap(image.clamp_(0, 1).mul_(2).sub_(1), like=inpt)

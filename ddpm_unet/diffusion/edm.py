"""The diffusion of Karras 2022 (arXiv:2206.00364), a sibling of `GaussianDiffusion`.

Images with noise of standard deviation sigma, x = x_0 + sigma eps. The network F sees c_in x at the
time c_noise = ln(sigma) / 4, and x_0 is predicted as c_skip x + c_out F (eq. 7, table 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from ddpm_unet import randomness
from ddpm_unet.config import DiffusionConfig
from ddpm_unet.diffusion.process import Diffusion, GaussianDiffusion, Network
from ddpm_unet.errors import UserError


class EDMDiffusion(Diffusion):
    """Preconditioning, noise levels and loss of EDM. No parameters, no buffers.

    A "time" t of its methods is a noise level sigma, `float32 [B]`.

    Args:
        sigma_data: Standard deviation of the images, in [-1, 1].
        p_mean, p_std: Mean and standard deviation of ln(sigma) in training.
        sigma_min, sigma_max: The last noise level of sampling before 0, and the first.
        rho: How sampling spaces them: 7 puts more at low noise than 1 (eq. 5).

    Raises:
        UserError: Numbers that make no sense.

    Example:
        >>> import torch
        >>> from ddpm_unet.diffusion.edm import EDMDiffusion
        >>> images = torch.rand(2, 3, 8, 8) * 2 - 1
        >>> EDMDiffusion().loss(lambda x, t: torch.zeros_like(x), images).shape
        torch.Size([])
    """

    def __init__(
        self,
        sigma_data: float = 0.5,
        p_mean: float = -1.2,
        p_std: float = 1.2,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
    ) -> None:
        super().__init__()
        if not (sigma_data > 0 and p_std > 0 and rho > 0 and 0 < sigma_min < sigma_max):
            raise UserError(
                f"sigma_data {sigma_data:g}, p_std {p_std:g}, rho {rho:g}, sigma_min "
                f"{sigma_min:g}, sigma_max {sigma_max:g}: give positive ones, sigma_min the smaller"
            )
        self.sigma_data, self.p_mean, self.p_std = sigma_data, p_mean, p_std
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho

    @classmethod
    def from_scheduler_config(cls, saved: Mapping[str, Any]) -> EDMDiffusion:
        """Of the configuration of diffusers' EDM schedulers; refuses another prediction than F."""
        if saved.get("prediction_type", "epsilon") != "epsilon":
            raise UserError("prediction_type: an EDM scheduler is read with epsilon only")
        if saved.get("sigma_schedule", "karras") != "karras":
            raise UserError("sigma_schedule: an EDM scheduler is read with karras only")
        return cls(**{name: saved[name] for name in cls.arguments() if name in saved})

    def scheduler_config(self) -> dict[str, Any]:
        """The configuration of diffusers' EDMEulerScheduler for it."""
        usual = {"p_mean": -1.2, "p_std": 1.2}  # which diffusers does not know
        config = {k: v for k, v in self.config.items() if k not in usual or v != usual[k]}
        kind = {"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon"}
        return {**kind, "sigma_schedule": "karras", "num_train_timesteps": 1000, **config}

    def loss_weights(self, weighting: str, gamma: float | None = None) -> Tensor:
        """Refuse a weighting: EDM has its own."""
        raise UserError(f"weighting {weighting}: process edm has its own; leave it out")

    @overload
    def preconditioning(self, sigma: float) -> tuple[float, float, float, float]: ...
    @overload
    def preconditioning(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
    def preconditioning(self, sigma: Any) -> Any:
        """c_in, c_noise, c_skip and c_out (table 1) of a noise level."""
        data, total = self.sigma_data, sigma**2 + self.sigma_data**2
        noise = (sigma.log() if isinstance(sigma, Tensor) else math.log(sigma)) / 4
        return total**-0.5, noise, data**2 / total, sigma * data * total**-0.5

    def sigmas(self, steps: int) -> Tensor:
        """Noise levels of so many steps, falling to 0 (eq. 5), `float64 [steps + 1]`."""
        if steps < 1:
            raise UserError(f"{steps} sampling steps: give at least 1")
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        return torch.cat([(high + ramp * (low - high)) ** self.rho, ramp.new_zeros(1)])

    def _times_at(self, seed: int, positions: randomness.Positions) -> np.ndarray:
        uniform = randomness.uniform(seed, "timestep", positions) + 2.0**-54
        normal = torch.special.ndtri(torch.from_numpy(uniform))
        return (self.p_mean + self.p_std * normal).exp().float().numpy()

    def _random_times(self, count: int, device: Any, generator: Any) -> Tensor:
        normal = torch.empty(count, device=device).normal_(generator=generator)
        return (self.p_mean + self.p_std * normal).exp()

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_0 + sigma eps, `float32 [B, ...]`."""
        return x0 + _like(t, x0) * noise

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network should predict: (x_0 - c_skip x) / c_out (eq. 8)."""
        _, _, c_skip, c_out = self.preconditioning(_like(t, x0))
        return (x0 - c_skip * self.add_noise(x0, t, noise)) / c_out

    def predict_x0(self, x_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """The clean image that a prediction means, `[B, C, ...]`."""
        _, _, c_skip, c_out = self.preconditioning(_like(t, x_t))
        return c_skip * x_t + c_out * prediction

    def predict_noise(self, x_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """The noise that a prediction means, `[B, C, ...]`."""
        return (x_t - self.predict_x0(x_t, t, prediction)) / _like(t, x_t)

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio 1 / sigma^2, as of `GaussianDiffusion`."""
        return t**-2.0

    def predict(self, network: Network, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """F of the noised images in float32, whatever precision the network computes in."""
        c_in, c_noise, _, _ = self.preconditioning(t)
        return network(_like(c_in, x_t) * x_t, c_noise, **cond).float()


def _like(values: Tensor, images: Tensor) -> Tensor:
    """`[B]` as `[B, 1, ...]`."""
    return values.reshape(-1, *[1] * (images.ndim - 1))


def make_diffusion(config: DiffusionConfig, latents: bool = False) -> Diffusion:
    """The process of the settings of a training; latents have no bounds to be clipped to."""
    if config.process == "edm":
        return EDMDiffusion.from_config(config)
    return GaussianDiffusion.from_config(config, **({"clip_sample": False} if latents else {}))


def diffusion_of_scheduler(saved: Mapping[str, Any]) -> Diffusion:
    """The process of a diffusers scheduler's configuration."""
    if str(saved.get("_class_name")).startswith("EDM"):
        return EDMDiffusion.from_scheduler_config(saved)
    return GaussianDiffusion.from_scheduler_config(saved)

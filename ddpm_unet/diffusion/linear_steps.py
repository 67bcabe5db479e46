"""Reverse steps of DDPM and DDIM, where every coefficient is known before the loop begins.

A step is x_0 = clip(a x + b prediction), then x' = c x + d x_0 + e prediction + s noise, where a
learned variance (Nichol 2021, arXiv:2102.09672, eq. 15) multiplies s. The coefficients come from a
diffusers scheduler, in float64, so that the loop itself is a few tensor operations: it gives what
`scheduler.step` gives, except where that is wrong (see `inference_timesteps` and
`previous_timesteps`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm_unet.diffusion.process import coefficients, mean_channels

CLEAN = -1  # the timestep of a clean image, where abar is 1


class Coefficients(NamedTuple):
    """One step: x_0 from (x, prediction), the next x from (x, x_0, prediction, noise).

    Those that multiply are tensors of one number on the CPU, which torch takes in half the time
    of a Python number and, like it, without asking an accelerator.
    """

    image_from_x: float
    image_from_prediction: Tensor
    next_from_x: float
    next_from_image: float
    next_from_prediction: float
    noise: float
    widest: float  # log of the largest over the smallest learned variance; 0: it is fixed


def inference_timesteps(scheduler: Any, steps: int) -> list[int]:
    """Timesteps of a job of so many steps, falling.

    As the scheduler spaces them, less two slips of diffusers: "trailing" rounds to an extra
    timestep -1 for some numbers of steps (61, 103, ...), and a single step would start at
    timestep 0 with "leading" and "linspace".
    """
    scheduler.set_timesteps(steps)
    last = scheduler.config.num_train_timesteps - 1
    if steps == 1:
        return [last]
    return [t for t in scheduler.timesteps.tolist() if 0 <= t <= last]


def previous_timesteps(timesteps: list[int]) -> list[int]:
    """Where each step leads: to the next timestep of the list, at the end to a clean image.

    diffusers' DDIM takes t - T // steps instead, which misses the next timestep when the
    spacing is "linspace" or T is no multiple of the number of steps.
    """
    return [*timesteps[1:], CLEAN]


class LinearSteps:
    """The steps of a DDPMScheduler or DDIMScheduler.

    Args:
        scheduler: One for which `supports` holds; its timesteps are set.
        steps: Number of steps, 1 to T.
        eta: Noise of DDIM: 0 for none, 1 for that of DDPM.
        device: Where the timesteps go.
    """

    initial_std = 1.0

    def __init__(self, scheduler: Any, steps: int, eta: float, device: torch.device | str) -> None:
        timesteps = torch.tensor(inference_timesteps(scheduler, steps))
        config = scheduler.config
        self.clip = config.clip_sample_range if config.clip_sample else None
        self.timesteps = timesteps.to(device)
        self.abar = scheduler.alphas_cumprod.double()[timesteps].tolist()
        self._steps = _coefficients(scheduler, timesteps, eta)

    @staticmethod
    def supports(scheduler: Any) -> bool:
        """Whether the scheduler's step is of this form."""
        from diffusers import DDIMScheduler, DDPMScheduler

        if type(scheduler) not in (DDPMScheduler, DDIMScheduler) or scheduler.config.thresholding:
            return False
        variance = scheduler.config.get("variance_type", "fixed_small")
        return variance in ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")

    def begin(self, index: int, images: Tensor, noise: Tensor) -> Tensor:
        """The state before a step: images and standard noise, mixed (Ho 2020, eq. 4)."""
        return self.abar[index] ** 0.5 * images + (1 - self.abar[index]) ** 0.5 * noise

    def model_input(self, index: int, x: Tensor) -> Tensor:
        """What the denoiser sees: x itself."""
        return x

    def step(
        self, index: int, x: Tensor, prediction: Tensor, draw_noise: Callable[[float], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The next x and the x_0 predicted on the way.

        Args:
            index: Number of the step.
            x: The state, `[B, ...]`; it stays as it is, like the prediction.
            prediction: What the denoiser made of it, `[B, ...]`, perhaps with variances after it.
            draw_noise: Gives noise of a standard deviation, in a tensor to be overwritten.
        """
        from_x, from_prediction, next_x, next_image, next_prediction, std, wide = self._steps[index]
        output, prediction = prediction, mean_channels(prediction, x.shape[1])
        image = prediction * from_prediction
        if from_x:
            image.add_(x, alpha=from_x)
        if self.clip is not None:
            image.clamp_(-self.clip, self.clip)
        following = draw_noise(std) if std else torch.zeros_like(x)
        if wide:
            following.mul_(torch.exp((output[:, x.shape[1] :] + 1) * (wide / 4)))
        following.add_(x, alpha=next_x).add_(image, alpha=next_image)
        if next_prediction:
            following.add_(prediction, alpha=next_prediction)
        return following, image


def _coefficients(scheduler: Any, timesteps: Tensor, eta: float) -> list[Coefficients]:
    config = scheduler.config
    table = scheduler.alphas_cumprod.double()
    clean = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    previous = torch.tensor(previous_timesteps(timesteps.tolist()))
    abar = table[timesteps]
    abar_previous = table[previous].where(previous != CLEAN, clean)
    mix = coefficients(config.prediction_type, abar)
    beta = 1 - abar / abar_previous
    variance = (1 - abar_previous) / (1 - abar) * beta  # Ho 2020, eq. 7
    widest = torch.zeros_like(abar)
    if "variance_type" in config:
        next_from_x = (abar / abar_previous).sqrt() * (1 - abar_previous) / (1 - abar)
        next_from_image = abar_previous.sqrt() * beta / (1 - abar)
        next_from_prediction = torch.zeros_like(abar)
        if config.variance_type == "fixed_large":
            variance = torch.where(abar_previous < 1, beta, 0.0)
        if config.variance_type == "learned_range":
            widest = torch.where(abar_previous < 1, (beta / variance).log(), 0.0)
        noise = variance.sqrt()
    else:  # Song 2021 (arXiv:2010.02502), eq. 12 and 16; eps is that of the unclipped x_0
        noise = eta * variance.sqrt()
        direction = (1 - abar_previous - noise**2).sqrt()
        next_from_x = direction * mix["noise_from_x"]
        next_from_image = abar_previous.sqrt()
        next_from_prediction = direction * mix["noise_from_prediction"]
    columns = (
        mix["x0_from_x"].tolist(),
        mix["x0_from_prediction"].unbind(),
        next_from_x.tolist(),
        next_from_image.tolist(),
        next_from_prediction.tolist(),
        noise.tolist(),
        widest.tolist(),
    )
    return list(map(Coefficients._make, zip(*columns, strict=True)))

"""Reverse steps of any other diffusers scheduler, by its own `step`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddpm_unet.diffusion.process import coefficients, mean_channels
from ddpm_unet.errors import UserError


class SchedulerSteps:
    """The steps of a scheduler, with one generator per image.

    Where the model's settings say so (`clip_sample`), the image predicted on the way is clipped,
    also of schedulers that do not: with a network that is not exact they else keep noise.

    Args:
        scheduler: A diffusers scheduler of a discrete-time diffusion; its timesteps are set.
        steps: Number of steps; a second-order sampler asks the denoiser 2 steps - 1 times.
        eta: Noise of the schedulers that know the word.
        device: Where the timesteps go.
        generators: One per image, for the schedulers that draw noise.

    Raises:
        UserError: A scheduler whose only step would start from the clean end.
    """

    def __init__(
        self,
        scheduler: Any,
        steps: int,
        eta: float,
        device: torch.device | str,
        generators: list[torch.Generator],
    ) -> None:
        self._scheduler = scheduler
        try:
            scheduler.set_timesteps(steps)  # on the CPU, where reading them stops no accelerator
        except ValueError as error:
            name, cause = type(scheduler).__name__, " ".join(str(error).split())
            raise UserError(f"{steps} steps of {name}: {cause}") from error
        if steps == 1 and scheduler.timesteps[0] == 0:
            name = type(scheduler).__name__
            raise UserError(f"1 step of {name} would start at timestep 0: give at least 2")
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        known = inspect.signature(scheduler.step).parameters
        options = {"eta": eta, "generator": generators}
        self._options = {name: value for name, value in options.items() if name in known}
        self._learned = getattr(scheduler, "variance_type", None) == "learned_range"
        self._clip = None if self._learned else _clip_range(scheduler)
        self._times = list(scheduler.timesteps)
        self.timesteps = scheduler.timesteps.to(device)
        self.initial_std = float(scheduler.init_noise_sigma)
        mix = coefficients(scheduler.config.prediction_type, self._abar())
        rows = torch.stack([mix["x0_from_x"], mix["x0_from_prediction"]], dim=1)
        self._image: list[list[float]] = rows.tolist()

    def _abar(self) -> Tensor:
        scheduler = self._scheduler
        if hasattr(scheduler, "sigmas"):
            return 1 / (1 + scheduler.sigmas[: len(self._times)].double() ** 2)
        return scheduler.alphas_cumprod.double()[scheduler.timesteps]

    def begin(self, index: int, images: Tensor, noise: Tensor) -> Tensor:
        """The state before a step: images and standard noise, as the scheduler mixes them."""
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(index)
        images = images.expand_as(noise)
        return self._scheduler.add_noise(images, noise, self._times[index].expand(len(noise)))

    def model_input(self, index: int, x: Tensor) -> Tensor:
        """What the denoiser sees: x at unit variance."""
        return self._scheduler.scale_model_input(x, self._times[index])

    def step(
        self, index: int, x: Tensor, prediction: Tensor, draw_noise: Callable[[float], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The next x and the x_0 predicted on the way; the scheduler draws the noise itself."""
        time, (from_x, from_prediction) = self._times[index], self._image[index]
        seen = self.model_input(index, x)
        means = mean_channels(prediction, x.shape[1])
        image = from_x * seen + from_prediction * means
        if self._clip is not None:
            image = image.clamp(-self._clip, self._clip)
            means = (image - from_x * seen) / from_prediction
        given = prediction if self._learned else means
        output = self._scheduler.step(given, time, x, **self._options)
        own = output.get("pred_original_sample")
        return output.prev_sample, image if own is None else own


def _clip_range(scheduler: Any) -> float | None:
    """Where predicted images are clipped; a scheduler keeps the settings that it does not use."""
    config = scheduler.config
    return config.get("clip_sample_range", 1.0) if config.get("clip_sample", False) else None

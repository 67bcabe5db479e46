"""From noise to images: the reverse loop over a denoiser and a diffusers scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_unet import randomness
from ddpm_unet.diffusion.linear_steps import LinearSteps
from ddpm_unet.diffusion.scheduler_steps import SchedulerSteps
from ddpm_unet.errors import UserError

Denoiser = Callable[..., Tensor]


class StepInfo(NamedTuple):
    """What a callback sees of one step.

    Args:
        step: Number of the step, 0 to steps - 1.
        steps: Number of steps (of denoiser evaluations, for a second-order sampler).
        t: Timestep that the denoiser saw.
        x: The state after the step, `[B, C, ...]`; later steps overwrite it.
        x0: The image predicted in the step, `[B, C, ...]`.
    """

    step: int
    steps: int
    t: float
    x: Tensor
    x0: Tensor


class Trajectory:
    """A callback that keeps the predicted images of a few steps, evenly spaced.

    Args:
        count: How many to keep, the last step's among them.

    Attributes:
        images: Of each, `[B, C, ...]`, as the loop goes on.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.images: list[Tensor] = []

    def __call__(self, info: StepInfo) -> None:
        """Keep the images of a step whose turn it is."""
        last = info.steps - 1
        from_last = (round(i * last / max(self.count - 1, 1)) for i in range(self.count))
        if last - info.step in from_last:
            self.images.append(info.x0)


class Noise:
    """Noise of each image from a generator of its own, which lives across the loop."""

    def __init__(
        self,
        seed: int,
        indices: randomness.Positions,
        shape: Sequence[int],
        device: torch.device | str,
    ) -> None:
        self.generators = randomness.generators(seed, "sample", indices, device)
        pair = torch.empty(2, len(indices), *shape, device=device)
        self._buffers = cycle(
            [(buffer, list(zip(buffer, self.generators, strict=True))) for buffer in pair]
        )

    def draw(self, std: float) -> Tensor:
        """The next noise, `float32 [B, *shape]`, in a tensor that the second next overwrites."""
        buffer, rows = next(self._buffers)
        for row, generator in rows:
            row.normal_(0, std, generator=generator)
        return buffer


class Steps(Protocol):
    """A scheduler, made ready for a number of steps."""

    timesteps: Tensor
    initial_std: float

    def begin(self, index: int, images: Tensor, noise: Tensor) -> Tensor:
        """The state before step `index`, the first to be taken, of images and standard noise."""

    def model_input(self, index: int, x: Tensor) -> Tensor:
        """What the denoiser sees."""

    def step(
        self, index: int, x: Tensor, prediction: Tensor, draw_noise: Callable[[float], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The next x, and the predicted image."""


def timesteps(scheduler: Any, steps: int) -> Tensor:
    """The timesteps that `sample` tells the denoiser in so many steps, one after the other.

    Raises:
        UserError: A number of steps outside 1 .. T.
    """
    return _plan(scheduler, steps, 0.0, "cpu", []).timesteps


def sample(
    denoiser: Denoiser,
    scheduler: Any,
    shape: Sequence[int],
    *,
    seed: int,
    indices: randomness.Positions,
    steps: int,
    device: torch.device | str = "cpu",
    eta: float = 0.0,
    self_conditioning: bool = False,
    start: Tensor | None = None,
    strength: float = 1.0,
    progress: bool = False,
    callback: Callable[[StepInfo], None] | None = None,
) -> Tensor:
    """Draw images. Image i is a function of (seed, i), whatever batch it is drawn in.

    Args:
        denoiser: `(x [B, *shape], t [B]) -> prediction`, of the scheduler's prediction type.
            Conditions are the caller's: bind them to the denoiser.
        scheduler: A diffusers scheduler (see `make_scheduler`); its timesteps are set here.
        shape: Shape of one image, such as (C, H, W).
        seed: Seed of the job.
        indices: Numbers of the images to draw, B of them.
        steps: Denoising steps, 1 to T.
        device: Where to compute. The noise is drawn there, so that another kind of device
            draws other images.
        eta: Noise of DDIM: 0 for none, 1 for that of DDPM.
        self_conditioning: Tell the denoiser, as `estimate`, the image predicted in the step
            before, clipped to [-1, 1] unless the scheduler's `clip_sample` is false, and zeros at
            first (Chen 2022).
        start: Images `[B or 1, *shape]` to noise and go on from, instead of noise alone (Meng
            2022, arXiv:2108.01073, algorithm 1).
        strength: Share of the steps that are taken with `start`, above 0, up to 1.
        progress: Show a progress bar.
        callback: Called after every step; it must clone the state x if it keeps it.

    Returns:
        Images, `float32 [B, *shape]`, within [-1, 1] if the scheduler clips (DDPM, DDIM);
        the others may overshoot a little.

    Raises:
        UserError: A number of steps outside 1 .. T, a strength outside (0, 1].
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength {strength:g}: give a share of the steps, above 0 and up to 1")
    with torch.inference_mode():
        noise = Noise(seed, indices, shape, device)
        plan = _plan(scheduler, steps, eta, device, noise.generators)
        times = plan.timesteps.tolist()
        first = 0
        if start is None:
            x = noise.draw(plan.initial_std)
        else:
            first = len(times) - max(1, round(strength * len(times)))
            first -= first % getattr(scheduler, "order", 1)
            x = plan.begin(first, start.to(device, torch.float32), noise.draw(1.0))
        batches = plan.timesteps[:, None].repeat(1, len(indices)).unbind(0)
        told = {"estimate": torch.zeros_like(x)} if self_conditioning else {}
        for i in tqdm(range(first, len(times)), "Sampling", disable=not progress):
            prediction = denoiser(plan.model_input(i, x), batches[i], **told).float()
            x, x0 = plan.step(i, x, prediction, noise.draw)
            if self_conditioning:
                clip = scheduler.config.get("clip_sample", True)
                told = {"estimate": x0.clamp(-1, 1) if clip else x0}
            if callback is not None:
                callback(StepInfo(i, len(times), times[i], x, x0))
    return x.clone()  # outside inference mode: a tensor that autograd accepts


def _plan(
    scheduler: Any,
    steps: int,
    eta: float,
    device: torch.device | str,
    generators: list[torch.Generator],
) -> Steps:
    total = scheduler.config.num_train_timesteps
    if not 1 <= steps <= total:
        raise UserError(f"{steps} sampling steps: give 1 to {total}")
    if LinearSteps.supports(scheduler):
        return LinearSteps(scheduler, steps, eta, device)
    return SchedulerSteps(scheduler, steps, eta, device, generators)

"""Samplers: by name, as a function, or as any object with diffusers' `set_timesteps` and `step`.

Each carries its own coefficients, in float64, so that a step is a few tensor operations and asks
an accelerator nothing. DDPM and DDIM use "linspace" timesteps, the only spacing that both starts
at T - 1 and ends at 0, like the respacing of Nichol 2021: "leading" never sees the last timesteps
(a bias of the mean under the cosine schedule), "trailing" jumps from timestep T / steps - 1 to a
clean image and loses fine detail by it.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from ddpm_unet import randomness
from ddpm_unet.diffusion import solvers
from ddpm_unet.diffusion.process import (
    Diffusion,
    GaussianDiffusion,
    Network,
    check_steps,
    coefficients,
    mean_channels,
)
from ddpm_unet.errors import UserError, cause_of

SAMPLERS = {
    "ddpm": "the chain of Ho 2020, noise at every step; learned variances; many steps",
    "ddim": "deterministic (Song 2021); 50 steps and more",
    "dpm++": "DPM-Solver++ 2M (Lu 2022), deterministic; 10 to 50 steps",
    "dpm++sde": "its stochastic form; 20 to 100 steps",
    "unipc": "UniPC (Zhao 2023), deterministic; 10 to 50 steps",
    "euler": "Euler's method (Karras 2022), deterministic; 50 steps and more",
    "heun": "Heun's (Karras 2022), twice the evaluations; 20 to 50 steps",
    "churn": "Heun's with noise added and removed again (Karras 2022); 30 to 250 steps",
}
LCM = "lcm"
"""Only for the models that were distilled for it."""
_OTHER_WAYS = ("Inverse", "UnCLIP", "SCM", "CogVideoX")
"""Schedulers of diffusers that are asked in another way, or lead elsewhere."""

Draw = Callable[[float], Tensor]
"""From a standard deviation to noise of it, `[B, *shape]`."""
Ask = Callable[..., Sequence[Tensor]]
"""From a state, the network's time and what else an evaluation takes to what it gives."""
Done = Callable[[int, int, float, Tensor, Tensor], None]
"""Told after each evaluation: its number, their number, time, state, x_0."""


def described() -> str:
    """The samplers, one a line."""
    last = {LCM: "few steps; only of a folder that names LCMScheduler, without --sampler"}
    return "\n".join(f"{name:10}{words}" for name, words in {**SAMPLERS, **last}.items())


def make_sampler(sampler: Any, diffusion: Diffusion | None) -> Sampler:
    """A sampler for a model's forward process and prediction type.

    Args:
        sampler: One of `SAMPLERS`, a function (see `solvers`), any object with diffusers'
            `set_timesteps` and `step`, or a `Sampler`, which is given back.
        diffusion: The forward process; an object as above does without.

    Raises:
        UserError: An unknown name, or a sampler that is known to draw wrong images of such a model.
    """
    if hasattr(sampler, "plan"):
        return sampler
    if hasattr(sampler, "step") and hasattr(sampler, "set_timesteps"):
        return SchedulerSampler(sampler, diffusion)
    if diffusion is None:
        raise UserError(f"sampler {sampler!r}: give diffusion, the forward process, too")
    if callable(sampler):
        return SolverSampler(getattr(sampler, "__name__", "function"), sampler, diffusion)
    if sampler == LCM:
        raise UserError(
            "sampler lcm: needs a model distilled for it, whose scheduler_config.json names "
            "LCMScheduler; sample such a one without --sampler, and this one with dpm++"
        )
    if sampler not in SAMPLERS:
        near = difflib.get_close_matches(str(sampler), SAMPLERS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"unknown sampler {sampler!r}: did you mean {near!r}? Known: {', '.join(SAMPLERS)}"
        )
    if sampler in solvers.SOLVERS:
        return SolverSampler(sampler, solvers.SOLVERS[sampler], diffusion)
    if not isinstance(diffusion, GaussianDiffusion):
        raise UserError(
            f"sampler {sampler}: is of the process ddpm, and the model was trained with process "
            f"edm; take {', '.join(solvers.SOLVERS)}"
        )
    return LinearSampler(diffusion, sampler)


def saved_sampler(saved: Mapping[str, Any], diffusion: Diffusion) -> Sampler:
    """The sampler that a pipeline's scheduler_config.json names, with the settings it has there.

    What it leaves out is what that class of diffusers does by default. Only where this toolkit
    wrote the file are the timesteps "linspace" if it does not say.

    Raises:
        UserError: It is no sampler of such a process, or known to draw wrong images of it.
    """
    kind = saved.get("_class_name", "DDPMScheduler")
    own = {key: value for key, value in saved.items() if not key.startswith("_")}
    spacing = own.setdefault(
        "timestep_spacing", "leading" if "_diffusers_version" in saved else "linspace"
    )
    if getattr(diffusion, "rescale_betas_zero_snr", False) and spacing == "leading":
        raise UserError(
            "scheduler_config.json has timestep_spacing leading, which never asks the last "
            "timestep, where zero terminal SNR begins; set it to trailing, or give --sampler"
        )
    linear = re.fullmatch("DD[PI]M(Parallel)?Scheduler", kind)
    if linear and isinstance(diffusion, GaussianDiffusion):
        name = "ddpm" if "DDPM" in kind else "ddim"
        known = inspect.signature(LinearSampler).parameters.keys() - {"diffusion", "name"}
        return LinearSampler(diffusion, name, **{key: own[key] for key in known & own.keys()})
    if "timestep_spacing" not in saved:
        del own["timestep_spacing"]  # the class has a default of its own
    return _scheduler(kind, own, diffusion)


def _scheduler(class_name: str, settings: dict[str, Any], diffusion: Diffusion) -> SchedulerSampler:
    """A sampler of a class of diffusers, at the forward process of `diffusion`."""
    import diffusers  # takes seconds

    needed = "beta_schedule" if isinstance(diffusion, GaussianDiffusion) else "sigma_data"
    try:
        kind = getattr(diffusers, class_name)
        known = inspect.signature(kind).parameters
        takes = inspect.signature(kind.step).parameters.values()
        # self, prediction, timestep and state
        fits = {needed, "prediction_type"} <= set(known) and sum(
            p.default is p.empty for p in takes
        ) == 4
    except (AttributeError, TypeError, ImportError):
        fits = False
    if not fits or any(word in class_name for word in _OTHER_WAYS):
        raise UserError(
            f"scheduler_config.json names {class_name}, which is no sampler of such a model here; "
            f"give --sampler, one of {', '.join(SAMPLERS)}"
        )
    if settings.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
        raise UserError(
            f"diffusers' {class_name} does not know zero terminal SNR (rescale_betas_zero_snr), "
            "and would draw from another noise; give --sampler, such as dpm++"
        )
    try:
        scheduler = kind(**{key: value for key, value in settings.items() if key in known})
    except (TypeError, ValueError, NotImplementedError, ImportError) as error:
        raise UserError(
            f"scheduler_config.json: diffusers refuses it ({cause_of(error)})"
        ) from error
    return SchedulerSampler(scheduler, diffusion)


class Sampler:
    """A way from noise to images, and once it is planned its times and coefficients.

    Attributes:
        name: For messages.
        clip: Predicted images are kept in [-1, 1], for self-conditioning.
        times: Of a plan: what the network is given, evaluation by evaluation.
        initial_std: Of a plan: standard deviation of the noise at the beginning.
        order: Of a plan: a job may begin at every order-th evaluation.
    """

    name: str
    diffusion: Any
    clip: bool
    times: list[float]
    initial_std = 1.0
    order = 1

    def plan(
        self, steps: int, eta: float | None = None, generators: Sequence[torch.Generator] = ()
    ) -> Self:
        """A copy that is made ready for so many steps."""
        made = copy(self)
        made._prepare(steps, eta, generators)
        return made

    def _prepare(self, steps: int, eta: float | None, generators: Any) -> None:
        raise NotImplementedError

    @property
    def evaluations(self) -> int:
        """Of a plan: how often it asks the network."""
        return len(self.times)

    def begin(self, index: int, images: Tensor, noise: Tensor) -> Tensor:
        """The state before an evaluation, of images and noise."""
        raise NotImplementedError

    def model_input(self, index: int, x: Tensor) -> Tensor:
        """What the network sees of a state."""
        return x

    def step(self, index: int, x: Tensor, prediction: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """The next state and the x_0 predicted on the way; x and prediction stay as they are."""
        raise NotImplementedError

    def evaluation(self, network: Network, *inputs: Tensor, **given: Any) -> Sequence[Tensor]:
        """What one graph may hold, of tensors all that changes: here a prediction, `[B, ...]`."""
        return (network(*inputs, **given).float(),)

    def solve(self, x: Tensor, first: int, ask: Ask, done: Done, draw: Draw) -> Tensor:
        """The images that the noise x, the state before step `first`, leads to."""
        for i, time in enumerate(self.times[first:], first):
            (prediction,) = ask(self.model_input(i, x), time)
            x, x0 = self.step(i, x, prediction, draw)
            done(i, len(self.times), time, x, x0)
        return x


@dataclass
class LinearSampler(Sampler):
    """DDPM and DDIM: every coefficient is known before the loop begins.

    A step is x_0 = clip(a x + b prediction), then x' = c x + d x_0 + s noise, where a learned
    variance (Nichol 2021, arXiv:2102.09672, eq. 15) multiplies s. It gives what diffusers'
    schedulers give, except where those are wrong: "trailing" rounds to an extra timestep -1 for
    some numbers of steps, DDPM adds noise to the finished image if the last timestep is not 0, DDIM
    takes t - T // steps for the next timestep, and goes on from the clipped image with the noise of
    the unclipped one, unless `use_clipped_model_output` is set, as here: of an image and a noise
    that belong to no one state the errors add up, under guidance to images of another class.

    Args:
        diffusion: The forward process.
        name: "ddpm" or "ddim".
        timestep_spacing: "linspace", "leading" or "trailing".
        steps_offset: Added to "leading" timesteps.
        clip_sample, variance_type: None for what the forward process says.
        clip_sample_range: Where x_0 is clipped.
        thresholding: Clip x_0 at `dynamic_thresholding_ratio`, a quantile of its size, instead, at
            most sample_max_value, and scale it back (Saharia 2022, arXiv:2205.11487, section 2.3).
        set_alpha_to_one: DDIM's last step goes to a clean image, or to timestep 0's noise.
    """

    diffusion: GaussianDiffusion
    name: str
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    clip_sample: bool | None = None
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    set_alpha_to_one: bool = True
    variance_type: str | None = None

    def __post_init__(self) -> None:
        self.clip = self.diffusion.clip_sample if self.clip_sample is None else self.clip_sample
        self.variance_type = self.variance_type or self.diffusion.variance_type

    def timesteps(self, steps: int) -> list[int]:
        """Falling timesteps of a job of so many steps; a single one is the last of the chain."""
        total = self.diffusion.num_timesteps
        check_steps(steps, total)
        if steps == 1:
            return [total - 1]
        times: Any
        if self.timestep_spacing == "linspace":
            times = np.linspace(0, total - 1, steps).round()[::-1]
        elif self.timestep_spacing == "leading":
            times = (np.arange(steps) * (total // steps))[::-1] + self.steps_offset
        elif self.timestep_spacing == "trailing":
            times = np.arange(total, 0, -total / steps).round() - 1
        else:
            raise UserError(f"unknown timestep_spacing {self.timestep_spacing!r}")
        return [int(t) for t in times if 0 <= t < total]

    def _prepare(self, steps: int, eta: float | None, generators: Any) -> None:
        times = self.timesteps(steps)
        self.times = list(times)
        table = self.diffusion.alphas_cumprod_float64
        abar = table[times]
        self.abar: list[float] = abar.tolist()
        end = torch.ones(1, dtype=table.dtype) if self.set_alpha_to_one else table[:1]
        following = torch.cat([abar[1:], end])
        mix = coefficients(self.diffusion.prediction_type, abar)
        beta = 1 - abar / following
        variance = (1 - following) / (1 - abar) * beta  # Ho 2020, eq. 7
        widest = torch.zeros_like(abar)
        if self.name == "ddpm":
            from_x = (abar / following).sqrt() * (1 - following) / (1 - abar)
            from_x0 = following.sqrt() * beta / (1 - abar)
            if self.variance_type == "fixed_large":
                variance = torch.where(following < 1, beta, 0.0)
            if self.variance_type == "learned_range":
                widest = torch.where(following < 1, (beta / variance).log(), 0.0)
            noise = variance.sqrt()
        else:  # Song 2021 (arXiv:2010.02502), eq. 12 and 16, with the noise that x_0 leaves in x
            noise = (eta or 0.0) * variance.sqrt()
            from_x = ((1 - following - noise**2) / (1 - abar)).sqrt()
            from_x0 = following.sqrt() - from_x * abar.sqrt()
        columns = (mix["x0_from_x"], mix["x0_from_prediction"], from_x, from_x0, widest / 4)
        self._table, self._stds = torch.stack(columns, dim=1), noise.tolist()

    def begin(self, index: int, images: Tensor, noise: Tensor) -> Tensor:
        """Images and noise, mixed (Ho 2020, eq. 4)."""
        return self.abar[index] ** 0.5 * images + (1 - self.abar[index]) ** 0.5 * noise

    def _rows(self, x: Tensor) -> Tensor:
        return randomness.on_device(self._table.to(x.dtype).numpy(), x.device)

    def _noise(self, index: int, x: Tensor, draw: Draw) -> Tensor:
        std = self._stds[index]
        return draw(std) if std else torch.zeros_like(x)

    def solve(self, x: Tensor, first: int, ask: Ask, done: Done, draw: Draw) -> Tensor:
        """As of the base class."""
        rows = self._rows(x)
        for i, time in enumerate(self.times[first:], first):
            x, x0 = ask(x, time, rows[i], self._noise(i, x, draw))
            done(i, len(self.times), time, x, x0)
        return x

    def evaluation(self, network: Network, *inputs: Tensor, **given: Any) -> Sequence[Tensor]:
        """A whole step, of state, time, coefficients and noise."""
        x, t, row, noise = inputs
        return self._step(x, network(x, t, **given).float(), row, noise)

    def step(self, index: int, x: Tensor, prediction: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """See the class."""
        return self._step(x, prediction, self._rows(x)[index], self._noise(index, x, draw))

    def _step(self, x: Tensor, output: Tensor, row: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        c = Coefficients._make(row.unbind())
        prediction = mean_channels(output, x.shape[1])
        x0 = torch.addcmul(prediction * c.x0_from_prediction, x, c.x0_from_x)
        if self.thresholding:
            sizes = x0.flatten(1).abs().quantile(self.dynamic_thresholding_ratio, dim=1)
            limit = sizes.clamp(1, self.sample_max_value).reshape(-1, *[1] * (x0.ndim - 1))
            x0 = x0.clamp(-limit, limit) / limit
        elif self.clip:
            x0 = x0.clamp(-self.clip_sample_range, self.clip_sample_range)
        if self.name == "ddpm" and self.variance_type == "learned_range":
            noise = noise * torch.exp((output[:, x.shape[1] :] + 1) * c.widest)
        following = torch.addcmul(torch.addcmul(noise, x, c.next_from_x), x0, c.next_from_x0)
        return following, x0


class Coefficients(NamedTuple):
    """Of one step, each a tensor of one number, so that a graph of a step is one of all steps."""

    x0_from_x: Tensor
    x0_from_prediction: Tensor
    next_from_x: Tensor
    next_from_x0: Tensor
    widest: Tensor  # a quarter of the log of the largest over the smallest learned variance


@dataclass
class SolverSampler(Sampler):
    """A function `(denoise, x, sigmas, noise) -> images` (see `solvers`) as a sampler.

    `noise` is given to it if it has such an argument. `sigmas` goes from a number of steps to noise
    levels `float64 [N + 1]`; None for the process's.
    """

    name: str
    solver: Callable[..., Tensor]
    diffusion: Diffusion
    sigmas: Callable[[int], Tensor] | None = None

    @property
    def clip(self) -> bool:  # type: ignore[override]
        """As the forward process says; what the network predicts is clipped on the way."""
        return self.diffusion.clip_sample

    def _prepare(self, steps: int, eta: float | None, generators: Any) -> None:
        self.levels = (self.sigmas or self.diffusion.sigmas)(steps)
        levels = self.levels[:-1].tolist()
        self.times = [self.diffusion.preconditioning(sigma)[1] for sigma in levels]
        self.initial_std = levels[0]

    @property
    def evaluations(self) -> int:
        """Of a plan: how often it asks the network."""
        return self._asked(len(self.times))

    def _asked(self, steps: int) -> int:
        return solvers.EVALUATIONS.get(self.solver, lambda steps: steps)(steps)

    def begin(self, index: int, images: Tensor, noise: Tensor) -> Tensor:
        """Images with noise of a level."""
        return images + float(self.levels[index]) * noise

    def evaluation(self, network: Network, *inputs: Tensor, **given: Any) -> Sequence[Tensor]:
        """The x_0 that the network predicts of a state."""
        x, t, (c_in, c_skip, c_out) = inputs
        prediction = mean_channels(network(c_in * x, t, **given).float(), x.shape[1])
        x0 = torch.addcmul(prediction * c_out, x, c_skip)
        return (x0.clamp(-1, 1) if self.clip else x0,)

    def solve(self, x: Tensor, first: int, ask: Ask, done: Done, draw: Draw) -> Tensor:
        """All steps in one call."""
        sigmas = self.levels[first:]
        total = self.evaluations
        number = total - self._asked(len(sigmas) - 1)
        pending: tuple[int, float, Tensor] | None = None

        def denoise(x: Tensor, sigma: float | Tensor) -> Tensor:
            nonlocal number, pending
            level = float(sigma.reshape(-1)[0]) if isinstance(sigma, Tensor) else sigma
            c_in, time, c_skip, c_out = self.diffusion.preconditioning(level)
            row = np.array([c_in, c_skip, c_out], np.float32)
            if pending is not None:  # before the network is told what was predicted last
                done(pending[0], total, pending[1], c_in * x, pending[2])
            (x0,) = ask(x, time, randomness.on_device(row, x.device))
            pending, number = (number, time, x0), number + 1
            return x0

        wants = inspect.signature(self.solver).parameters
        images = self.solver(denoise, x, sigmas, **{"noise": draw} if "noise" in wants else {})
        if pending is not None:
            done(pending[0], total, pending[1], images, pending[2])
        return images


class SchedulerSampler(Sampler):
    """Any object with `set_timesteps(steps)`, `timesteps` and `step(prediction, t, x)`.

    It is asked as diffusers' pipelines ask it, with one generator for each image; clipping and
    thresholding are its own.
    """

    def __init__(self, scheduler: Any, diffusion: Diffusion | None = None) -> None:
        self.scheduler, self.diffusion = scheduler, diffusion
        self.name = type(scheduler).__name__
        self.clip = diffusion is not None and diffusion.clip_sample

    def _prepare(self, steps: int, eta: float | None, generators: Any) -> None:
        scheduler = self.scheduler
        self._config: Mapping[str, Any] = getattr(scheduler, "config", {})
        check_steps(steps, self._config.get("num_train_timesteps", steps))
        try:
            scheduler.set_timesteps(steps)  # on the CPU, where reading them stops no accelerator
        except ValueError as error:
            raise UserError(f"{steps} steps of {self.name}: {cause_of(error)}") from error
        self._times = list(torch.as_tensor(scheduler.timesteps))
        self.times = [t.item() for t in self._times]
        if steps == 1 and self.times[0] == 0:
            raise UserError(f"1 step of {self.name} would start at timestep 0: give at least 2")
        self._from(0)
        known = inspect.signature(scheduler.step).parameters
        options = {"eta": eta, "generator": generators}
        self._options = {k: v for k, v in options.items() if k in known and v is not None}
        self._learned = self._config.get("variance_type") == "learned_range" and hasattr(
            scheduler, "variance_type"
        )
        self.initial_std = float(getattr(scheduler, "init_noise_sigma", 1.0))
        self.order = getattr(scheduler, "order", 1)
        self._mix = self._image_mixture()

    def _image_mixture(self) -> list[list[float]] | None:
        """Of the network's input and prediction, x_0 at each step; None if it cannot be known."""
        scheduler, kind = self.scheduler, self._config.get("prediction_type")
        if kind not in ("epsilon", "sample", "v_prediction") or "sigma_data" in self._config:
            return None
        if hasattr(scheduler, "sigmas"):
            abar = 1 / (1 + scheduler.sigmas[: len(self._times)].double() ** 2)
        elif hasattr(scheduler, "alphas_cumprod"):
            abar = scheduler.alphas_cumprod.double()[[int(t) for t in self.times]]
        else:
            return None
        mix = coefficients(kind, abar)
        return torch.stack([mix["x0_from_x"], mix["x0_from_prediction"]], dim=1).tolist()

    def _from(self, index: int) -> None:
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(index)

    def begin(self, index: int, images: Tensor, noise: Tensor) -> Tensor:
        """Images and noise as the scheduler mixes them."""
        self._from(index)
        images = images.expand_as(noise)
        return self.scheduler.add_noise(images, noise, self._times[index].expand(len(noise)))

    def model_input(self, index: int, x: Tensor) -> Tensor:
        """The state, scaled as the scheduler says."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        return scale(x, self._times[index]) if scale else x

    def step(self, index: int, x: Tensor, prediction: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """The scheduler draws the noise itself; x_0 is its own, if it says one."""
        means = mean_channels(prediction, x.shape[1])
        seen = self.model_input(index, x)
        given = prediction if self._learned else means
        try:
            output = self.scheduler.step(given, self._times[index], x, **self._options)
        except (NotImplementedError, ValueError) as error:
            raise UserError(f"{self.name}: {cause_of(error)}") from error
        following = output[0] if isinstance(output, tuple) else output.prev_sample
        x0 = None if isinstance(output, tuple) else output.get("pred_original_sample")
        if x0 is None and self._mix is not None:
            from_x, from_prediction = self._mix[index]
            x0 = from_x * seen + from_prediction * means
        return following, following if x0 is None else x0

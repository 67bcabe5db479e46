"""The forward process of Ho 2020, what a network predicts of it, and the loss.

Notation of Ho 2020 (arXiv:2006.11239): x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, where abar is
the cumulative product of 1 - beta and timestep t of 0 .. T-1 is the paper's t + 1. A prediction is
a mixture p x_0 + q eps; together with x_t it makes two linear equations, and x_0 and eps are their
solution.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_unet import randomness
from ddpm_unet.config import DiffusionConfig
from ddpm_unet.diffusion.variational_bound import bound_terms
from ddpm_unet.errors import UserError

Network = Callable[..., Tensor]
"""`(x [B, C, *space], t [B], **cond) -> prediction [B, C or 2 C, *space]`."""

EPSILON_AT_ZERO_SNR = (
    "rescale_betas_zero_snr: with prediction_type epsilon the last timestep says nothing of the "
    "image; take v_prediction or sample"
)
D = TypeVar("D", bound="Diffusion")
MAX_BETA = 0.999
DIFFUSERS_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def alphas_cumprod(
    num_timesteps: int = 1000,
    beta_schedule: str = "linear",
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    rescale_betas_zero_snr: bool = False,
    snr_shift: float = 1.0,
) -> Tensor:
    """The share abar of the image's variance that is left at each timestep (Ho 2020, eq. 4).

    Args:
        num_timesteps: T.
        beta_schedule: "linear" (Ho 2020, section 4), "scaled_linear" (latent diffusion,
            arXiv:2112.10752), "squaredcos_cap_v2" (Nichol 2021, arXiv:2102.09672, eq. 17) or
            "logistic" (Jabri 2022, arXiv:2212.11972, figure 8, from -3 to 3).
        beta_start, beta_end: First and last beta of the linear ones.
        rescale_betas_zero_snr: sqrt(abar) is stretched to end at 0 (Lin 2023, arXiv:2305.08891).
        snr_shift: log-SNR moves by 2 ln(snr_shift): the resolution that the schedule was made for
            over that of the images (Hoogeboom 2023, arXiv:2301.11093, eq. 4).

    Returns:
        Falling numbers in (0, 1), with zero terminal SNR the last is 0, `float64 [T]`.
    """
    if num_timesteps < 1 + rescale_betas_zero_snr:
        least = "at least 2 with rescale_betas_zero_snr" if rescale_betas_zero_snr else "at least 1"
        raise UserError(f"num_timesteps {num_timesteps}: give {least}")
    if not 0 < snr_shift < math.inf:
        raise UserError(f"snr_shift {snr_shift}: give a positive number, 1 for none")
    time = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)
    if beta_schedule in ("squaredcos_cap_v2", "logistic"):
        curve = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        if beta_schedule == "logistic":
            curve = torch.sigmoid(3 - 6 * time)
            curve = curve - curve[-1]
        betas = (1 - curve[1:] / curve[:-1]).clamp(max=MAX_BETA)
    elif beta_schedule in DIFFUSERS_SCHEDULES:
        if not 0 < beta_start <= beta_end < 1:
            raise UserError(
                f"beta_start {beta_start}, beta_end {beta_end}: need 0 < beta_start <= beta_end < 1"
            )
        power = 2 if beta_schedule == "scaled_linear" else 1
        ends = (beta_start ** (1 / power), beta_end ** (1 / power))
        betas = torch.linspace(*ends, num_timesteps, dtype=torch.float64) ** power
    else:
        raise UserError(f"unknown beta_schedule {beta_schedule!r}")
    abar = torch.cumprod(1 - betas, dim=0)
    if snr_shift != 1:
        abar = torch.sigmoid(torch.logit(abar) + 2 * math.log(snr_shift))
    if rescale_betas_zero_snr:
        root = abar.sqrt()
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return abar


def coefficients(prediction_type: str, abar: Tensor) -> dict[str, Tensor]:
    """What mixes images, noise and predictions at each abar, by the names of the buffers."""
    a, s = abar.sqrt(), (1 - abar).sqrt()
    zero, one = torch.zeros_like(abar), torch.ones_like(abar)
    targets = {"epsilon": (zero, one), "sample": (one, zero), "v_prediction": (-s, a)}
    if prediction_type not in targets:
        known = ", ".join(targets)
        raise UserError(f"prediction_type {prediction_type!r} is none of {known}")
    p, q = targets[prediction_type]
    determinant = a * q - s * p
    return {
        "sqrt_alphas_cumprod": a,
        "sqrt_one_minus_alphas_cumprod": s,
        "signal_to_noise": abar / (1 - abar),
        "target_from_x0": p,
        "target_from_noise": q,
        "x0_from_x": q / determinant,
        "x0_from_prediction": -s / determinant,
        "noise_from_x": -p / determinant,
        "noise_from_prediction": a / determinant,
    }


def batch_time(x: Tensor, time: float) -> Tensor:
    """A batch of `x [B, ...]` at one time, `[B]`, which knows it without being read."""
    t = torch.full((len(x),), time, device=x.device)
    t.number = time  # type: ignore[attr-defined]
    return t


def repeat_time(t: Tensor, times: int) -> Tensor:
    """The times `[B]` of a batch, so many times over, `[times * B]`; known like those given."""
    repeated = t.repeat(times)
    # In a graph nothing reads it, and a graph of each number would be made.
    if hasattr(t, "number") and not torch.compiler.is_compiling():
        repeated.number = t.number  # type: ignore[attr-defined]
    return repeated


def time_of(t: Tensor) -> float:
    """The time of a batch that is at one time, without reading what `batch_time` made."""
    number = getattr(t, "number", None)
    return float(t[0]) if number is None else number


def check_steps(steps: int, most: int) -> None:
    """Refuse a number of steps that the chain does not have."""
    if not 1 <= steps <= most:
        raise UserError(f"{steps} sampling steps: give 1 to {most}")


def mean_channels(prediction: Tensor, channels: int) -> Tensor:
    """A prediction `[B, C or 2 C, ...]` without what it says of variances, `[B, C, ...]`."""
    return prediction if prediction.shape[1] == channels else prediction[:, :channels]


class Diffusion(nn.Module):
    """What `GaussianDiffusion` and `EDMDiffusion` have in common.

    The time t `[B]` of a method is a timestep of the one, and a noise level sigma of the other.
    """

    prediction_type, variance_type, clip_sample = "epsilon", "fixed_small", False
    add_noise: Callable[[Tensor, Tensor, Tensor], Tensor]
    target: Callable[[Tensor, Tensor, Tensor], Tensor]
    predict: Callable[..., Tensor]
    predict_x0: Callable[[Tensor, Tensor, Tensor], Tensor]
    loss_weights: Callable[..., Tensor]
    preconditioning: Callable[..., Any]
    sigmas: Callable[[int], Tensor]
    scheduler_config: Callable[[], dict[str, Any]]
    _times_at: Callable[[int, randomness.Positions], np.ndarray]
    _random_times: Callable[..., Tensor]

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[tuple[str, float, torch.device], Tensor] = {}

    @classmethod
    def arguments(cls) -> list[str]:
        """Names of the constructor's arguments."""
        return list(inspect.signature(cls).parameters)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make it again."""
        return {name: getattr(self, name) for name in self.arguments()}

    @classmethod
    def from_config(cls: type[D], config: DiffusionConfig, **changes: Any) -> D:
        """Of the settings of a training, but for `changes`; those of the loss are not read."""
        given = {"num_timesteps": config.num_train_timesteps, **vars(config), **changes}
        return cls(**{name: given[name] for name in cls.arguments()})

    def check_loss(
        self, weighting: str | None = None, gamma: float | None = None, **_: Any
    ) -> None:
        """Refuse the arguments of `losses` that make no sense with this forward process."""
        if weighting is not None:
            self.loss_weights(weighting, gamma)

    def draw(
        self,
        seed: int,
        positions: randomness.Positions,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> tuple[Tensor, Tensor]:
        """Times `[B]` and normal noise `float32 [B, *shape]` of a training.

        Both are functions of (seed, position in the stream). No accelerator is waited for.
        """
        noise = randomness.normal(seed, "noise", positions, shape, device)
        return randomness.on_device(self._times_at(seed, positions), device), noise

    def losses(
        self,
        network: Network,
        x0: Tensor,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        *,
        weighting: str | None = None,
        gamma: float | None = None,
        vlb_weight: float = 1e-3,
        generator: torch.Generator | None = None,
        **cond: Any,
    ) -> Tensor:
        """Mean squared error of each image's prediction, `float32 [B]`.

        Of `GaussianDiffusion` Ho 2020, eq. 14; with learned variances the hybrid loss of Nichol
        2021 (eq. 16), where the bound is the sum over all timesteps, of which the image's own is
        drawn, and moves the variances alone. Of EDM Karras 2022, eq. 8, with lambda = 1 / c_out^2.

        Args:
            network: `(x_t, t, **cond) -> prediction`; with learned variances of 2 C channels.
            x0: Clean images, `float32 [B, C, ...]` in [-1, 1].
            t: Timesteps `int64 [B]` in 0 .. T-1, or noise levels `float32 [B]`; drawn if None.
            noise: Standard normal, of the shape of x0; drawn if None.
            weighting, gamma: See `GaussianDiffusion.loss_weights`; None for none.
            vlb_weight: Weight of the bound, in bits per dimension.
            generator: Of what is drawn, on the device of x0.
            cond: What else the network is given.
        """
        if t is None:
            t = self._random_times(len(x0), x0.device, generator)
        if noise is None:
            noise = torch.empty_like(x0).normal_(generator=generator)
        x_t = self.add_noise(x0, t, noise)
        prediction = self.predict(network, x_t, t, **cond)
        means = mean_channels(prediction, x0.shape[1])
        losses = (means - self.target(x0, t, noise)).square().flatten(1).mean(1)
        if weighting is not None:
            key = (weighting, -1.0 if gamma is None else gamma, t.device)
            if key not in self._weights:
                self._weights[key] = self.loss_weights(weighting, gamma).float().to(t.device)
            losses = self._weights[key][t] * losses
        if isinstance(self, GaussianDiffusion) and self.variance_type == "learned_range":
            stopped = torch.cat([means.detach(), prediction[:, x0.shape[1] :]], dim=1)
            bits = bound_terms(self, x0, x_t, t, stopped).bits
            losses = losses + vlb_weight * self.num_timesteps * bits
        return losses

    def loss(self, network: Network, x0: Tensor, *args: Any, **options: Any) -> Tensor:
        """The mean of `losses`, with the same arguments: one number."""
        return self.losses(network, x0, *args, **options).mean()


class GaussianDiffusion(Diffusion):
    """The forward process, and the training loss of a network that predicts its noise.

    Everything that depends on the timestep is a buffer `float32 [T]`, made in float64; buffers move
    to the device of the timesteps when they are first asked there, and stay float32. No parameters.

    Args:
        num_timesteps: Length T of the chain.
        beta_schedule, beta_start, beta_end, snr_shift: See `alphas_cumprod`.
        prediction_type: "epsilon" is the noise (Ho 2020, eq. 14), "sample" the image,
            "v_prediction" the velocity (Salimans 2022, arXiv:2202.00512, section 4).
        rescale_betas_zero_snr: Leave nothing of the image at the last timestep.
        variance_type: Of a reverse step: "fixed_small" (posterior, Ho 2020), "fixed_large" (beta),
            "learned_range" (predicted between the two, Nichol 2021, eq. 15).
        clip_sample: Images that are predicted on the way are kept in [-1, 1]; false for latents.

    Raises:
        UserError: An impossible schedule, an unknown prediction or variance type, or noise to be
            predicted where there is nothing else.

    Example:
        >>> import torch
        >>> from ddpm_unet.diffusion.process import GaussianDiffusion
        >>> diffusion = GaussianDiffusion(num_timesteps=100, prediction_type="v_prediction")
        >>> images = torch.rand(2, 3, 8, 8) * 2 - 1
        >>> diffusion.loss(lambda x, t: torch.zeros_like(x), images).shape
        torch.Size([])
    """

    def __init__(
        self,
        num_timesteps: int = 1000,
        beta_schedule: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        snr_shift: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_timesteps, self.beta_schedule = num_timesteps, beta_schedule
        self.beta_start, self.beta_end = beta_start, beta_end
        self.prediction_type, self.rescale_betas_zero_snr = prediction_type, rescale_betas_zero_snr
        self.variance_type, self.clip_sample = variance_type, clip_sample
        self.snr_shift = snr_shift
        if variance_type not in ("fixed_small", "fixed_large", "learned_range"):
            raise UserError(f"unknown variance_type {variance_type!r}")
        if rescale_betas_zero_snr and prediction_type == "epsilon":
            raise UserError(EPSILON_AT_ZERO_SNR)
        abar = alphas_cumprod(
            num_timesteps, beta_schedule, beta_start, beta_end, rescale_betas_zero_snr, snr_shift
        )
        self.alphas_cumprod_float64 = abar  # on the CPU, for the coefficients of samplers
        tables = {
            "alphas_cumprod": abar,
            **coefficients(prediction_type, abar),
            **self._posterior(abar),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)
        lit = abar.clamp(min=2**-24)  # as diffusers, where nothing is left of the image
        self._log_sigmas = ((1 - lit) / lit).sqrt().log().numpy()

    @classmethod
    def from_scheduler_config(cls, saved: Mapping[str, Any]) -> GaussianDiffusion:
        """Of a diffusers scheduler's configuration; what it leaves out is diffusers' default.

        Raises:
            UserError: Betas of its own (trained_betas) that no schedule here gives; as the class.
        """
        kind = saved.get("_class_name", "DDPMScheduler")
        settings = {"clip_sample": False, **_class_defaults(kind), **saved}
        settings["num_timesteps"] = settings.get("num_train_timesteps", 1000)
        settings = {name: settings[name] for name in cls.arguments() if name in settings}
        if settings.get("variance_type") in (None, "fixed_small_log"):  # the same by itself
            settings.pop("variance_type", None)
        diffusion = cls(**settings)
        listed = saved.get("trained_betas")
        if listed is not None:
            own = torch.tensor(diffusion.betas(), dtype=torch.float64)
            given = torch.tensor(listed, dtype=torch.float64)
            if own.shape != given.shape or not torch.allclose(own, given, rtol=1e-5, atol=1e-9):
                raise UserError("lists betas of its own (trained_betas), which is not supported")
        return diffusion

    def scheduler_config(self) -> dict[str, Any]:
        """The configuration of diffusers' DDPMScheduler for it, the sampler of Ho 2020."""
        config = {"_class_name": "DDPMScheduler", "num_train_timesteps": self.num_timesteps}
        skipped = ("num_timesteps", "rescale_betas_zero_snr", "snr_shift")
        config |= {name: value for name, value in self.config.items() if name not in skipped}
        config["timestep_spacing"] = "linspace"  # diffusers' own leaves the last timesteps out
        if self.rescale_betas_zero_snr:
            config["rescale_betas_zero_snr"] = True
        if self.snr_shift != 1:
            config["snr_shift"] = self.snr_shift
        if self.beta_schedule not in DIFFUSERS_SCHEDULES or self.snr_shift != 1:
            config["trained_betas"] = self.betas()
        return config

    def betas(self) -> list[float]:
        """Variance of the noise added at each timestep; with zero terminal SNR the last is 1."""
        abar = self.alphas_cumprod_float64
        return (1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])).tolist()

    def _posterior(self, abar: Tensor) -> dict[str, Tensor]:
        """Of q(x_{t-1} | x_t, x_0) (Ho 2020, eq. 7).

        At timestep 0, where it has no variance, that of timestep 1 stands in for it, also for
        "fixed_large", as in the code of Nichol 2021.
        """
        previous = torch.cat([torch.ones(1).double(), abar[:-1]])
        beta = 1 - abar / previous
        variance = (1 - previous) / (1 - abar) * beta
        variance[0] = variance[1] if len(abar) > 1 else beta[0]
        return {
            "posterior_mean_from_x0": previous.sqrt() * beta / (1 - abar),
            "posterior_log_variance": variance.log(),
            "log_variance_range": (beta / variance).log(),
        }

    def loss_weights(self, weighting: str, gamma: float | None = None) -> Tensor:
        """Weight of the squared error of the prediction at each timestep, `float64 [T]`.

        An error of x_0 is an error of the prediction times its coefficient in x_0, so each
        weighting, stated for one of them, holds for every prediction type.

        Args:
            weighting: "min_snr", where an error of x_0 weighs min(SNR, gamma) (Hang 2023,
                arXiv:2303.09556, eq. 6), or "p2", where one of the noise weighs
                (1 + SNR)^-gamma (Choi 2022, arXiv:2204.00227, eq. 8).
            gamma: Positive; None for 5 (min_snr) or 1 (p2).

        Raises:
            UserError: An unknown weighting, no positive gamma, or zero terminal SNR, whose last
                timestep would weigh nothing.
        """
        if weighting not in ("min_snr", "p2"):
            raise UserError(f"unknown weighting {weighting!r}: give min_snr, p2 or None")
        gamma = (5.0 if weighting == "min_snr" else 1.0) if gamma is None else gamma
        if not gamma > 0:
            raise UserError(f"gamma {gamma:g}: {weighting} takes a positive number")
        if self.rescale_betas_zero_snr:
            raise UserError(
                f"weighting {weighting}: would give the last timestep, whose SNR is zero with "
                "rescale_betas_zero_snr, no weight; set one of the two to null or false"
            )
        tables = coefficients(self.prediction_type, self.alphas_cumprod_float64)
        snr = tables["signal_to_noise"]
        of_x0 = snr.clamp(max=gamma) if weighting == "min_snr" else snr * (1 + snr) ** -gamma
        return of_x0 * tables["x0_from_prediction"] ** 2

    def _times_at(self, seed: int, positions: randomness.Positions) -> np.ndarray:
        return randomness.integers(seed, "timestep", positions, self.num_timesteps)

    def _random_times(self, count: int, device: Any, generator: Any) -> Tensor:
        return torch.randint(self.num_timesteps, (count,), generator=generator, device=device)

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """A draw of q(x_t | x_0) (Ho 2020, eq. 4), `float32 [B, ...]`."""
        a, s = self.at(t, x0.ndim, "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
        return a * x0 + s * noise

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network should predict, `float32 [B, ...]`."""
        p, q = self.at(t, x0.ndim, "target_from_x0", "target_from_noise")
        return p * x0 + q * noise

    def predict_x0(self, x_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """The clean image that a prediction means, `[B, C, ...]`; variances are left out."""
        from_x, from_prediction = self.at(t, x_t.ndim, "x0_from_x", "x0_from_prediction")
        return from_x * x_t + from_prediction * mean_channels(prediction, x_t.shape[1])

    def predict_noise(self, x_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """The noise that a prediction means, `[B, C, ...]`."""
        from_x, from_prediction = self.at(t, x_t.ndim, "noise_from_x", "noise_from_prediction")
        return from_x * x_t + from_prediction * mean_channels(prediction, x_t.shape[1])

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio abar / (1 - abar) (Kingma 2021, arXiv:2107.00630, eq. 2)."""
        return self.at(t, t.ndim, "signal_to_noise")[0]

    def predict(self, network: Network, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The network's prediction in float32, whatever precision it computes in."""
        return network(x_t, t, **cond).float()

    def sigmas(self, steps: int) -> Tensor:
        """Noise levels sqrt((1 - abar) / abar) of so many steps, falling to 0.

        Equal steps of log-SNR, as DPM-Solver takes (Lu 2022, arXiv:2206.00927, section 3.3): with
        10 to 50 of them solvers miss the exact solution by several times less than with equal
        steps of time. From zero SNR the first step leads to 80 at most (Karras 2022): until there
        the path is straight, as nothing is seen of the image.

        Returns:
            `float64 [steps + 1]`.
        """
        check_steps(steps, self.num_timesteps)
        high, low = self._log_sigmas[-1], self._log_sigmas[0]
        levels = np.linspace(high, low, steps)
        if self.rescale_betas_zero_snr and steps > 1:
            levels[1:] = np.linspace(min(high, math.log(80)), low, steps - 1)
        return torch.from_numpy(np.append(np.exp(levels), 0.0))

    def preconditioning(self, sigma: float) -> tuple[float, float, float, float]:
        """c_in, time, c_skip and c_out of a noise level (as of `EDMDiffusion`).

        In x = x_0 + sigma eps the network sees c_in x at a time, which may lie between two
        timesteps, and x_0 is c_skip x + c_out times its prediction.
        """
        time = float(np.interp(math.log(sigma), self._log_sigmas, np.arange(self.num_timesteps)))
        a = 1 / math.sqrt(1 + sigma**2)
        s = sigma * a
        targets = {"epsilon": (0.0, 1.0), "sample": (1.0, 0.0), "v_prediction": (-s, a)}
        p, q = targets[self.prediction_type]
        determinant = a * q - s * p
        return a, time, a * q / determinant, -s / determinant

    def at(self, t: Tensor, ndim: int, *names: str) -> list[Tensor]:
        """Rows of buffers at timesteps, `[B, 1, ...]` of so many dimensions."""
        if self.alphas_cumprod.device != t.device:
            self.to(t.device)
        return [getattr(self, n)[t].reshape(-1, *[1] * (ndim - 1)) for n in names]

    def _apply(self, fn: Any, recurse: bool = True) -> GaussianDiffusion:
        """Buffers go where `.to`, `.cuda` and `.half` send them, and stay float32."""
        super()._apply(lambda buffer: buffer.to(fn(buffer[:0]).device), recurse)
        return self


def _class_defaults(name: str) -> dict[str, Any]:
    """What a class of diffusers' schedulers does by default."""
    if name in ("DDPMScheduler", "DDIMScheduler"):  # without importing diffusers, which takes long
        return {"clip_sample": True}
    import diffusers

    kind = getattr(diffusers, name, None)
    parameters = inspect.signature(kind).parameters if isinstance(kind, type) else {}
    return {n: p.default for n, p in parameters.items() if p.default is not p.empty}

"""Samplers as functions `(denoise, x, sigmas, noise) -> images`, on the way of Karras 2022.

The state is x = x_0 + sigma eps (arXiv:2206.00364, eq. 3; k-diffusion's functions are of this form
too). `denoise(x, sigma)` gives the predicted x_0; `sigmas` fall, `float64 [N + 1]` on the CPU, and
end in 0; `noise(std)` gives noise of each image's own, and may be left out of the arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
Solver = Callable[..., Tensor]


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """Euler's method on dx/dsigma = (x - x_0) / sigma (Karras 2022, eq. 4), which is DDIM's."""
    for sigma, following in pairwise(sigmas.tolist()):
        x0 = denoise(x, sigma)
        x = x0 + following / sigma * (x - x0)
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """Heun's second-order method, two evaluations a step (Karras 2022, algorithm 1)."""
    for sigma, following in pairwise(sigmas.tolist()):
        x = _heun_step(denoise, x, sigma, following)
    return x


def churn(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Callable[[float], Tensor],
    s_churn: float = 40.0,
    s_min: float = 0.05,
    s_max: float = 50.0,
    s_noise: float = 1.003,
) -> Tensor:
    """Heun's method with noise added before each step (Karras 2022, algorithm 2).

    `s_churn` is how much over all steps, at levels from s_min to s_max, of s_noise times the
    standard deviation that keeps the level; the defaults are those of table 5.
    """
    gamma = min(s_churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    for sigma, following in pairwise(sigmas.tolist()):
        if s_min <= sigma <= s_max:
            raised = sigma * (1 + gamma)
            x = x + noise(s_noise * math.sqrt(raised**2 - sigma**2))
            sigma = raised
        x = _heun_step(denoise, x, sigma, following)
    return x


def _heun_step(denoise: Denoise, x: Tensor, sigma: float, following: float) -> Tensor:
    slope = (x - denoise(x, sigma)) / sigma
    stepped = x + (following - sigma) * slope
    if following == 0:
        return stepped
    second = (stepped - denoise(stepped, following)) / following
    return x + (following - sigma) / 2 * (slope + second)


def dpm_solver_pp(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """DPM-Solver++ 2M (Lu 2022, arXiv:2211.01095, algorithm 2)."""
    return _multistep(denoise, x, sigmas, None)


def dpm_solver_pp_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Callable[[float], Tensor]
) -> Tensor:
    """SDE-DPM-Solver++ 2M (Lu 2022, eq. 18): noise at every step, as much as the chain's."""
    return _multistep(denoise, x, sigmas, noise)


def _multistep(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Callable[[float], Tensor] | None
) -> Tensor:
    eta = 0 if noise is None else 1
    before, last_width = None, 0.0
    for sigma, following in pairwise(sigmas.tolist()):
        x0 = denoise(x, sigma)
        if following == 0:
            return x0
        width = math.log(sigma / following)  # half the step of log-SNR
        gain = -math.expm1(-(1 + eta) * width)
        x = following / sigma * math.exp(-eta * width) * x + gain * x0
        if before is not None:
            x = x + gain * width / (2 * last_width) * (x0 - before)
        if noise is not None:
            x = x + noise(following * math.sqrt(-math.expm1(-2 * width)))
        before, last_width = x0, width
    return x


def uni_pc(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """UniPC (Zhao 2023, arXiv:2302.04867, algorithms 5 to 8), second order, B(h) = exp(h) - 1.

    Each evaluation also corrects the step that led to it.
    """
    start, last = x, 1.0
    earlier: list[tuple[float, Tensor]] = []  # widths and predictions that x was made of
    for sigma, following in pairwise(sigmas.tolist()):
        x0 = denoise(x, sigma)
        if earlier and following:  # of the step before, which had no x_0 at its end
            (width, x1), *rest = earlier
            gain = -math.expm1(-width)  # h phi_1
            phi_2 = 1 - gain / width
            whole, half = phi_2 / gain, (width - 2 * phi_2) / (width * gain)
            x = sigma / last * start + gain * x1
            if rest:  # the weights solve R rho = b (their eq. 5)
                ratio = -rest[0][0] / width
                before = (whole - half) / (1 - ratio)
                x = x + gain * before / ratio * (rest[0][1] - x1)
                x = x + gain * (whole - before) * (x0 - x1)
            else:
                x = x + gain / 2 * (x0 - x1)
        if following == 0:
            return x0
        start, last = x, sigma
        width = math.log(sigma / following)
        gain = -math.expm1(-width)
        x = following / sigma * x + gain * x0
        if earlier:
            x = x + gain * width / (2 * earlier[0][0]) * (x0 - earlier[0][1])
        earlier = [(width, x0), *earlier[:1]]
    return x


SOLVERS: dict[str, Solver] = {
    "euler": euler,
    "heun": heun,
    "churn": churn,
    "dpm++": dpm_solver_pp,
    "dpm++sde": dpm_solver_pp_sde,
    "unipc": uni_pc,
}
EVALUATIONS: dict[Solver, Callable[[int], int]] = {
    heun: lambda steps: 2 * steps - 1,
    churn: lambda steps: 2 * steps - 1,
}
"""Evaluations of the network in so many steps, where they are not equally many."""

"""What a network is given besides the noisy image and its time, and guidance by it.

class_labels    `int64 [B]`
context         `[B, L, C]`, a sequence to attend to; with it context_mask, `bool [B, L]`
concat_cond      `[B, K, *space]`, concatenated to the input: a mask, a lower resolution
estimate        `[B, C, *space]`, the clean image as last predicted (self-conditioning)

Guidance is one formula, guide + scale (network - guide), for two weaker predictions: the same
network's without its conditioning (Ho 2022, arXiv:2207.12598, eq. 6, where scale is 1 + w), and
another network's, such as an earlier snapshot (Karras 2024, arXiv:2406.02507, eq. 5). All
prediction types are guided alike: they are affine functions of each other at a given x and t, and
the weights sum to one. Predicted variances stay those of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ddpm_unet import randomness
from ddpm_unet.diffusion.process import Diffusion, Network, mean_channels, repeat_time, time_of

ALWAYS = (-math.inf, math.inf)


def concat_cond(network: Network) -> Network:
    """A network of `(x, t, concat_cond=None, estimate=None, **cond)`.

    The channels that `network` is given are those of x, of the estimate and of concat_cond.
    """

    def concatenated(
        x: Tensor,
        t: Tensor,
        concat_cond: Tensor | None = None,
        estimate: Tensor | None = None,
        **cond: Any,
    ) -> Tensor:
        channels = [x, *(given for given in (estimate, concat_cond) if given is not None)]
        return network(torch.cat(channels, 1) if len(channels) > 1 else x, t, **cond)

    return concatenated


def drop_cond(
    cond: Mapping[str, Tensor], dropped: Tensor, null_class: int | None
) -> dict[str, Tensor]:
    """Condition dropout (Ho 2022): the class null_class, and zeros for context and concat_cond.

    Zeros make keys and values of zero, so attention to them adds nothing, whatever the mask. An
    estimate is no condition, and stays. `dropped` says of which images, `bool [B]` or one for all.
    """

    def null(name: str, value: Tensor) -> Tensor:
        if name in ("estimate", "context_mask"):
            return value
        nothing: Any = null_class if name == "class_labels" else 0
        return torch.where(dropped.reshape(-1, *[1] * (value.ndim - 1)), nothing, value)

    return {name: null(name, value) for name, value in cond.items()}


def draw_dropped(
    seed: int, positions: randomness.Positions, rate: float, device: torch.device | str = "cpu"
) -> Tensor:
    """Of which training images conditioning is dropped, `bool [B]`: by (seed, position)."""
    return randomness.on_device(randomness.uniform(seed, "withheld", positions) < rate, device)


def own_estimate(
    diffusion: Diffusion,
    network: Network,
    x_t: Tensor,
    t: Tensor,
    seed: int,
    positions: randomness.Positions,
    **cond: Tensor,
) -> Tensor:
    """Self-conditioning: the clean image as predicted without an estimate, or zeros.

    `float32 [B, C, *space]`; which of the two, half of the training images each, is a function of
    (seed, position) (bit diffusion, Chen 2022, arXiv:2208.04202, section 3.2). It is clipped to
    [-1, 1] where samples are (`clip_sample`), and no gradient flows through it.

    Args:
        diffusion: The forward process.
        network: `(x, t, estimate=..., **cond) -> prediction`.
        x_t: `[B, C, *space]`.
        t, seed, positions: As of `diffusion.draw`.
        cond: What else the network is given.
    """
    zeros = torch.zeros_like(x_t)
    chosen = randomness.integers(seed, "self-conditioning", positions, 2) > 0
    with torch.no_grad():
        # Of all images, so that a network split over processes runs equally often on each.
        prediction = diffusion.predict(network, x_t, t, estimate=zeros, **cond)
        image = diffusion.predict_x0(x_t, t, prediction)
    if diffusion.clip_sample:
        image = image.clamp(-1, 1)
    given = randomness.on_device(chosen, x_t.device)
    return image.where(given.reshape(-1, *[1] * (x_t.ndim - 1)), zeros)


def classifier_free_guidance(
    network: Network, scale: float, null_class: int | None, interval: tuple[float, float] = ALWAYS
) -> Network:
    """A network that is guided by itself without conditioning, in one pass of twice the batch.

    Args:
        network: `(x, t, **cond) -> prediction`.
        scale: 0 is unconditional, 1 the network itself, at one evaluation; above 1 it is guided.
        null_class: See `drop_cond`.
        interval: The timesteps, both included, within which it is guided (Kynkaanniemi 2024,
            arXiv:2404.07724); outside it is the network itself, at one evaluation.
    """

    def both(x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, ...]:
        first = torch.arange(2 * len(x), device=x.device) < len(x)
        twice = {name: torch.cat([value, value]) for name, value in cond.items()}
        twice = drop_cond(twice, first, null_class)
        return network(torch.cat([x, x]), repeat_time(t, 2), **twice).chunk(2)

    return _guided(network, both, scale, interval)


def autoguidance(
    network: Network, guide: Network, scale: float, interval: tuple[float, float] = ALWAYS
) -> Network:
    """A network that is guided by another one, given the same conditioning.

    Args:
        network: `(x, t, **cond) -> prediction`.
        guide: A weaker one, such as an earlier snapshot of it.
        scale, interval: As of `classifier_free_guidance`, where 0 is the guide.
    """

    def both(x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, ...]:
        return guide(x, t, **cond), network(x, t, **cond)

    return _guided(network, both, scale, interval)


def _guided(
    network: Network,
    both: Callable[..., tuple[Tensor, ...]],
    scale: float,
    interval: tuple[float, float],
) -> Network:
    low, high = interval

    def guided(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        if scale == 1 or not ((low, high) == ALWAYS or low <= time_of(t) <= high):
            return network(x, t, **cond)
        weaker, better = both(x, t, **cond)
        channels = x.shape[1]
        weaker = mean_channels(weaker.float(), channels)
        means = torch.lerp(weaker, mean_channels(better.float(), channels), scale)
        return torch.cat([means, better[:, channels:].float()], dim=1)

    return guided

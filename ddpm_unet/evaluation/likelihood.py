"""Likelihood of images under a denoiser, in bits per dimension, and where the bits are.

What is measured is the variational bound (Ho 2020, arXiv:2006.11239, section 3), an upper limit
of the bits: that of the chain of all timesteps, with the predicted image clipped if sampling clips
it, and a pixel as one of 256 levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm_unet import randomness
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.variational_bound import bound_terms, prior_bits
from ddpm_unet.evaluation.plots import pyplot

Batches = Iterable[tuple[randomness.Positions, Tensor, Callable[..., Tensor]]]
"""Numbers of images, the images `[B, C, ...]` in [-1, 1], and a denoiser `(x, t) -> prediction`
that is given what it is conditioned on."""


@dataclass(frozen=True)
class Part:
    """Timesteps of the chain, of which each image is asked one.

    Args:
        first: The first timestep.
        last: The last one.
        bits: Of all of them together, per dimension.
        noise_error: Mean squared error of the predicted noise.
        image_error: Mean squared error of the predicted image, in [-1, 1].
    """

    first: int
    last: int
    bits: float
    noise_error: float
    image_error: float


@dataclass(frozen=True)
class Likelihood:
    """The bound of some images, in bits per dimension.

    Args:
        bits: Of all together.
        standard_error: Of `bits`, from the images' spread.
        images: How many there were.
        last: L_0, what is left to say of the image after the last step.
        steps: The sum of L_{t-1}, what the steps before add.
        prior: L_T, what the noised image says.
        parts: The terms but L_T, from timestep 0 on.
    """

    bits: float
    standard_error: float
    images: int
    last: float
    steps: float
    prior: float
    parts: tuple[Part, ...]


def parts_of(timesteps: int, parts: int) -> list[range]:
    """Cut 0 .. T-1 into as many ranges, or fewer: short ones at the clean end, timestep 0 alone.

    Bits change with the logarithm of the timestep, and most are at the clean end.
    """
    if parts >= timesteps:
        return [range(t, t + 1) for t in range(timesteps)]
    edges = (round(edge) for edge in np.geomspace(1, timesteps, max(parts, 2)))
    return [range(a, b) for a, b in pairwise(sorted({0, *edges}))]


@torch.inference_mode()
def measure(
    batches: Batches,
    diffusion: GaussianDiffusion,
    parts: int,
    seed: int = 0,
    merge: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Likelihood:
    """The bound of images, from one timestep of each part of the chain for each image.

    Timesteps and noise are functions of (seed, number of the image, part); the expectation is
    that of all timesteps, whatever the number of parts.

    Args:
        batches: The images.
        diffusion: The denoiser's forward process, prediction type and kind of variance.
        parts: See `parts_of`; T or more asks every timestep.
        seed: Of timesteps and noise.
        merge: From a row for each of the images of this process, `float64 [N, ...]` on the CPU, to
            the rows of all processes.
    """
    ranges = parts_of(diffusion.num_timesteps, parts)
    rows = [row.double().cpu() for row in _rows(batches, diffusion, ranges, seed)]
    none = torch.zeros(0, len(ranges) + 1, 3, dtype=torch.float64)
    table = merge(torch.cat([none, *rows]))  # [images, parts, 3], the prior as another part
    terms, prior = table[:, :-1], table[:, -1, 0]
    lengths = torch.tensor([len(r) for r in ranges], dtype=torch.float64)
    bits = terms[..., 0] * lengths
    whole, means = bits.sum(1) + prior, terms.mean(0)
    spread = float(whole.std()) if len(whole) > 1 else math.nan
    return Likelihood(
        bits=float(whole.mean()),
        standard_error=spread / math.sqrt(len(whole)),
        images=len(whole),
        last=float(bits[:, 0].mean()),
        steps=float(bits[:, 1:].sum(1).mean()),
        prior=float(prior.mean()),
        parts=tuple(
            Part(r[0], r[-1], float(total), float(noise), float(image))
            for r, total, (_, noise, image) in zip(ranges, bits.mean(0), means, strict=True)
        ),
    )


def _rows(
    batches: Batches, diffusion: GaussianDiffusion, ranges: list[range], seed: int
) -> Iterator[Tensor]:
    """Of each batch `[B, parts + 1, 3]`: bits, error of noise and of image, at last the prior."""
    for positions, images, denoiser in batches:
        columns = []
        for r in ranges:
            purpose = f"likelihood/{r[0]}-{r[-1]}"
            chosen = r[0] + randomness.integers(seed, purpose, positions, len(r))
            timesteps = randomness.on_device(chosen, images.device)
            noise = randomness.normal(seed, purpose, positions, images.shape[1:], images.device)
            noisy = diffusion.add_noise(images, timesteps, noise)
            prediction = denoiser(noisy, timesteps)
            terms = bound_terms(
                diffusion, images, noisy, timesteps, prediction, diffusion.clip_sample
            )
            columns.append(torch.stack(terms, dim=1))
        prior = prior_bits(diffusion, images)
        columns.append(torch.stack([prior, *[torch.zeros_like(prior)] * 2], dim=1))
        yield torch.stack(columns, dim=1)


def plot_likelihood(found: Likelihood, path: Path) -> None:
    """Write the bits of each timestep, and the errors, against the timestep."""
    plt = pyplot()
    figure, (bits, errors) = plt.subplots(2, 1, figsize=(7, 7), sharex=True, layout="constrained")
    edges = [part.first + 1 for part in found.parts] + [found.parts[-1].last + 2]
    each = [part.bits / (part.last - part.first + 1) for part in found.parts]
    bits.stairs(each, edges, lw=1.5)
    bits.set_ylabel("bits per dimension, each timestep")
    bits.set_title(
        f"{found.bits:.3f} bits per dimension: L_0 {found.last:.3f}, steps {found.steps:.3f}, "
        f"L_T {found.prior:.1e}"
    )
    for name, label in (("noise_error", "noise"), ("image_error", "image, in [-1, 1]")):
        values = [getattr(part, name) for part in found.parts]
        errors.stairs(values, edges, lw=1.5, label=f"mean squared error of the {label}")
    errors.legend(loc="center left")
    errors.set_xlabel("timestep (paper's t, 1 is the clean end)")
    for axis in (bits, errors):
        axis.set(xscale="log", yscale="log")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)

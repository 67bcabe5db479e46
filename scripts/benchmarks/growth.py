"""Cost against size: what is plotted, and how it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.machine import circumstances
from benchmarks.networks import cifar, diffusers_twin, gflop, histology, milesial, random_batch
from benchmarks.processes import scaling
from benchmarks.rows import OURS, Results
from benchmarks.tiles import recomputed
from benchmarks.timing import Effort, Timer
from benchmarks.training import TimedJob, job_settings, optimizer_and_average, run_rounds
from ddpm_unet.config import PredictConfig, TrainConfig, UNetConfig
from ddpm_unet.diffusion.samplers import make_sampler
from ddpm_unet.diffusion.sampling import sample
from ddpm_unet.inference.predictor import tiling as default_tiling
from ddpm_unet.inference.tiles import predict_tiles


@dataclass
class Curve:
    """Samples at each size.

    Args:
        sizes: As the axis shows them.
        work: 10^9 operations at each size, to which theory says that time is proportional.
        samples: Seconds, a list for each size.
        rates: FLOP/s of matrix products around each sample.
        note: What explains the curve besides.
    """

    sizes: list[float]
    work: list[float]
    samples: list[list[float]]
    rates: list[list[float]]
    note: str = ""


def sampling_images(effort: Effort) -> Curve:
    """A step of the histology model with more and more images."""
    return _sampling(effort, [(images, 64) for images in (1, 2, 4, 8, 16, 32)], lambda n, s: n)


def sampling_resolution(effort: Effort) -> Curve:
    """A step of the histology model for one image of more and more pixels."""
    sides = (16, 32, 48, 64, 96, 128, 192, 256)
    return _sampling(effort, [(1, side) for side in sides], lambda n, s: s * s)


def _sampling(
    effort: Effort, jobs: list[tuple[int, int]], size: Callable[[int, int], float]
) -> Curve:
    unet, diffusion = histology()
    scheduler = make_sampler("ddpm", diffusion)
    steps = 4

    def draw(images: int, side: int) -> None:
        shape = (unet.config.in_channels, side, side)
        sample(unet, scheduler, shape, seed=0, indices=range(images), steps=steps)

    sides = {str(job): partial(draw, *job) for job in jobs}
    timer = Timer(effort).alternate(sides)
    work = [n * gflop(unet, *random_batch(unet.config, 1, side)) for n, side in jobs]
    samples = [[s / steps for s in timer.samples[name]] for name in sides]
    return Curve([size(*job) for job in jobs], work, samples, [timer.rates[name] for name in sides])


def training_batch(effort: Effort) -> Curve:
    """A training step of a DDPM-CIFAR network of half the width, with larger and larger batches."""
    batches = (1, 2, 4, 8, 16, 32)
    curve = _training(effort, [(64, batch) for batch in batches], lambda parameters, batch: batch)
    update = optimizer_and_average(replace(effort, seconds=2.0), of_width(64))
    curve.note = (
        "AdamW and the average alone take "
        f"{1e3 * median(update.samples[OURS]):.0f} ms of a step, whatever the batch."
    )
    return curve


def training_parameters(effort: Effort) -> Curve:
    """A training step, batch 4, of wider and wider DDPM-CIFAR networks."""
    widths = (32, 64, 96, 128)
    return _training(effort, [(width, 4) for width in widths], lambda parameters, batch: parameters)


def _training(
    effort: Effort, jobs: list[tuple[int, int]], size: Callable[[int, int], float]
) -> Curve:
    curve = Curve([], [], [], [])
    share = replace(effort, seconds=effort.seconds / len(jobs))
    for width, batch in jobs:
        model = of_width(width)
        with job_settings(model, TrainConfig(batch_size=batch)) as config:
            job = TimedJob.of(config, Timer(share), {})
            network = job.build_model()
            timer = run_rounds(job)
        parameters = sum(p.numel() for p in network.parameters())
        curve.sizes.append(size(parameters, batch))
        curve.work.append(
            batch * gflop(diffusers_twin(network), *random_batch(model, 1), backward=True)
        )
        curve.samples.append(timer.samples[OURS])
        curve.rates.append(timer.rates[OURS])
    return curve


def of_width(width: int) -> UNetConfig:
    """The DDPM-CIFAR network with `width` channels at the finest level instead of 128."""
    widths = tuple(width * c // 128 for c in cifar().block_out_channels)
    return replace(cifar(), block_out_channels=widths)


def tiles_area(effort: Effort) -> Curve:
    """Overlap-tile of larger and larger images, by our default tiles."""
    network = milesial(16)
    tiling = default_tiling(network, PredictConfig())
    sizes = (128, 256, 512, 1024, 2048) if effort.quick else (128, 256, 512, 1024, 2048, 4096)
    images = {str(size): torch.zeros(1, size, size).uniform_() for size in sizes}
    timer = Timer(effort).alternate(
        {name: partial(predict_tiles, network, image, tiling) for name, image in images.items()}
    )
    pixel = gflop(network, torch.zeros(1, 1, 512, 512)) / 512**2
    return Curve(
        [size**2 for size in sizes],
        [pixel * size**2 for size in sizes],
        [timer.samples[name] for name in images],
        [timer.rates[name] for name in images],
        "Pixels computed for each pixel of the image: "
        f"{', '.join(f'{recomputed(size, tiling):.2f}' for size in sizes)}.",
    )


CURVES: dict[str, Callable[[Effort], Any]] = {
    "sampling_images": sampling_images,
    "sampling_resolution": sampling_resolution,
    "training_batch": training_batch,
    "training_parameters": training_parameters,
    "tiles_area": tiles_area,
    "processes": scaling,
}


def measure_growth(names: list[str], effort: Effort, results: Results) -> None:
    """Measure curves; each is in the file when it is done."""
    at = circumstances(effort)
    effort = replace(effort, least=min(effort.least, 3))
    for name in names:
        print(f"{name} ...", flush=True)
        results.add_growth(name, vars(CURVES[name](effort)), at)

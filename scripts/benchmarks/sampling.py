"""Rows of drawing images: forward passes, the loop around them, and both together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.networks import (
    SMALL,
    cifar,
    difference,
    diffusers_twin,
    gflop,
    histology,
    lucidrains_unet,
    random_batch,
    random_unet,
)
from benchmarks.rows import DIFFUSERS, LUCIDRAINS, OURS, Measured, installed
from benchmarks.timing import Effort, Timer
from ddpm_unet import randomness
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import make_sampler
from ddpm_unet.diffusion.sampling import sample
from ddpm_unet.inference.denoiser import generate
from ddpm_unet.inference.pipeline import image_shape
from ddpm_unet.models import UNet

SEED = 0


def forward(effort: Effort, batch: int) -> Measured:
    """A pass of the DDPM-CIFAR network without gradients."""
    ours = random_unet(cifar())
    theirs = diffusers_twin(ours)
    x, t = random_batch(ours.config, batch)
    sides: dict[str, Callable[[], object]] = {
        OURS: lambda: ours(x, t),
        DIFFUSERS: lambda: theirs(x, t).sample,
    }
    work = gflop(ours, x, t)
    works = {OURS: work, DIFFUSERS: work}
    notes = []
    if installed(LUCIDRAINS):
        other = lucidrains_unet()
        sides[LUCIDRAINS] = lambda: other(x, t)
        works[LUCIDRAINS] = gflop(other, x, t)
        notes = [of_similar_work(works)]
    with torch.inference_mode():
        apart = difference(ours(x, t), theirs(x, t).sample)
        timer = Timer(effort).alternate(sides)
    return Measured.timed(
        timer, per=batch, gflop=works, differences={DIFFUSERS: apart}, notes=notes
    )


def diffusers_scheduler(diffusion: GaussianDiffusion) -> Any:
    """Diffusers' DDPMScheduler for a forward process."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(diffusion.scheduler_config())


def loop_overhead(effort: Effort) -> Measured:
    """The DDPM loop around a network that does nothing, one image of 3 x 32 x 32."""
    steps = 100 if effort.quick else 1000
    diffusion = GaussianDiffusion()
    sampler, scheduler = make_sampler("ddpm", diffusion), diffusers_scheduler(diffusion)
    shape = (3, 32, 32)
    nothing = torch.full((1, *shape), 0.1)

    def ours() -> Tensor:
        def denoiser(x: Tensor, t: Tensor) -> Tensor:
            return nothing

        return sample(denoiser, sampler, shape, seed=SEED, indices=[0], steps=steps)

    def theirs() -> Tensor:
        generator = randomness.generators(SEED, "sample", [0])[0]
        x = torch.randn((1, *shape), generator=generator)
        scheduler.set_timesteps(steps)
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(nothing, t, x, generator=generator).prev_sample
        return x

    apart = difference(ours(), theirs())
    timer = Timer(effort).alternate({OURS: ours, DIFFUSERS: theirs})
    return Measured.timed(
        timer,
        per=steps,
        differences={DIFFUSERS: apart},
        notes=[f"DDPMScheduler's own loop, as in DDPMPipeline; {steps} steps, the same noise"],
    )


def small_network(effort: Effort) -> Measured:
    """An image by a network of 165k parameters, from noise to pixels."""
    steps = 50 if effort.quick else 1000
    return end_to_end(effort, random_unet(SMALL), GaussianDiffusion(), images=1, steps=steps)


def shipped_model(effort: Effort) -> Measured:
    """16 images by the histology model."""
    unet, diffusion = histology()
    steps = 3 if effort.quick else 20
    measured = end_to_end(effort, unet, diffusion, images=16, steps=steps)
    measured.notes += [f"{steps} steps measured at a time, of which a job of 1000 has 1000/{steps}"]
    return measured


def end_to_end(
    effort: Effort, unet: UNet, diffusion: GaussianDiffusion, *, images: int, steps: int
) -> Measured:
    """`generate`, as `scripts/sample.py` calls it, beside DDPMPipeline with the same noise."""
    from diffusers import DDPMPipeline

    sampler = make_sampler("ddpm", diffusion)
    pipeline: Any = DDPMPipeline(diffusers_twin(unet), diffusers_scheduler(diffusion))
    pipeline.set_progress_bar_config(disable=True)
    accelerator, shape = Accelerator(), image_shape(unet.config)

    def ours() -> Tensor:
        batches = generate(
            unet,
            sampler,
            shape,
            images,
            seed=SEED,
            steps=steps,
            batch_size=images,
            device=accelerator.device,
            shard=(accelerator.process_index, accelerator.num_processes),
        )
        return torch.cat([batch for _, batch in batches])

    def theirs() -> Tensor:
        noise = randomness.generators(SEED, "sample", range(images))
        drawn = pipeline(images, noise, num_inference_steps=steps, output_type="np").images
        return torch.from_numpy(drawn).movedim(-1, 1)

    apart = difference((ours() / 2 + 0.5).clamp(0, 1), theirs())
    timer = Timer(effort).alternate({OURS: ours, DIFFUSERS: theirs})
    work = gflop(unet, *random_batch(unet.config, 1)) * images
    return Measured.timed(
        timer,
        per=steps,
        gflop={OURS: work, DIFFUSERS: work},
        differences={DIFFUSERS: apart},
        notes=[
            f"{images} image(s); the images drawn are compared after {steps} steps; the "
            "process keeps its freed memory, as ours arranges, which serves both"
        ],
    )


def of_similar_work(works: dict[str, float]) -> str:
    """What must be said where a peer's network is not ours."""
    return (
        f"{LUCIDRAINS} has another network, chosen for nearly equal work "
        f"({works[LUCIDRAINS]:.2f} GFLOP an image to {works[OURS]:.2f}); its ratio is of time per "
        "FLOP, and there is no output to compare"
    )

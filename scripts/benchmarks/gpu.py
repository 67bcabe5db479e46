"""Rows of a GPU: bfloat16, channels_last and compiled, beside diffusers eager and compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from benchmarks.networks import (
    FACES,
    STABLE_DIFFUSION,
    cifar,
    difference,
    diffusers_twin,
    gflop,
    pictures,
    random_unet,
)
from benchmarks.rows import DIFFUSERS, OURS, Goal, Measured, Row
from benchmarks.timing import Effort, Timer
from benchmarks.training import TimedJob, diffusers_step, job_settings, run_rounds
from ddpm_unet.config import TrainConfig, UNetConfig
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import make_sampler
from ddpm_unet.diffusion.sampling import sample

COMPILED = f"{DIFFUSERS} compiled"
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""FLOP/s of dense bfloat16 products, by a part of the GPU's name (NVIDIA's data sheets, SXM)."""


@dataclass(frozen=True)
class Device:
    """Where, and how; the tests take a CPU and compile nothing."""

    name: str = "cuda"
    compiled: bool = True

    def compile(self, network: Any, **options: Any) -> Any:
        """The network itself, compiled where networks are to be."""
        if self.compiled:
            network.compile(**options)
        return network

    def timer(self, effort: Effort) -> Timer:
        """Its rate is the GPU's peak, 0 where `PEAKS` does not know it."""
        name = torch.cuda.get_device_name() if self.name == "cuda" else ""
        known = [peak for part, peak in PEAKS.items() if part in name]
        return Timer(effort, rate=lambda: known[0] if known else 0.0)


def catalogue() -> dict[str, Row]:
    """The rows, and the ratios wanted."""
    gpu = Device()
    train = {DIFFUSERS: None, COMPILED: Goal(1.3, 1.3)}
    return {
        "gpu_train_32": Row(
            "training, DDPM-CIFAR, batch 512, bf16 (wanted: 40 % of the peak)",
            "images/s",
            train,
            partial(training, device=gpu, config=cifar(), batch=512, micro_batch=512),
            device="cuda",
        ),
        "gpu_train_64": Row(
            "training, 114M parameters, 64 x 64, batch 512, bf16 (wanted: 40 % of the peak)",
            "images/s",
            train,
            partial(training, device=gpu, config=FACES, batch=512, micro_batch=128),
            device="cuda",
        ),
        "gpu_sample_512": Row(
            "sampling, DDPM-CIFAR, batch 512, a picture and step",
            "us",
            {DIFFUSERS: None, COMPILED: Goal(1.5, 1.5)},
            partial(sampling, device=gpu, config=cifar(), batch=512, steps=20),
            device="cuda",
        ),
        "gpu_sample_1": Row(
            "sampling, DDPM-CIFAR, batch 1, a step",
            "ms",
            {DIFFUSERS: Goal(5.0, 5.0), COMPILED: None},
            partial(sampling, device=gpu, config=cifar(), batch=1, steps=100),
            device="cuda",
        ),
        "gpu_stable_diffusion": Row(
            "forward, Stable Diffusion 1.x, latents of 64 x 64, batch 8",
            "ms",
            {DIFFUSERS: None, COMPILED: None},
            partial(forward, device=gpu, config=STABLE_DIFFUSION, batch=8),
            device="cuda",
        ),
    }


def training(
    effort: Effort, device: Device, config: UNetConfig, batch: int, micro_batch: int
) -> Measured:
    """A step of `train`, beside diffusers' step on a batch that is on the device."""
    settings = TrainConfig(
        batch_size=batch,
        micro_batch=micro_batch,
        mixed_precision="bf16",
        compile=device.compiled,
        channels_last=True,
    )
    with bf16_accelerator(), job_settings(config, settings) as job_config:
        job = TimedJob.of(job_config, device.timer(effort), {})
        ours = job.build_model()
        x, t = pictures(config, batch)
        twin = diffusers_twin(ours)
        work = gflop(twin, x, t, backward=True)
        for name, network in both(twin, device).items():
            job.peers[name] = diffusers_step(
                network.train(), x.to(device.name), job_config.train, torch.bfloat16
            )
        timer = run_rounds(job)
    notes = [f"passes of {micro_batch} pictures; theirs under the same autocast, default AdamW"]
    return Measured.timed(timer, per=batch, gflop=dict.fromkeys(timer.samples, work), notes=notes)


def sampling(
    effort: Effort, device: Device, config: UNetConfig, batch: int, steps: int
) -> Measured:
    """Steps of the DDPM loop, beside DDPMPipeline."""
    from diffusers import DDPMPipeline, DDPMScheduler

    unet = random_unet(config)
    work = gflop(unet, *pictures(config, 1))
    twins = both(diffusers_twin(unet).to(torch.bfloat16), device)
    denoiser = prepared(unet, device)
    sampler = make_sampler("ddpm", GaussianDiffusion())
    scheduler = DDPMScheduler.from_config(GaussianDiffusion().scheduler_config())
    shape = tuple(pictures(config, 1)[0].shape[1:])
    sides: dict[str, Callable[[], object]] = {
        OURS: lambda: sample(
            denoiser,
            sampler,
            shape,
            seed=0,
            indices=range(batch),
            steps=steps,
            device=device.name,
        )
    }
    for name, network in twins.items():
        pipeline: Any = DDPMPipeline(network, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        sides[name] = partial(pipeline, batch, num_inference_steps=steps, output_type="pt")
    timer = device.timer(effort).alternate(sides)
    return Measured.timed(
        timer,
        per=batch * steps,
        gflop=dict.fromkeys(sides, work),
        notes=[f"{steps} steps measured at a time; theirs: all weights in bfloat16"],
    )


def forward(effort: Effort, device: Device, config: UNetConfig, batch: int) -> Measured:
    """A pass without gradients, with a context of 77 vectors."""
    unet = random_unet(config)
    x, t = pictures(config, batch)
    widths = config.cross_attention_dim
    context = torch.randn(batch, 77, widths if isinstance(widths, int) else 1)
    work = gflop(unet, x, t, context)
    twins = both(diffusers_twin(unet).to(torch.bfloat16), device)
    denoiser = prepared(unet, device)
    x, t, context = x.to(device.name), t.to(device.name), context.to(device.name)
    half, half_context = x.bfloat16(), context.bfloat16()
    sides: dict[str, Callable[[], Tensor]] = {OURS: lambda: denoiser(x, t, context)}
    for name, network in twins.items():
        sides[name] = partial(their_prediction, network, half, t, half_context)
    with torch.inference_mode():
        outputs = {name: run().float() for name, run in sides.items()}
        timer = device.timer(effort).alternate(sides)
    return Measured.timed(
        timer,
        per=batch,
        gflop=dict.fromkeys(sides, work),
        differences={name: difference(outputs[OURS], outputs[name]) for name in twins},
        notes=["theirs: all weights in bfloat16; ours: autocast"],
    )


def their_prediction(network: Any, *inputs: Tensor) -> Tensor:
    """What diffusers' network gives."""
    return network(*inputs).sample


def prepared(unet: Any, device: Device) -> Callable[..., Tensor]:
    """Our network as a denoiser that is fast on this device."""
    unet.to(device.name, memory_format=torch.channels_last)
    device.compile(unet, mode="reduce-overhead")

    def denoiser(*inputs: Tensor) -> Tensor:
        with torch.autocast(device.name, torch.bfloat16):
            return unet(*inputs)

    return denoiser


def both(network: Any, device: Device) -> dict[str, Any]:
    """Diffusers' network on the device as it is, and a compiled copy, as its manual advises."""
    network.to(device.name)
    compiled = copy.deepcopy(network).to(memory_format=torch.channels_last)
    return {DIFFUSERS: network, COMPILED: device.compile(compiled, fullgraph=True)}


@contextmanager
def bf16_accelerator() -> Iterator[None]:
    """Accelerate keeps one precision a process: forget it before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)

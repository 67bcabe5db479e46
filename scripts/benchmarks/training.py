"""Rows of training: a step as `train` does it, beside a step as the peers' own trainers do it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from benchmarks.networks import (
    cifar,
    difference,
    diffusers_twin,
    gflop,
    gradient_difference,
    lucidrains_unet,
    random_batch,
    randomised,
)
from benchmarks.rows import DIFFUSERS, LUCIDRAINS, OURS, Measured, installed
from benchmarks.sampling import of_similar_work
from benchmarks.timing import Effort, Timer
from ddpm_unet.config import DenoiseConfig, ImageDataConfig, TrainConfig, UNetConfig, UNetSettings
from ddpm_unet.cpu import FusedAdamWEMA
from ddpm_unet.models import UNet
from ddpm_unet.training.denoise import DenoiseJob
from ddpm_unet.training.from_config import build_denoise_job
from ddpm_unet.training.job import Batch
from ddpm_unet.training.loop import train
from ddpm_unet.training.run_folder import RunFolder
from ddpm_unet.training.state import EMA, build_optimizer

Step = Callable[[], object]


class EnoughError(Exception):
    """The rounds are over: what is left of the training is not wanted."""


class TimedJob(DenoiseJob):
    """The denoising job, on random weights, whose steps take turns with those of peers.

    The loop asks for a batch at the beginning of every step, and that is where it is timed: from
    one request to the next.
    """

    timer: Timer
    peers: dict[str, Step]
    config: DenoiseConfig

    @classmethod
    def of(cls, config: DenoiseConfig, timer: Timer, peers: dict[str, Step]) -> TimedJob:
        """The job of a configuration."""
        job = build_denoise_job(config, cls)
        job.config, job.timer, job.peers = config, timer, peers
        return job

    def build_model(self) -> UNet:
        """As always, but no output is zero."""
        return randomised(super().build_model())

    def stream(self, model: nn.Module, accelerator: Accelerator) -> Any:
        """Batches as always; the first pass of a step begins a round, after the peers' steps."""
        return TimedStream(self, super().stream(model, accelerator))


class TimedStream:
    """The batches of a job, timed from one step's first to the next."""

    def __init__(self, job: TimedJob, stream: Any) -> None:
        self.job, self.stream, self.sample = job, stream, contextlib.ExitStack()
        self.rounds, train = job.timer.rounds(), job.config.train
        self.passes = -(-train.batch_size // (train.micro_batch or train.batch_size))
        self.seen = 0

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """A batch."""
        if self.seen % self.passes == 0:
            self.sample.close()
            if next(self.rounds, EnoughError) is EnoughError:
                raise EnoughError
            for name, step in self.job.peers.items():
                with self.job.timer.sample(name):
                    step()
            self.sample.enter_context(self.job.timer.sample(OURS))
        self.seen += 1
        return self.stream.__getitems__(positions)


@contextlib.contextmanager
def job_settings(model: UNetConfig, settings: TrainConfig) -> Iterator[DenoiseConfig]:
    """Settings of a training on 64 random images, which exist within."""
    assert isinstance(model.sample_size, int)
    settings.steps, settings.validate_every, settings.sample_every = 10**6, 0, 0
    settings.checkpoint_every = settings.steps
    with TemporaryDirectory() as folder:
        place = Path(folder) / "images"
        place.mkdir()
        write_images(place, 64, model.sample_size)
        data = ImageDataConfig(source=str(place), size=model.sample_size)
        yield DenoiseConfig(
            run=str(Path(folder) / "run"),
            data=data,
            model=UNetSettings(**vars(model)),
            train=settings,
        )


def write_images(folder: Path, count: int, size: int) -> None:
    """Random RGB images as PNG."""
    random = np.random.default_rng(0)
    for number in range(count):
        values = random.integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(values).save(folder / f"{number:05d}.png")


def run_rounds(job: TimedJob) -> Timer:
    """Train until the rounds are over."""
    assert job.config.run is not None
    silence = io.StringIO()
    with (
        contextlib.suppress(EnoughError),
        contextlib.redirect_stdout(silence),
        contextlib.redirect_stderr(silence),
    ):
        train(job, RunFolder(Path(job.config.run)), job.config)
    return job.timer


def step(effort: Effort, batch: int) -> Measured:
    """A step of the DDPM-CIFAR network: forward, backward, clip, AdamW, average."""
    batch = min(batch, 2) if effort.quick else batch
    with job_settings(cifar(), TrainConfig(batch_size=batch)) as config:
        job = TimedJob.of(config, Timer(effort), {})
        ours = job.build_model()
        theirs = diffusers_twin(ours).train()
        apart = compare_gradients(job, ours, theirs)
        x, t = random_batch(ours.config, batch)
        work = gflop(theirs, x, t, backward=True)
        works = {OURS: work, DIFFUSERS: work}
        notes = [
            f"batch {batch}; ours is the loop of scripts/train_ddpm.py with its data and its log, "
            "theirs the step of diffusers' train_unconditional.py on a batch that is in memory; "
            "the gradients are compared"
        ]
        job.peers[DIFFUSERS] = diffusers_step(theirs, x, config.train)
        if installed(LUCIDRAINS):
            other = lucidrains_unet().train()
            works[LUCIDRAINS] = gflop(other, x, t, backward=True)
            notes += [of_similar_work(works)]
            job.peers[LUCIDRAINS] = lucidrains_step(other, x)
        timer = run_rounds(job)
    differences = {DIFFUSERS: apart}
    return Measured.timed(timer, per=batch, gflop=works, differences=differences, notes=notes)


def compare_gradients(job: DenoiseJob, ours: UNet, theirs: Any) -> float:
    """Both networks' gradients of the loss of the same noisy images; they are cleared after."""
    images = random_batch(ours.config, 2)[0]
    t, noise = job.diffusion.draw(0, range(2), images.shape[1:])
    job.diffusion.losses(ours, images, t, noise).mean().backward()
    noisy = job.diffusion.add_noise(images, t, noise)
    F.mse_loss(theirs(noisy, t).sample, noise).backward()
    apart = gradient_difference(ours, theirs)
    ours.zero_grad(set_to_none=True)
    theirs.zero_grad(set_to_none=True)
    return apart


def diffusers_step(
    network: Any,
    images: Tensor,
    config: TrainConfig,
    precision: torch.dtype | None = None,
) -> Step:
    """The step of diffusers' `train_unconditional.py`, in micro-batches where the settings say so.

    Args:
        network: diffusers', perhaps compiled, in training mode.
        images: A batch, `[B, C, H, W]`, on the network's device.
        config: Learning rate, clipping and averaging.
        precision: Of autocast; None for float32.
    """
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    weights = list(network.parameters())
    optimizer = torch.optim.AdamW(
        weights, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
    )
    average = EMAModel(
        weights, decay=config.ema_decay, use_ema_warmup=True, inv_gamma=1.0, power=0.75
    )
    rate = get_scheduler(
        "cosine",
        optimizer,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=config.steps,
    )
    scheduler: Any = DDPMScheduler(1000)
    device = images.device
    parts = images.split(config.micro_batch or len(images))

    def step() -> None:
        for part in parts:
            noise = torch.randn_like(part)
            t = torch.randint(1000, (len(part),), device=device)
            noisy = scheduler.add_noise(part, noise, t)
            with torch.autocast(device.type, precision, enabled=precision is not None):
                prediction = network(noisy, t).sample
            (F.mse_loss(prediction.float(), noise) / len(parts)).backward()
        nn.utils.clip_grad_norm_(weights, config.clip_norm)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        average.step(weights)

    return step


def lucidrains_step(network: Any, images: Tensor) -> Step:
    """The step of denoising-diffusion-pytorch's Trainer, averaging after each."""
    import ema_pytorch
    from denoising_diffusion_pytorch import GaussianDiffusion

    diffusion = GaussianDiffusion(network, image_size=images.shape[-1])
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    average = ema_pytorch.EMA(diffusion, beta=0.995, update_every=1, update_after_step=0)
    images = images.clamp(-1, 1) / 2 + 0.5

    def step() -> None:
        diffusion(images).backward()
        nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()

    return step


def optimizer_and_average(effort: Effort, model: UNetConfig | None = None) -> Measured:
    """What follows the gradient: AdamW and the average of the weights, by default 35.7M."""
    from diffusers.training_utils import EMAModel

    config = TrainConfig(weight_decay=0.01)
    network = randomised(UNet(model or cifar()))
    ours = list(network.parameters())
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    for a, b in zip(ours, theirs, strict=True):
        a.grad = torch.randn_like(a)
        b.grad = a.grad
    optimizer, average = build_optimizer([{"params": ours}], config), EMA(ours, config.ema_decay)
    update = FusedAdamWEMA(optimizer, average)
    default = torch.optim.AdamW(
        theirs, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
    )
    shadow = EMAModel(theirs, decay=config.ema_decay)
    shadow.optimization_step = late = 10**6  # where both averages have the same decay

    def our_step() -> None:
        update(late, optimizer.step)

    def their_step() -> None:
        default.step()
        shadow.step(theirs)

    for _ in range(2):  # torch takes the first step
        our_step()
        their_step()
    pairs = [
        *zip(ours, theirs, strict=True),
        *zip(average.averages, shadow.shadow_params, strict=True),
    ]
    apart = max(difference(a.detach(), b.detach()) for a, b in pairs)
    timer = Timer(effort).alternate({OURS: our_step, DIFFUSERS: their_step})
    notes = ["theirs: torch's AdamW by its defaults and diffusers' EMAModel, as in their script"]
    return Measured.timed(timer, differences={DIFFUSERS: apart}, notes=notes)

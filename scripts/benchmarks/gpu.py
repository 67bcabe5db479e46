"""Rows of a GPU: each side in a process of its own, so that it has its own memory and its own end.

    python scripts/benchmarks/gpu.py --list
    python scripts/benchmarks/gpu.py --task train_32 --side ours --seconds 4

prints one line of JSON: seconds a step, the first step's with its compilation, the peak of the
GPU's memory. `--take FILE` puts such lines into docs/benchmarks.json. Ours is what the library does
by itself on a GPU, in bfloat16; diffusers' side does the same work by diffusers' own scripts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fcntl import LOCK_EX, LOCK_SH, LOCK_UN, flock
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, TextIO
from unittest.mock import patch

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # of the package `benchmarks`
    sys.path.append(str(Path(__file__).parents[2]))

import torch
from torch import Tensor

from benchmarks.networks import (
    FACES,
    STABLE_DIFFUSION,
    cifar,
    diffusers_twin,
    gflop,
    random_batch,
    random_unet,
)
from benchmarks.rows import DIFFUSERS, OURS, Goal, Measured, Row
from ddpm_unet.config import UNetConfig

COMPILED, EAGER = f"{DIFFUSERS} compiled", f"{OURS} eager"
SIDES = (OURS, EAGER, COMPILED, DIFFUSERS)
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""FLOP/s of dense bfloat16 products, by a part of the GPU's name (NVIDIA's data sheets, SXM)."""
TINY = UNetConfig(
    sample_size=8,
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=4,
)
"""In place of each network when the rows themselves are tried."""


class EnoughError(Exception):
    """The time is over: what is left of the work is not wanted."""


class Clock:
    """Seconds a step, of steps that are queued freely: it waits for the GPU once a block of them.

    Args:
        seconds: Of measuring, after the warm-up.
        device: "cuda" or "cpu".
        turns: File that processes share which warm up together and measure one after another.

    Attributes:
        samples: Seconds a step, of each block.
        first: Seconds from the beginning to the end of the first step: set-up and compilation.
    """

    WARM, BLOCK, LEAST = 6, 0.2, 3

    def __init__(self, seconds: float, device: str, turns: TextIO | None = None) -> None:
        self.seconds, self.device, self.turns = seconds, device, turns
        self.samples: list[float] = []
        self.first = 0.0
        self._steps = self._in_block = 0
        self._start = self._begin = self._now()

    def tick(self, *_: Any) -> None:
        """A step is queued.

        Raises:
            EnoughError: All is measured.
        """
        self._steps += 1
        self._in_block += 1
        if self._steps == 1:
            self.first = self._now() - self._start
        if self._steps <= self.WARM:
            self._now()
            if self._steps == self.WARM and self.turns:
                flock(self.turns, LOCK_UN)  # else two that wait for each other's warm-up
                flock(self.turns, LOCK_EX)
            self._start, self._in_block = self._now(), 0
            self._begin = self._start
            if self._steps == self.WARM and not self.seconds:
                raise EnoughError
        elif time.perf_counter() - self._start > min(self.BLOCK, self.seconds / self.LEAST):
            now = self._now()
            self.samples.append((now - self._start) / self._in_block)
            self._start, self._in_block = now, 0
            if now - self._begin > self.seconds and len(self.samples) >= self.LEAST:
                raise EnoughError

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


@dataclass(frozen=True)
class Task:
    """What is measured.

    Args:
        row: How the page shows it.
        run: `(side, clock)`: steps until the clock ends them; gives images a step and GFLOP an
            image before the first.
        sides: Those that do it.
    """

    row: Row
    run: Callable[..., Iterator[tuple[float, float]]]
    sides: Sequence[str] = SIDES


def training(
    side: str, clock: Clock, config: UNetConfig, batch: int, micro_batch: int
) -> Iterator[tuple[float, float]]:
    """A step of `train-ddpm` with its data, beside diffusers' on a batch that is on the device."""
    from benchmarks.training import diffusers_step, write_images
    from ddpm_unet import cli
    from ddpm_unet.config import TrainConfig
    from ddpm_unet.training import loop

    x, t = random_batch(config, micro_batch)
    twin = diffusers_twin(random_unet(config))
    yield batch, gflop(twin, x[:1], t[:1], backward=True)
    settings: dict[str, Any] = {
        "batch_size": batch, "micro_batch": micro_batch, "mixed_precision": "bf16",
        "channels_last": True, "steps": 10**6, "checkpoint_every": 10**6,
        "validate_every": 0, "sample_every": 0,
    }  # fmt: skip
    if side.startswith(DIFFUSERS):
        network = on_device(twin.train(), side, clock.device)
        x = x.repeat(-(-batch // len(x)), 1, 1, 1)[:batch].to(clock.device)
        step = diffusers_step(network, x, TrainConfig(**settings), torch.bfloat16)
        while True:
            step()
            clock.tick()
    settings["compile"] = side == OURS and clock.device == "cuda"
    del twin
    optimize = loop.Training._optimize

    def timed(self: Any, *args: Any) -> Any:
        done = optimize(self, *args)
        clock.tick()
        return done

    with TemporaryDirectory() as folder, patch.object(loop.Training, "_optimize", timed):
        place = Path(folder)
        (place / "images").mkdir()
        assert isinstance(config.sample_size, int)
        write_images(place / "images", 64, config.sample_size)
        data = {"source": str(place / "images"), "size": config.sample_size}
        said = {"data": data, "model": asdict(config), "train": settings}
        (place / "settings.json").write_text(json.dumps(said))  # which is YAML
        os.dup2(2, 1)  # what the training says is no result
        cli.run("train-ddpm", ["--config", f"{place}/settings.json", "--run", f"{place}/run"])


def sampling(
    side: str, clock: Clock, config: UNetConfig, batch: int
) -> Iterator[tuple[float, float]]:
    """Steps of the DDPM loop, beside DDPMPipeline."""
    from ddpm_unet.diffusion.process import GaussianDiffusion
    from ddpm_unet.diffusion.samplers import make_sampler
    from ddpm_unet.diffusion.sampling import sample

    sampler = make_sampler("ddpm", GaussianDiffusion())
    unet = random_unet(config)
    x, t = random_batch(config, 1)
    yield batch, gflop(unet, x, t)
    if side.startswith(DIFFUSERS):
        from diffusers import DDPMPipeline, DDPMScheduler

        network = on_device(diffusers_twin(unet).to(torch.bfloat16), side, clock.device)
        scheduler = DDPMScheduler.from_config(GaussianDiffusion().scheduler_config())
        pipeline: Any = DDPMPipeline(network, scheduler)

        def ticking(timesteps: Iterable[Any]) -> Iterator[Any]:
            for number, step in enumerate(timesteps):
                if number:
                    clock.tick()
                yield step

        pipeline.progress_bar = ticking
        while True:
            pipeline(batch, num_inference_steps=1000, output_type="pt")
    compiled = side == OURS and clock.device == "cuda"
    denoiser = ours(unet, EAGER, clock.device)
    while True:
        sample(
            denoiser, sampler, tuple(x.shape[1:]), seed=0, indices=range(batch), steps=1000,
            device=clock.device, callback=clock.tick,
            graph=partial(torch.compile, mode="reduce-overhead") if compiled else None,
        )  # fmt: skip


def forward(
    side: str, clock: Clock, config: UNetConfig, batch: int
) -> Iterator[tuple[float, float]]:
    """A pass without gradients; with a context of 77 vectors where the network attends to one."""
    unet = random_unet(config)
    x, t = random_batch(config, batch)
    width = config.cross_attention_dim
    inputs = [x, t, *([torch.randn(batch, 77, width)] if isinstance(width, int) else [])]
    yield batch, gflop(unet, *(value[:1] for value in inputs))
    inputs = [value.to(clock.device) for value in inputs]
    if side.startswith(DIFFUSERS):
        network = on_device(diffusers_twin(unet).to(torch.bfloat16), side, clock.device)
        inputs = [v.bfloat16() if v.is_floating_point() else v for v in inputs]
    else:
        network = ours(unet, side, clock.device)
    with torch.inference_mode():
        while True:
            network(*inputs)
            clock.tick()


def reverse_loop(side: str, clock: Clock, batch: int) -> Iterator[tuple[float, float]]:
    """The DDPM loop around a network that takes no time: what the host must do in a step."""
    from ddpm_unet.diffusion.process import GaussianDiffusion
    from ddpm_unet.diffusion.samplers import make_sampler
    from ddpm_unet.diffusion.sampling import sample

    yield 1, 0.0
    sampler = make_sampler("ddpm", GaussianDiffusion())

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        return x

    while True:
        sample(
            denoiser, sampler, (3, 32, 32), seed=0, indices=range(batch), steps=1000,
            device=clock.device, callback=clock.tick,
        )  # fmt: skip


def ours(unet: Any, side: str, device: str) -> Callable[..., Tensor]:
    """Our network as a denoiser, compiled unless it is to be eager (and never on a CPU)."""
    unet.to(device, memory_format=torch.channels_last)
    if side == OURS and device == "cuda":
        unet.compile(mode="reduce-overhead")

    def denoiser(*inputs: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return unet(*inputs)

    return denoiser


def on_device(network: Any, side: str, device: str) -> Any:
    """Diffusers' network on the device, compiled as its manual advises where it is to be."""
    network.to(device)
    if side == COMPILED:
        network.to(memory_format=torch.channels_last)
        if device == "cuda":
            network.compile(fullgraph=True)
    return network


def catalogue(tiny: bool = False) -> dict[str, Task]:
    """The tasks, the most wanted first, and the ratios wanted."""
    small = replace(TINY, cross_attention_dim=8, down_block_types=("CrossAttnDownBlock2D",) * 2,
                    up_block_types=("CrossAttnUpBlock2D",) * 2,
                    mid_block_type="UNetMidBlock2DCrossAttn")  # fmt: skip
    cifar10, faces, latents = (TINY, TINY, small) if tiny else (cifar(), FACES, STABLE_DIFFUSION)
    most, micro = (4, 2) if tiny else (512, 128)

    def row(title: str, unit: Any, goals: dict[str, Goal | None]) -> Row:
        return Row(title, unit, goals, partial(in_processes, title), device="cuda")

    train: dict[str, Goal | None] = {COMPILED: Goal(1.3, 1.3), DIFFUSERS: None, EAGER: None}
    draw: dict[str, Goal | None] = {COMPILED: Goal(1.5, 1.5), DIFFUSERS: None, EAGER: None}
    single: dict[str, Goal | None] = {DIFFUSERS: Goal(5.0, 5.0), COMPILED: None, EAGER: None}
    plain: dict[str, Goal | None] = {COMPILED: None, DIFFUSERS: None, EAGER: None}
    return {
        "train_32": Task(
            row("training, DDPM-CIFAR, batch 512, bf16 (wanted: 40 % of the peak)", "images/s",
                train),
            partial(training, config=cifar10, batch=most, micro_batch=most),
        ),
        "sample_512": Task(
            row("sampling, DDPM-CIFAR, batch 512, an image and step", "us", draw),
            partial(sampling, config=cifar10, batch=most),
        ),
        "sample_1": Task(
            row("sampling, DDPM-CIFAR, batch 1, a step", "ms", single),
            partial(sampling, config=cifar10, batch=1),
        ),
        "reverse_loop": Task(
            row("DDPM loop without a network, batch 512, a step", "us", {}),
            partial(reverse_loop, batch=most), (OURS,),
        ),
        "train_64": Task(
            row("training, 114M parameters, 64 x 64, batch 512, bf16 (wanted: 40 % of the peak)",
                "images/s", train),
            partial(training, config=faces, batch=most, micro_batch=micro),
        ),
        "stable_diffusion": Task(
            row("forward, Stable Diffusion 1.x, latents of 64 x 64, batch 8", "ms", plain),
            partial(forward, config=latents, batch=8),
        ),
    }  # fmt: skip


def rows() -> dict[str, Row]:
    """The rows of the page."""
    return {f"gpu_{name}": task.row for name, task in catalogue().items()}


def measure(
    name: str, side: str, seconds: float, device: str, tiny: bool, turns: TextIO | None = None
) -> dict[str, Any]:
    """One side of a task, in this process."""
    torch.manual_seed(0)
    clock = Clock(seconds, device, turns)
    steps = catalogue(tiny)[name].run(side, clock)
    per, work = next(steps)
    if turns:
        flock(turns, LOCK_SH)
    clock.__init__(seconds, device, turns)  # type: ignore[misc]  # what came before was counting
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(EnoughError):
        next(steps)
    at = torch.cuda.get_device_name() if device == "cuda" else "a CPU"
    peaks = [peak for part, peak in PEAKS.items() if part in at]
    seconds_a_step = median(clock.samples) if clock.samples else None
    share = work * 1e9 * per / seconds_a_step / peaks[0] if peaks and seconds_a_step else None
    return {
        "task": name,
        "side": side,
        "seconds_a_step": seconds_a_step,
        "images_a_step": per,
        "gflop_an_image": work,
        "share_of_peak": share,
        "peak": peaks[0] if peaks else None,
        "first_step_s": clock.first,
        "peak_memory_mb": torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else None,
        "samples": clock.samples,
        "gpu": at,
        "torch": torch.__version__,
    }


def in_processes(title: str, effort: Any) -> Measured:
    """All sides of a task, each in a process of its own; one that fails is left out."""
    name, task = next((n, t) for n, t in catalogue().items() if t.row.title == title)
    seconds = "1" if effort.quick else "10"
    lines = []
    for side in task.sides:
        command = [sys.executable, __file__, "--task", name, "--side", side, "--seconds", seconds]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=side == OURS)
        lines += [json.loads(done.stdout.splitlines()[-1])] if done.returncode == 0 else []
    return measured(lines)


def measured(lines: Sequence[dict[str, Any]]) -> Measured:
    """A row of the page from the lines of its sides."""
    count = min(len(line["samples"]) for line in lines)
    samples = {line["side"]: line["samples"][:count] for line in lines}
    work = {line["side"]: line["gflop_an_image"] for line in lines}
    peak = lines[0]["peak"]
    memory = ", ".join(f"{x['side']} {x['peak_memory_mb']:.0f} MB" for x in lines)
    first = ", ".join(f"{x['side']} {x['first_step_s']:.0f} s" for x in lines)
    return Measured(
        samples,
        dict.fromkeys(samples, [peak] * count) if peak else {},
        per=lines[0]["images_a_step"],
        gflop=work if any(work.values()) else {},
        notes=[f"peak memory: {memory}", f"until the first step is done: {first}"],
    )


def take(path: Path) -> None:
    """Put the lines of a file into docs/benchmarks.json."""
    from benchmarks.rows import Results

    results = Results(Path(__file__).parents[2] / "docs" / "benchmarks.json")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    by_task: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if "task" in line and line["seconds_a_step"]:
            by_task.setdefault(line["task"], []).append(line)
    for name, sides in by_task.items():
        if any(side["side"] == OURS for side in sides):
            results.add(f"gpu_{name}", measured(sides), sides[0]["circumstances"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--list", action="store_true", help="print each task and side, the most wanted first")
    add("--task", help="what to measure")
    add("--side", choices=SIDES, default=OURS)
    add("--seconds", type=float, default=4.0, help="of measuring; 0 only compiles")
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--tiny", action="store_true", help="small networks, to try the rows themselves")
    add(
        "--turns",
        type=argparse.FileType("w"),
        metavar="FILE",
        help="shared by processes that warm up together and measure one after another",
    )
    add("--take", type=Path, metavar="FILE", help="put a file of lines into docs/benchmarks.json")
    args = parser.parse_args()
    if args.take:
        take(args.take)
    elif args.list:
        for name, task in catalogue().items():
            print("\n".join(f"{name}\t{side}" for side in task.sides))
    else:
        from benchmarks.machine import circumstances
        from benchmarks.timing import QUICK

        stdout = os.dup(1)
        line = measure(args.task, args.side, args.seconds, args.device, args.tiny, args.turns)
        line["circumstances"] = circumstances(QUICK) | {"quick": args.seconds < 4}
        os.write(stdout, (json.dumps(line) + "\n").encode())


if __name__ == "__main__":
    main()

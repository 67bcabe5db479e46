"""Rows of the allocator: a training step and a forward with and without jemalloc below the process.

python -m benchmarks.allocator step
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from ctypes.util import find_library
from functools import partial
from pathlib import Path

import torch

from benchmarks.rows import OURS, Measured
from benchmarks.timing import Effort
from ddpm_unet import Denoiser
from ddpm_unet.cpu import accelerate_cpu
from ddpm_unet.errors import UserError

JEMALLOC = "with jemalloc"
MODEL = Path(__file__).parents[2] / "samples" / "histology64" / "model"


def cost(effort: Effort, kind: str) -> Measured:
    """Processor seconds of the shipped network, each side in processes of its own, in turns."""
    library = find_library("jemalloc")
    if library is None:
        raise UserError("jemalloc is not installed; apt install libjemalloc2")
    samples: dict[str, list[float]] = {OURS: [], JEMALLOC: []}
    command = [sys.executable, "-m", "benchmarks.allocator", kind, "2" if effort.quick else "4"]
    for _ in range(1 if effort.quick else 3):
        for side, preload in ((OURS, {}), (JEMALLOC, {"LD_PRELOAD": library})):
            done = subprocess.run(
                command, cwd=Path(__file__).parents[1], env={**os.environ, **preload},
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            samples[side] += json.loads(done.stdout.splitlines()[-1])
    return Measured(
        samples,
        notes=[
            "the shipped histology network, compiled functions in place, 8 images of 64 x 64; "
            "seconds of the processor, the system's for fresh pages among them, so that other "
            "work on the machine counts less; ours has the system's allocator"
        ],
    )


def main(kind: str, count: int) -> None:
    """The seconds of each turn after two, as the last line of the output."""
    denoiser = Denoiser.from_pretrained(MODEL)
    unet, images = accelerate_cpu(denoiser.unet), torch.rand(8, 3, 64, 64) * 2 - 1
    if kind == "step":
        unet.train()
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-6)

        def turn() -> None:
            denoiser.diffusion.loss(unet, images).backward()
            optimizer.step()
            optimizer.zero_grad()
    else:
        turn = torch.inference_mode()(partial(unet, images, torch.zeros(8, dtype=torch.long)))
    seconds = []
    for _ in range(count + 2):
        start = time.process_time()
        turn()
        seconds.append(time.process_time() - start)
    print(json.dumps(seconds[2:]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""Training and sampling over one and two processes.

torchrun --nproc_per_node 2 -m benchmarks.processes
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.rows import OURS
from benchmarks.timing import Effort

BATCH = 8
CASES = {
    "1 process, 1 thread": (1, 1),
    "1 process, 2 threads": (1, 2),
    "2 processes, 1 thread each": (2, 1),
}


@dataclass
class Scaling:
    """Images per second of each case, one number a round.

    Args:
        training: Of the histology network, batch 8 in all.
        sampling: Steps of 8 images in all, images times steps a second.
    """

    training: dict[str, list[float]]
    sampling: dict[str, list[float]]


def scaling(effort: Effort) -> Scaling:
    """All cases in turns, in processes of their own."""
    found = Scaling({case: [] for case in CASES}, {case: [] for case in CASES})
    for _ in range(1 if effort.quick else 3):
        for case, (processes, threads) in CASES.items():
            rates = launch(processes, threads)
            found.training[case].append(rates["training"])
            found.sampling[case].append(rates["sampling"])
    return found


def launch(processes: int, threads: int) -> dict[str, float]:
    """Run this module over so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes), "-m", "benchmarks.processes"]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure in this process and its peers; the main one prints the rates as its last line."""
    import torch
    from accelerate import Accelerator

    from benchmarks.networks import histology
    from benchmarks.timing import Timer
    from benchmarks.training import TimedJob, TrainConfig, job_settings, run_rounds
    from ddpm_unet.diffusion.samplers import make_sampler
    from ddpm_unet.inference.denoiser import generate
    from ddpm_unet.inference.pipeline import image_shape

    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    if accelerator.num_processes != int(os.environ["WORLD_SIZE"]):
        raise RuntimeError(f"{os.environ['WORLD_SIZE']} processes, which do not know each other")
    unet, diffusion = histology()
    rounds = Effort(warm_up=1, least=5, most=5)  # as many in every process
    with job_settings(unet.config, TrainConfig(batch_size=BATCH)) as config:
        timer = run_rounds(TimedJob.of(config, Timer(rounds), {}))
    training = BATCH / median(timer.samples[OURS])

    scheduler, steps = make_sampler("ddpm", diffusion), 4

    def draw() -> float:
        accelerator.wait_for_everyone()
        start = time.perf_counter()
        batches = generate(
            unet,
            scheduler,
            image_shape(unet.config),
            BATCH,
            seed=0,
            steps=steps,
            batch_size=BATCH // accelerator.num_processes,
            device=accelerator.device,
            shard=(accelerator.process_index, accelerator.num_processes),
        )
        for _ in batches:
            pass
        accelerator.wait_for_everyone()
        return BATCH * steps / (time.perf_counter() - start)

    draw()
    sampling = median(draw() for _ in range(3))
    accelerator.print(json.dumps({"training": training, "sampling": sampling}))
    accelerator.end_training()


if __name__ == "__main__":
    main()

"""Rows of memory: the peak of a process that trains two steps, less what its imports take.

    python -m benchmarks.memory ours 16

The peak is that of the memory of the program itself (VmHWM): what `getrusage` says of a new
process begins at the peak of the one that started it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.rows import DIFFUSERS, OURS, Measured
from benchmarks.timing import Effort

CHECKPOINTED = f"{DIFFUSERS}, gradient checkpointing"


def peak(effort: Effort, batch: int, checkpointing: bool) -> Measured:
    """A training step, each side in processes of its own, in turns."""
    batch = 2 if effort.quick else batch
    sides = {OURS: [OURS, "checkpointing"] if checkpointing else [OURS], DIFFUSERS: [DIFFUSERS]}
    if checkpointing and not effort.quick:
        sides[CHECKPOINTED] = [DIFFUSERS, "checkpointing"]
    seen: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(1 if effort.quick else 2):
        for side, (library, *options) in sides.items():
            seen[side].append(child(library, str(batch), *options))
    rest = max(f["at_rest"] for found in seen.values() for f in found)
    return Measured(
        {side: [f["peak"] - f["at_rest"] for f in found] for side, found in seen.items()},
        notes=[
            f"batch {batch}, weights, optimiser, average and activations; the libraries, which "
            f"both sides import alike, take {rest:.0f} MB more"
        ],
    )


def child(*arguments: str) -> dict[str, float]:
    """Run this module as a program."""
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def resident(field: str) -> float:
    """MB of this process: "VmHWM" is the most it ever had, "VmRSS" what it has."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines[field].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(library: str, batch: int, checkpointing: bool) -> None:
    """Two steps of a training; the peak as the last line of the output."""
    from benchmarks.networks import cifar, diffusers_twin, random_batch, random_unet
    from benchmarks.timing import Timer
    from benchmarks.training import TimedJob, TrainConfig, diffusers_step, job_settings, run_rounds

    settings = TrainConfig(batch_size=batch, gradient_checkpointing=checkpointing)
    at_rest = resident("VmRSS")
    if library == OURS:
        with job_settings(cifar(), settings) as config:
            run_rounds(TimedJob.of(config, Timer(Effort(warm_up=0, least=2, most=2)), {}))
    else:
        network = diffusers_twin(random_unet(cifar())).train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        step = diffusers_step(network, random_batch(cifar(), batch)[0], settings)
        step()
        step()
    print(json.dumps({"peak": resident("VmHWM"), "at_rest": at_rest}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), "checkpointing" in sys.argv[3:])

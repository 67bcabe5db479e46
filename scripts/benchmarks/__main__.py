"""Measure this library beside its peers: `python scripts/benchmarks`.

Prints docs/benchmarks.md and writes it, with the raw figures in docs/benchmarks.json. Rows that
are not measured now keep what the file says of them.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_unet.cli import user_errors
from ddpm_unet.errors import UserError

if TYPE_CHECKING:
    from benchmarks.rows import Results, Row
    from benchmarks.timing import Effort

DOCS = Path(__file__).parents[2] / "docs"
ROUGH = Path("runs") / "benchmarks"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="all rows roughly, within 3 minutes on 2 cores")
    add("--only", nargs="+", default=[], metavar="ROW", help="measure these rows alone")
    add("--growth", action="store_true", help="measure cost against size instead, and plot it")
    add("--page", action="store_true", help="measure nothing, write the page again")
    add("--list", action="store_true", help="print the names of the rows and stop")
    add("--out", type=Path, help=f"folder written to (default docs, with --quick {ROUGH})")
    add("--device", choices=["cpu", "cuda"], help="rows of this device alone (default: of all)")
    return parser.parse_args()


def catalogue() -> "dict[str, Row]":
    """Every row, with the ratios wanted: at least, and aimed at."""
    from benchmarks import allocator, gpu, inputs, memory, sampling, start, tiles, training
    from benchmarks.rows import DIFFUSERS, LUCIDRAINS, MONAI, SMP, Goal, Row

    forward, step = sampling.forward, training.step
    return {
        "forward_8": Row(
            "forward for sampling, batch 8, an image",
            "ms",
            {DIFFUSERS: Goal(1.5, 2.0), LUCIDRAINS: Goal(1.725, 2.3)},
            partial(forward, batch=8),
        ),
        "forward_1": Row(
            "forward for sampling, batch 1",
            "ms",
            {DIFFUSERS: Goal(1.2, 1.5), LUCIDRAINS: Goal(1.38, 1.725)},
            partial(forward, batch=1),
        ),
        "step_8": Row(
            "training step, batch 8, an image",
            "ms",
            {DIFFUSERS: Goal(1.25, 1.6), LUCIDRAINS: Goal(1.4375, 1.84)},
            partial(step, batch=8),
        ),
        "optimizer": Row(
            "AdamW and average alone, 35.7M weights",
            "ms",
            {DIFFUSERS: Goal(4.0, 4.5)},
            training.optimizer_and_average,
        ),
        "loop": Row(
            "DDPM loop without a network, a step",
            "us",
            {DIFFUSERS: Goal(5.0, 7.0)},
            sampling.loop_overhead,
        ),
        "small_network": Row(
            "network of 165k parameters, batch 1, a step of 1000",
            "ms",
            {DIFFUSERS: Goal(1.5, 3.0)},
            sampling.small_network,
        ),
        "histology": Row(
            "shipped histology model, 16 images, a step of 1000",
            "ms",
            {DIFFUSERS: Goal(1.5, 2.5)},
            sampling.shipped_model,
        ),
        "memory_16": Row(
            "peak memory of training, batch 16",
            "MB",
            {DIFFUSERS: Goal(1.0, 0.8)},
            partial(memory.peak, batch=16, checkpointing=False),
            smaller=True,
        ),
        "memory_16_checkpointing": Row(
            "the same with our gradient checkpointing",
            "MB",
            {DIFFUSERS: Goal(1.0, 0.6)},
            partial(memory.peak, batch=16, checkpointing=True),
            smaller=True,
        ),
        "allocator_step": Row(
            "training step, shipped histology model, the system's allocator or jemalloc",
            "ms",
            {allocator.JEMALLOC: None},
            partial(allocator.cost, kind="step"),
        ),
        "allocator_forward": Row(
            "forward, shipped histology model, the system's allocator or jemalloc",
            "ms",
            {allocator.JEMALLOC: None},
            partial(allocator.cost, kind="forward"),
        ),
        "input": Row(
            "images read for training",
            "images/s",
            {inputs.TORCHVISION: Goal(20.0, 40.0)},
            inputs.packed_images,
        ),
        "tiles": Row(
            "overlap-tile, 2048 x 2048",
            "s",
            {MONAI: Goal(1.2, 2.0)},
            partial(tiles.overlap_tiles, size=2048),
        ),
        "help": Row("scripts/sample.py --help", "s", {}, start.help_text, within=Goal(2.0, 0.5)),
        "imports_sampling": Row(
            "imports until ready to sample",
            "s",
            {DIFFUSERS: None, LUCIDRAINS: None},
            partial(start.imports, programs=start.SAMPLING),
        ),
        "imports_segmenting": Row(
            "imports until ready to segment",
            "s",
            {MONAI: None, SMP: None},
            partial(start.imports, programs=start.SEGMENTING),
        ),
        "segmentation": Row(
            "segmentation, forward, 512 x 512",
            "ms",
            {SMP: None, MONAI: None},
            tiles.segmentation_forward,
        ),
        **gpu.rows(),
    }


def main() -> None:
    args = arguments()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif args.device is None:
        for device in ("cpu", "cuda") if shutil.which("nvidia-smi") else ("cpu",):
            command = [sys.executable, __file__, *sys.argv[1:], "--device", device]
            status = subprocess.run(command).returncode
            if status:
                sys.exit(status)
        return
    from benchmarks.growth import CURVES, measure_growth
    from benchmarks.growth_plots import plot_growth
    from benchmarks.page import page
    from benchmarks.rows import Results
    from benchmarks.timing import QUICK, Effort

    rows, effort = catalogue(), QUICK if args.quick else Effort()
    if args.list:
        print("\n".join(rows))
        return
    names = chosen(args.only, [*CURVES] if args.growth else [*rows])
    out = args.out or (ROUGH if args.quick else DOCS)
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out / "benchmarks.json")
    if args.growth:
        measure_growth(names, effort, results)
        plot_growth(results.growth, out)
    elif not args.page:
        measure([name for name in names if rows[name].device == args.device], rows, effort, results)
    text = page(results, rows)
    (out / "benchmarks.md").write_text(text)
    print(text)


def chosen(names: list[str], known: list[str]) -> list[str]:
    """Those asked for; all if none is.

    Raises:
        UserError: There is no such row.
    """
    for name in names:
        if name not in known:
            raise UserError(f"--only {name}: no such row; known are {', '.join(known)}")
    return names or known


def measure(names: list[str], rows: "dict[str, Row]", effort: "Effort", results: "Results") -> None:
    """One row after the other; every one is in the file when it is done.

    Raises:
        UserError: There is no GPU for the rows of one.
    """
    import torch

    from benchmarks.machine import circumstances

    if any(rows[name].device == "cuda" for name in names) and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here")
    at = circumstances(effort)
    for name in names:
        print(f"{name}: {rows[name].title} ...", flush=True)
        start = time.perf_counter()
        results.add(name, rows[name].measure(effort), at)
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # of the package `benchmarks`
    with user_errors():
        main()

"""Checkpoints that are damaged, and disks that are full."""

import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ddpm_unet.training.checkpoint import checkpoint_paths
from reliability_items.children import Child, finish
from reliability_items.ends import STATE, digest
from reliability_items.place import TRAININGS, place


def damage() -> Iterator[str]:
    """Each file of the newest checkpoint truncated, emptied, one byte flipped, or removed."""

    def half(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    for job in TRAININGS:
        with place() as here:
            run = finish(here, job, "run")
            expected = digest(run)
            tried, well = 0, 0
            for name in (*STATE, "manifest.json"):
                for harm in (half, lambda path: path.write_bytes(b""), flip, Path.unlink):
                    harm(checkpoint_paths(run / "checkpoints")[-1] / name)
                    finish(here, job, "run")
                    said = "is damaged" in (here.root / "log").read_text()
                    aside = list(run.glob("checkpoints/*.damaged"))
                    tried += 1
                    well += said and len(aside) == 1 and digest(run) == expected
                    shutil.rmtree(aside[0])
            yield (
                f"{job}: {tried} damages, {well} noticed, said, kept aside, and gone on from the "
                "checkpoint before to the same end bit for bit"
            )


def disk() -> Iterator[str]:
    """A disk that fills up while a checkpoint is written: a limit on the size of files, and a
    small file system where mounting is allowed.
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    for job in TRAININGS:
        with place() as here:
            expected = digest(finish(here, job, "whole"))
            finish(here, job, "limited", steps=25)
            child = Child(here.arguments(job, "limited"), here.root / "log", limit)
            status, why = child.wait(), child.errors()
            kept = checkpoint_paths(here.root / "limited" / "checkpoints")[-1].name
            equal = digest(finish(here, job, "limited")) == expected
            yield (
                f"{job}, RLIMIT_FSIZE: status {status}, {len(why)} line, checkpoint of step "
                f"{int(kept)} kept; with room again the end equals bit for bit: {equal}"
            )
            small = here.root / "small"
            small.mkdir()
            mount = ["mount", "-t", "tmpfs", "-o", "size=1600k", "tmpfs", str(small)]
            if subprocess.run(mount, capture_output=True).returncode:
                yield f"{job}, full file system: not tried, mounting is not allowed here"
                continue
            try:
                child = Child(here.arguments(job, "small/run"), here.root / "log")
                status, why = child.wait(), child.errors()
                kept = checkpoint_paths(small / "run" / "checkpoints")[-1].name
                subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
                equal = digest(finish(here, job, "small/run")) == expected
            finally:
                subprocess.run(["umount", str(small)], check=True)
            yield (
                f"{job}, full file system: status {status}, {len(why)} line, checkpoint of step "
                f"{int(kept)} kept; with room again the end equals bit for bit: {equal}"
            )

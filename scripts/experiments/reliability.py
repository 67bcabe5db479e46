"""Try to break trainings, and write down what happened.

    python scripts/experiments/reliability.py [ITEM...]

Every item is a section of docs/reliability.md, which is written anew when the item runs.
"""

import argparse
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from reliability_runs import (
    SCRIPTS,
    STATE,
    TRAIN,
    TRAININGS,
    Child,
    difference,
    digest,
    finish,
    free_port,
    place,
    torchrun,
)

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data.sources import open_images
from ddpm_unet.training.checkpoint import checkpoint_paths

REPORT = Path(__file__).parents[2] / "docs" / "reliability.md"
SETTINGS = SCRIPTS.parent / "configs" / "accelerate"
INTRODUCTION = """What `scripts/experiments/reliability.py` found, written by it. The trainings are
small: a U-Net of 45,000 parameters on 24 images of 24 x 24, batches of 5 in passes of 2, on two
busy CPU cores, with torch 2.15 and accelerate 1.15. `make test` tries the same at a smaller size.

Not tried, for want of GPUs: NCCL, and fp16 on a GPU (its loss scale is tested with a CPU's
autocast). The files of `configs/accelerate` were launched on processors without one.

torchrun takes a script's `--run` for an option of its own, and stops; put `--` before the script:

    torchrun --nproc_per_node 2 -- scripts/train_ddpm.py --run runs/a

On a machine without a GPU this is also how to get several processes: `accelerate launch --cpu
--num_processes 2` starts one. A run says how many it has.
"""


def kill(moments: int) -> Iterator[str]:
    """SIGKILL at random moments, the same command again after each; the end is compared with a
    run that was left alone: every file of the last checkpoint, metrics.jsonl and the model.
    """
    chance = random.Random(0)
    for job in TRAININGS:
        with place() as here:
            begin = time.monotonic()
            expected = digest(finish(here, job, "whole"))
            seconds = time.monotonic() - begin
            killed, half_written = 0, 0
            run = here.root / "killed"
            while killed < moments:
                child = Child(here.arguments(job, run), here.root / "log")
                if killed % 2:
                    time.sleep(chance.uniform(0, seconds / 3))
                else:  # inside the writing of one of the next checkpoints
                    for _ in range(chance.randint(1, 2)):
                        while not list(run.glob("checkpoints/.*")) and child.running():
                            time.sleep(0.0002)
                        time.sleep(chance.uniform(0, 0.012))
                if not child.running():
                    assert child.wait() == 0, child.log.read_text()
                    shutil.rmtree(run)
                    continue
                os.kill(child.pid, signal.SIGKILL)
                assert child.wait() == -signal.SIGKILL
                killed += 1
                half_written += bool(list(run.glob("checkpoints/.*")))
            found = digest(finish(here, job, "killed"))
            same = sum(found[name] == value for name, value in expected.items())
            lines = [json.loads(x) for x in (run / "metrics.jsonl").open()]
            steps = [x["step"] for x in lines if "loss" in x]
            yield (
                f"{job}: {killed} kills, {half_written} of them left a half-written checkpoint; "
                f"{same} of {len(expected)} files equal bit for bit; "
                f"{len(steps)} loss lines, {len(set(steps))} different, "
                f"{TRAIN['steps'] // TRAIN['log_every']} expected"  # type: ignore[operator]
            )


def signals() -> Iterator[str]:
    """SIGTERM and Ctrl-C in the middle, then the same command; a second run on one folder."""
    for job in TRAININGS:
        with place() as here:
            expected = digest(finish(here, job, "whole"))
            for number in (signal.SIGTERM, signal.SIGINT):
                run = here.root / number.name
                child = Child(here.arguments(job, run), here.root / "log")
                while not list(run.glob("checkpoints/00*")):
                    time.sleep(0.001)
                second = Child(here.arguments(job, run), here.root / "second")
                refused, why = second.wait(), second.errors()
                assert child.running(), "the first run ended before the second was refused"
                os.kill(child.pid, number)
                status = child.wait()
                last = checkpoint_paths(run / "checkpoints")[-1].name
                message = child.log.read_text().splitlines()[-1]
                equal = digest(finish(here, job, number.name)) == expected
                yield (
                    f"{job}: second run refused with status {refused} ({len(why)} line); "
                    f"{number.name}: status {status}, checkpoint of step {int(last)}, "
                    f"`{message}`; the end equals bit for bit: {equal}"
                )


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


def processes() -> Iterator[str]:
    """Two processes and one with the same batches of 5 images, so 2 and 3 a process in one and two
    passes: 50 steps; and runs that change the number of processes half-way. Distances are
    relative: of all weights together (Euclidean norms), and the largest of a logged loss.
    """
    for job in TRAININGS:
        with place() as here:
            one = finish(here, job, "one")
            again = finish(here, job, "again", micro_batch=1)
            yield f"{job}, 1 process in passes of 2 and of 1: {difference(one, again)}"
            torchrun(2, here.arguments(job, "two"))
            yield f"{job}, 1 and 2 processes: {difference(one, here.root / 'two')}"
            torchrun(2, here.arguments(job, "fewer", steps=25))
            finish(here, job, "fewer")
            yield f"{job}, 2 processes, then 1: {difference(one, here.root / 'fewer')}"
            finish(here, job, "more", steps=25)
            torchrun(2, here.arguments(job, "more"))
            yield f"{job}, 1 process, then 2: {difference(one, here.root / 'more')}"


def sampling() -> Iterator[str]:
    """37 images in batches of 5 by 4 DDIM steps."""
    with place() as here:
        model = finish(here, "denoise", "run", steps=4) / "model"
        found = []
        for number in (1, 2, 3):
            out = here.root / str(number)
            flags = ["--num_images=37", "--batch_size=5", "--steps=4", "--sampler=ddim"]
            sample = [str(SCRIPTS / "sample.py"), f"--model={model}", f"--out={out}", *flags]
            torchrun(number, sample)
            found.append(
                {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in out.glob("[0-9]*")}
            )
        equal = [len(found[0].items() & other.items()) for other in found[1:]]
        yield f"1 process: {len(found[0])} files; equal to them on 2 and 3 processes: {equal}"


def sharded() -> Iterator[str]:
    """FSDP2 on two CPU processes (gloo): trains, saves, resumes, and goes on unsharded."""
    flags = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    for job in TRAININGS:
        with place() as here:
            one = finish(here, job, "one")
            for run, middle in (("whole", 50), ("resumed", 25)):
                for steps in sorted({middle, 50}):
                    torchrun(2, here.arguments(job, run, steps=steps), **flags)
            equal = digest(here.root / "whole") == digest(here.root / "resumed")
            yield f"{job}, FSDP2 and 1 process: {difference(one, here.root / 'whole')}"
            yield f"{job}, FSDP2 resumed at step 25 equals FSDP2 bit for bit: {equal}"
            torchrun(2, here.arguments(job, "unsharded", steps=25), **flags)
            finish(here, job, "unsharded")
            yield f"{job}, FSDP2, then 1 process: {difference(one, here.root / 'unsharded')}"


def hosts() -> Iterator[str]:
    """The files of configs/accelerate as they are, but for the number of processes: `accelerate
    launch` on one host, and twice, as on two hosts that meet on the loopback address.
    """
    for job in TRAININGS:
        with place() as here:
            one = finish(here, job, "one")
            for name, machines in (("one_host", 1), ("hosts", 2), ("hosts_fsdp", 2)):
                port = free_port()
                started = [
                    subprocess.Popen(
                        [
                            sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch",
                            f"--config_file={SETTINGS / name}.yaml",
                            f"--num_processes={2 * machines}", f"--machine_rank={rank}",
                            "--main_process_ip=127.0.0.1", f"--main_process_port={port}",
                            *here.arguments(job, name),
                        ],
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                    )
                    for rank in range(machines)
                ]  # fmt: skip
                said = [process.communicate(timeout=600)[0] for process in started]
                assert all(process.returncode == 0 for process in started), "\n".join(said)
                counted = re.search(r"\d+ processes", said[0])
                yield (
                    f"{job}, {name}.yaml, {counted[0] if counted else '?'} on {machines} host(s), "
                    f"and 1 process: {difference(one, here.root / name)}"
                )


def faults() -> Iterator[str]:
    """A fault that only one of two processes meets ends both."""
    with place() as here:
        training = [*here.arguments("denoise", "run", steps=2000), "--data.memory_limit=0"]
        image = here.root / "images" / "03.png"
        whole = image.read_bytes()
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
            f"--master_port={free_port()}", "--", *training,
        ]  # fmt: skip

        def end(process: subprocess.Popen[str]) -> str:
            begin = time.monotonic()
            said = process.communicate(timeout=120)[0].replace(str(here.root), "")
            lines = re.findall(r"error: [^\r\n]*", said)
            return f"both had ended {time.monotonic() - begin:.0f} s later, saying {lines}"

        def start() -> subprocess.Popen[str]:
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            return subprocess.Popen(command, text=True, **streams)  # type: ignore[call-overload]

        process = start()
        while not list(here.root.glob("run/checkpoints/00*")):
            time.sleep(0.01)
        image.write_bytes(whole[:200])
        yield f"an image truncated during training: {end(process)}"
        image.write_bytes(whole)
        child = Child(training, here.root / "log")
        while "going on" not in child.log.read_text():
            time.sleep(0.01)
        yield f"a run folder in use, from the start of both: {end(start())}"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()


def soak(steps: int) -> Iterator[str]:
    """Resident memory of a long training that reads its images from the disk again and again."""
    for job in TRAININGS:
        with place() as here:
            args = here.arguments(job, "run", steps=steps, checkpoint_every=50, validate_every=50)
            child = Child([*args, "--data.memory_limit=0"], here.root / "log")
            metrics, seen = here.root / "run" / "metrics.jsonl", []
            while child.running():
                time.sleep(0.25)
                status = Path(f"/proc/{child.pid}/status").read_text()
                found = re.search(r"VmRSS:\s+(\d+)", status)
                last = metrics.read_text().splitlines()[-1:] if metrics.exists() else []
                if found and last and last[0].endswith("}"):
                    seen.append((json.loads(last[0])["step"], int(found[1]) / 1024))
            assert child.wait() == 0, child.log.read_text()
            early = [m for step, m in seen if steps / 10 <= step < steps / 5]
            late = [m for step, m in seen if step >= steps * 0.9]
            a, b = float(np.mean(early)), float(np.mean(late))
            yield (
                f"{job}: {steps} steps, {steps * 5 // 19} epochs; resident memory {a:.1f} MB "
                f"between a tenth and a fifth of them, {b:.1f} MB in the last tenth "
                f"({b / a - 1:+.1%})"
            )


def folder(images: int) -> Iterator[str]:
    """A folder of small PNGs in 100 sub-folders, opened by the denoiser's data (every header is
    read, nothing decoded).
    """
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for i in range(50):
            noise = np.random.default_rng(i).integers(0, 256, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(noise).save(root / f"{i}.png")
        for i in range(100):
            (root / f"{i}").mkdir()
        for i in range(images - 50):
            os.link(root / f"{i % 50}.png", root / f"{i % 100}" / f"{i}.png")
        config = ImageDataConfig(source=str(root), size=32, memory_limit=0, include_held_out=True)
        begin, worked = time.monotonic(), time.process_time()
        count = len(open_images(config))
        yield (
            f"{count:,} images in {time.process_time() - worked:.1f} s of one core "
            f"({time.monotonic() - begin:.1f} s by the clock)"
        )


ITEMS: dict[str, Callable[..., Iterator[str]]] = {
    f.__name__: f
    for f in (
        kill,
        signals,
        damage,
        disk,
        processes,
        sampling,
        sharded,
        hosts,
        faults,
        soak,
        folder,
    )
}

SIZES = {"kill": 20, "soak": 2000, "folder": 100_000}


def write_section(item: str, lines: Sequence[str]) -> None:
    """Put the figures of an item in its place, among all items, in the report."""
    text = REPORT.read_text() if REPORT.exists() else "# Reliability\n\n" + INTRODUCTION
    doc = " ".join((ITEMS[item].__doc__ or "").split())
    figures = "\n".join(f"- {line}" for line in lines)
    command = f"python scripts/experiments/reliability.py {item}"
    section = f"## {item}\n\n{doc}\n\n    {command}\n\n{figures}\n"
    parts = re.split(r"(?m)^(?=## )", text)
    sections = {p.split("\n")[0][3:]: p.rstrip() + "\n" for p in parts[1:]} | {item: section}
    ordered = [sections[name] for name in ITEMS if name in sections]
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text("\n".join([parts[0].rstrip() + "\n", *ordered]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("items", nargs="*", metavar="ITEM", help=f"of {', '.join(ITEMS)}")
    chosen = parser.parse_args().items or list(ITEMS)
    if unknown := sorted(set(chosen) - set(ITEMS)):
        parser.error(f"{unknown[0]}: no such item; known are {', '.join(ITEMS)}")
    torch.set_num_threads(1)
    for item in chosen:
        begin = time.monotonic()
        lines = []
        for line in ITEMS[item](*([SIZES[item]] if item in SIZES else [])):
            print(f"{item}: {line}", flush=True)
            lines.append(line)
        print(f"{item}: {time.monotonic() - begin:.0f} s")
        write_section(item, lines)


if __name__ == "__main__":
    main()

"""Try to break trainings, and write down what happened: `python scripts/reliability.py [ITEM...]`.

Every item is a section of docs/reliability.md, which is written anew when the item runs.
"""

import argparse
import hashlib
import json
import os
import random
import re
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data.sources import open_images
from ddpm_unet.training import denoise, loop, segment  # noqa: F401 (so that forks start at once)
from ddpm_unet.training.checkpoint import checkpoint_paths

SCRIPTS = Path(__file__).parent
REPORT = SCRIPTS.parent / "docs" / "reliability.md"
SETTINGS = SCRIPTS.parent / "configs" / "accelerate"
TRAININGS = {"denoise": "train_ddpm.py", "segment": "train_seg.py"}
STATE = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")
MODEL = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
TRAIN = {
    "steps": 50, "batch_size": 5, "micro_batch": 2, "lr": 1e-3, "lr_schedule": "constant",
    "warmup_steps": 10, "ema_decay": 0.95, "log_every": 5, "checkpoint_every": 5,
    "validate_every": 25, "sample_every": 0,
}  # fmt: skip


class Place:
    """A folder with small pictures, masks and the settings of both trainings."""

    def __init__(self, root: Path) -> None:
        self.root = root
        pictures, masks = root / "pictures", root / "masks"
        pictures.mkdir()
        masks.mkdir()
        rng = np.random.default_rng(0)
        y, x = np.mgrid[:24, :24]
        for i in range(24):
            centre = rng.uniform(6, 18, 2)
            blob = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 12)
            colours = (blob[..., None] * rng.uniform(100, 255, 3)).astype(np.uint8)
            Image.fromarray(colours).save(pictures / f"{i:02d}.png")
            Image.fromarray((blob > 0.4).astype(np.uint8)).save(masks / f"{i:02d}.png")
        preview = {"num_images": 3, "steps": 2, "validation_images": 5}
        augment = {"elastic_sigma": 1}
        pairs = {"images": str(pictures), "masks": str(masks), "size": 16, "augment": augment}
        both = {"model": MODEL, "train": TRAIN}
        self._write("denoise", both | {"data": {"source": str(pictures), "size": 16}} | {
            "preview": preview})  # fmt: skip
        self._write("segment", both | {"data": pairs, "init": "scratch"})

    def _write(self, job: str, settings: dict[str, Any]) -> None:
        (self.root / f"{job}.yaml").write_text(yaml.safe_dump(settings))

    def arguments(self, job: str, run: str | Path, **train: Any) -> list[str]:
        """Script and arguments of a training; `train` overrides its settings."""
        flags = [f"--train.{name}={value}" for name, value in train.items()]
        config, script = self.root / f"{job}.yaml", SCRIPTS / TRAININGS[job]
        return [str(script), "--config", str(config), "--run", str(self.root / run), *flags]


@contextmanager
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory() as folder:
        yield Place(Path(folder))


class Child:
    """A script in a process of its own, forked from this one, which has imported torch already."""

    def __init__(
        self, arguments: list[str], log: Path, prepare: Callable[[], object] = lambda: None
    ) -> None:
        self.log = log
        self.pid = os.fork()
        if self.pid == 0:
            self._be(arguments, prepare)

    def _be(self, arguments: list[str], prepare: Callable[[], object]) -> None:
        code: Any = 1
        try:
            with self.log.open("w") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
            prepare()
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
            code = 0
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def wait(self) -> int:
        """Its exit status, minus the signal where one ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def running(self) -> bool:
        """Whether it has not ended; takes no notice of how it ended."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def errors(self) -> list[str]:
        """The lines that matter of what it printed."""
        return [line for line in self.log.read_text().splitlines() if "error" in line.lower()]


def finish(here: Place, job: str, run: str, **train: Any) -> Path:
    """Train to the end in a fork."""
    child = Child(here.arguments(job, run, **train), here.root / "log")
    status = child.wait()
    assert status == 0, child.log.read_text()
    return here.root / run


def torchrun(processes: int, arguments: list[str], *flags: str, **environment: str) -> str:
    """Run a script on several processes; what it printed."""
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
        *(flags or (f"--master_port={free_port()}",)), "--", *arguments,
    ]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def digest(run: Path) -> dict[str, str]:
    """Every file of a run's end that must not depend on how it got there."""
    newest = checkpoint_paths(run / "checkpoints")[-1]
    files = [newest / name for name in STATE] + [run / "metrics.jsonl"]
    files += [path for path in (run / "model").rglob("*") if path.is_file()]
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def difference(one: Path, other: Path) -> str:
    """How far two runs ended from each other."""
    ends = [checkpoint_paths(run / "checkpoints")[-1] for run in (one, other)]
    assert ends[0].name == ends[1].name
    found = []
    for name in ("model", "ema"):
        a, b = (load_file(end / f"{name}.safetensors") for end in ends)
        error = sum(float((a[k] - b[k]).double().square().sum()) for k in a) ** 0.5
        size = sum(float(a[k].double().square().sum()) for k in a) ** 0.5
        found.append(f"{name} {error / size:.1e}")
    lines = [[json.loads(x) for x in (r / "metrics.jsonl").open()] for r in (one, other)]
    assert [x["step"] for x in lines[0]] == [x["step"] for x in lines[1]]
    losses = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(*lines, strict=True) if "loss" in a)
    return f"{', '.join(found)}, logged losses {losses:.1e}"


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
    flags = {
        "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_MIN_NUM_PARAMS": "2000",
    }  # fmt: skip
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
        picture = here.root / "pictures" / "03.png"
        whole = picture.read_bytes()
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
        picture.write_bytes(whole[:200])
        yield f"a picture truncated during training: {end(process)}"
        picture.write_bytes(whole)
        child = Child(training, here.root / "log")
        while "going on" not in child.log.read_text():
            time.sleep(0.01)
        yield f"a run folder in use, from the start of both: {end(start())}"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()


def soak(steps: int) -> Iterator[str]:
    """Resident memory of a long training that reads its pictures from the disk again and again."""
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


def folder(pictures: int) -> Iterator[str]:
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
        for i in range(pictures - 50):
            os.link(root / f"{i % 50}.png", root / f"{i % 100}" / f"{i}.png")
        config = ImageDataConfig(source=str(root), size=32, memory_limit=0, include_held_out=True)
        begin, worked = time.monotonic(), time.process_time()
        count = len(open_images(config))
        yield (
            f"{count:,} pictures in {time.process_time() - worked:.1f} s of one core "
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
    """Put the figures of an item in its place in the report."""
    text = REPORT.read_text() if REPORT.exists() else "# Reliability\n\n" + INTRODUCTION
    doc = " ".join((ITEMS[item].__doc__ or "").split())
    figures = "\n".join(f"- {line}" for line in lines)
    section = f"## {item}\n\n{doc}\n\n    python scripts/reliability.py {item}\n\n{figures}\n"
    parts = re.split(r"(?m)^(?=## )", text)
    sections = {p.split("\n")[0][3:]: p.rstrip() + "\n" for p in parts[1:]} | {item: section}
    ordered = [sections[name] for name in ITEMS if name in sections]
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text("\n".join([parts[0].rstrip() + "\n", *ordered]))


INTRODUCTION = """What `scripts/reliability.py` found, written by it. The trainings are small: a
U-Net of 45,000 parameters on 24 pictures of 24 x 24, batches of 5 in passes of 2, on two busy CPU
cores, with torch 2.15 and accelerate 1.15. `make test` tries the same at a smaller size.

Not tried, for want of GPUs: NCCL, and fp16 on a GPU (its loss scale is tested with a CPU's
autocast). The files of `configs/accelerate` were launched on processors without one.

torchrun takes a script's `--run` for an option of its own, and stops; put `--` before the script:

    torchrun --nproc_per_node 2 -- scripts/train_ddpm.py --run runs/a

On a machine without a GPU this is also how to get several processes: `accelerate launch --cpu
--num_processes 2` starts one. A run says how many it has.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("items", nargs="*", metavar="ITEM", help=f"of {', '.join(ITEMS)}")
    chosen = parser.parse_args().items or list(ITEMS)
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

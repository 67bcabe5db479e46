"""Trainings to be broken: small, in processes of their own, and how far apart they ended."""

import hashlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from safetensors.torch import load_file

from ddpm_unet.training import from_config  # noqa: F401 (so that forks start at once)
from ddpm_unet.training.checkpoint import checkpoint_paths

SCRIPTS = Path(__file__).parents[1]

TRAININGS = {"denoise": "train_ddpm.py", "segment": "train_seg.py"}

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
    """A folder with small images, masks and the settings of both trainings."""

    def __init__(self, root: Path) -> None:
        self.root = root
        images, masks = root / "images", root / "masks"
        images.mkdir()
        masks.mkdir()
        rng = np.random.default_rng(0)
        y, x = np.mgrid[:24, :24]
        for i in range(24):
            centre = rng.uniform(6, 18, 2)
            blob = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 12)
            colours = (blob[..., None] * rng.uniform(100, 255, 3)).astype(np.uint8)
            Image.fromarray(colours).save(images / f"{i:02d}.png")
            Image.fromarray((blob > 0.4).astype(np.uint8)).save(masks / f"{i:02d}.png")
        preview = {"num_images": 3, "steps": 2, "validation_images": 5}
        augment = {"elastic_sigma": 1}
        pairs = {"images": str(images), "masks": str(masks), "size": 16, "augment": augment}
        both = {"model": MODEL, "train": TRAIN}
        self._write("denoise", both | {"data": {"source": str(images), "size": 16}} | {
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


STATE = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")


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

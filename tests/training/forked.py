"""Processes that find each other as those of a launcher do, forked so that they start at once."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from accelerate.state import AcceleratorState

from ddpm_unet.errors import UserError
from ddpm_unet.training.checkpoint import checkpoint_paths, read_checkpoint
from ddpm_unet.training.distributed import PeerError
from ddpm_unet.training.run_folder import RunFolder


def in_processes(count: int, work: Callable[[], object], **environment: str) -> "list[Process]":
    """Fork `count` processes that find each other as those of a launcher do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sys.stdout.flush()
    places = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        | environment
        for rank in range(count)
    ]
    return [Process(work, place) for place in places]


class Process:
    def __init__(self, work: Callable[[], object], environment: dict[str, str]) -> None:
        self.reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(writing)
            return
        code = 1
        try:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            sys.stdout = sys.stderr = os.fdopen(writing, "w", buffering=1)
            os.environ.update(environment)
            AcceleratorState._reset_state(reset_partial_state=True)
            work()
            code = 0
        except UserError as error:
            if not isinstance(error, PeerError):  # which commands leave unsaid
                print(f"error: {error}")
            code = 2
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def wait(self, seconds: float = 60.0) -> int:
        """Exit status; a test that is kept waiting fails."""
        deadline = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                with os.fdopen(self.reading) as said:
                    self.said = said.read()
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError("a process was left waiting")
            time.sleep(0.01)


def finish(processes: list[Process]) -> None:
    codes = [process.wait() for process in processes]
    assert codes == [0] * len(codes), "\n".join(process.said for process in processes)


def stored(checkpoint: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a checkpoint of either kind, whole."""
    tensors = read_checkpoint(checkpoint)[0]
    if next(iter(tensors["model"].values())).is_meta:
        flat = {
            f"{g}/{n}": torch.empty_like(t, device="cpu")
            for g in tensors
            for n, t in tensors[g].items()
        }
        dcp.load(flat, storage_reader=dcp.HuggingFaceStorageReader(str(checkpoint)), no_dist=True)
        tensors = {g: {n: flat[f"{g}/{n}"] for n in tensors[g]} for g in tensors}
    return tensors


def distance(one: Path, other: Path) -> float:
    """Relative distance of the weights and averages two runs ended with; same metric lines."""
    a, b = (checkpoint_paths(folder / "checkpoints")[-1] for folder in (one, other))
    assert a.name == b.name
    found = []
    for name in ("model", "ema"):
        first, second = (stored(path)[name] for path in (a, b))
        assert first.keys() == second.keys()
        x, y = (torch.cat([of[key].ravel() for key in first]) for of in (first, second))
        found.append(float((x - y).norm() / x.norm()))
    lines = [RunFolder(folder).read_metrics() for folder in (one, other)]
    assert [(r["step"], r.keys()) for r in lines[0]] == [(r["step"], r.keys()) for r in lines[1]]
    for r, s in zip(*lines, strict=True):
        for name in {"loss", "grad_norm", "lr"} & r.keys():
            assert r[name] == pytest.approx(s[name], rel=1e-4)
    return max(found)

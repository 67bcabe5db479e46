"""Trainings in processes of their own: forked, or started by torchrun."""

import os
import runpy
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm_unet.training import denoise, loop, segment  # noqa: F401 (so that forks start at once)
from reliability_items.place import Place


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

"""C++ compiled at first use, and the tensors that it may be given in torch's place.

What is compiled lies in the user's cache folder. Where there is no compiling, torch's own functions
serve, which one line of the log says.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import subprocess
from ctypes import CDLL
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.autograd import forward_ad

COMPILE = [
    *("g++", "-O3", "-march=native", "-std=c++17", "-fopenmp"),
    *("-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
]
PLAIN = (Tensor, torch.nn.Parameter)

logger = logging.getLogger(__name__)


@lru_cache
def library(source: Path) -> CDLL | None:
    """The compiled functions of a source file; None, said in the log, where there is no compiling.

    They have C's names; headers are included from the file's folder.
    """
    try:
        if platform.system() != "Linux":
            raise OSError(f"compiled functions are for Linux, this is {platform.system()}")
        return CDLL(str(_compiled(source)))
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        _say(f"torch's own functions serve in place of faster compiled ones: {error}")
        return None


def plain(*tensors: Tensor | None) -> bool:
    """Whether all are float32 numbers in this machine's memory and nothing else; None is."""
    return all(
        x is None
        or (
            type(x) in PLAIN and x.dtype == torch.float32 and x.is_cpu and x.layout == torch.strided
        )
        for x in tensors
    )


def differentiated(*tensors: Tensor | None) -> bool:
    """Whether the gradient of any is wanted."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def serves(*tensors: Tensor | None) -> bool:
    """Whether a function that only computes forward may take these in torch's place."""
    return unseen() and plain(*tensors) and not differentiated(*tensors)


def transformed() -> bool:
    """Whether torch follows or transforms what is computed: compile, export, tracing, vmap, jvp."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def unseen() -> bool:
    """Whether torch need not see the operation, as it does under autocast and a FLOP counter."""
    return not (
        transformed() or torch.is_autocast_enabled("cpu") or torch._C._len_torch_dispatch_stack()
    )


@lru_cache
def _say(line: str) -> None:
    logger.warning(line)


def _compiled(source: Path) -> Path:
    """The library for this source, compiler command and processor, compiled if it is not there."""
    # Linked with torch's own OpenMP, whose threads it shares.
    runtime = sorted(map(str, (Path(torch.__file__).parent / "lib").glob("libgomp*")))
    command = [*COMPILE, "-shared", "-fPIC", str(source), "-Wl,--as-needed", *runtime]
    circumstances = (command, torch.__version__, platform.machine(), _processor())
    key = hashlib.sha256(repr(circumstances).encode())
    for part in [source, *sorted(source.parent.glob("*.h"))]:
        key.update(part.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddpm_unet"
    path = cache / f"{source.stem}-{key.hexdigest()[:16]}.so"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / path.name
            command += ["-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if "error" in line]
                raise OSError(f"{command[0]} failed, {lines[0] if lines else done.returncode}")
            made.replace(path)
    return path


def _processor() -> list[str]:
    """What this processor can do, for which the code is compiled."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return sorted({line for line in lines if line.startswith(("flags", "model name"))})

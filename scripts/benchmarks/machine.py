"""The machine and the libraries that figures were measured with."""

from __future__ import annotations

import os
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import DIFFUSERS, LUCIDRAINS, MONAI, SMP
from benchmarks.timing import Effort, thread_rates

PACKAGES = ("torch", "torchvision", DIFFUSERS, "accelerate", LUCIDRAINS, MONAI, SMP)


def circumstances(effort: Effort) -> dict[str, Any]:
    """What a row's figures depend on besides the code."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": date.today().isoformat(),
        "quick": effort.quick,
        "cpu": cpu_model(),
        "processors": os.cpu_count(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(memory / 1e9),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "matrix_gflops": {str(n): rate / 1e9 for n, rate in thread_rates().items()},
        "versions": {"python": platform.python_version()} | installed_versions(),
    }


def cpu_model() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    names = info.read_text().splitlines() if info.is_file() else []
    found = [line.split(":", 1)[1].strip() for line in names if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def installed_versions() -> dict[str, str]:
    """Of the libraries compared; those that are not installed are left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

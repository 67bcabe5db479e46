"""Where the large tensors on the CPU lie, and what becomes of their memory when they are gone."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

from ddpm_unet import native

SOURCE = Path(__file__).with_name("memory.cpp")
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of malloc.h


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Let this process use freed memory again, instead of handing it back to the system.

    glibc returns blocks of more than 32 MB at once, and the next tensor of that size is mapped
    anew, page by page: a third of the time of a narrow network on pictures of half a megapixel. Of
    smaller blocks it leaves gaps, for it fills none with a tensor of the same size, as that wants
    to be aligned: a third of the memory of a training. So torch's tensors get an allocator of their
    own, `memory.cpp`. Where that cannot be compiled, or nothing is to be, glibc is told to return
    nothing, for 5 to 15 % more memory at the peak; other C libraries stay as they are.
    """
    folder = Path(torch.__file__).parent
    torch_itself = ["-std=c++20", f"-I{folder / 'include'}", f"-L{folder / 'lib'}", "-lc10"]
    with suppress(OSError, AttributeError, ValueError):
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        functions = native.library(SOURCE, *torch_itself) if native.enabled() else None
        if functions is None or not functions.keep_freed_memory(ctypes.c_size_t(size)):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(MMAP_MAX, 0)
            mallopt(TRIM_THRESHOLD, -1)

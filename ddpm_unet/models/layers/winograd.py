"""3 x 3 convolutions on the CPU by Winograd's minimal filtering, F(4x4, 3x3): Lavin 2016.

An output costs 2.25 products instead of 9, in float32, at a relative rounding error of 1e-6
instead of 2e-7. `winograd.cpp` beside this file is compiled at first use, for the machine at hand,
into the user's cache folder. Where that fails, or `applies` says no, the ordinary convolution
serves.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL, c_int, c_long, c_void_p
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

SOURCES = [Path(__file__).with_name(name) for name in ("winograd.cpp", "winograd_transforms.h")]
COMPILE = ["g++", "-O3", "-march=native", "-std=c++17", "-fopenmp", "-Wno-psabi"]

PLAIN = (Tensor, torch.nn.Parameter)

logger = logging.getLogger(__name__)
_enabled = True


def enable(on: bool = True) -> None:
    """Compute by this method where it applies, as is the default, or nowhere."""
    global _enabled
    _enabled = on


@contextmanager
def disabled() -> Iterator[None]:
    """The ordinary convolution everywhere, inside a `with`."""
    before = _enabled
    enable(False)
    try:
        yield
    finally:
        enable(before)


def applies(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `conv2d` takes these, and is faster than torch.

    It takes plain float32 tensors on the CPU with channels in multiples of 16, and is faster from
    4 tiles on, in all images together, if they are half full. It is not for autocast, nor where
    torch wants to see the operation: in torch.compile, torch.export, functional transforms, and
    under modes such as a FLOP counter's.
    """
    if not _enabled or torch.compiler.is_compiling() or x.ndim != 4:
        return False
    batch, channels, height, width = x.shape
    outputs, inputs, *_ = weight.shape
    return (
        channels == inputs
        and not (outputs % 16 or inputs % 16)
        and _pays(batch, height, width)
        and _plain(x)
        and _plain(weight)
        and (bias is None or _plain(bias))
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and library() is not None
    )


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)`, where `applies`.

    Args:
        x: `float32 [B, C, H, W]`.
        weight: `float32 [K, C, 3, 3]`.
        bias: `float32 [K]`, or None.

    Returns:
        `float32 [B, K, H, W]`, channels last if `x` or `weight` are.
    """
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _Convolution.apply(x, weight, bias)
    return _convolve(x, weight, bias, _layout(x, weight))


@lru_cache(maxsize=1)
def library() -> CDLL | None:
    """The compiled functions; None, said in one line of the log, where there is no compiling."""
    try:
        functions = CDLL(str(_compiled()))
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        logger.warning("convolutions are not by Winograd's method, but slower: %s", error)
        return None
    image = [c_long] * 5 + [c_int]
    functions.winograd_convolve.argtypes = [c_void_p] * 4 + image + [c_int] * 2
    functions.winograd_filter_gradient.argtypes = [c_void_p] * 3 + image + [c_int]
    functions.winograd_convolve.restype = functions.winograd_filter_gradient.restype = None
    return functions


def _compiled() -> Path:
    """The library for this source, compiler command and processor, compiled if it is not there."""
    # Linked with torch's own OpenMP, whose threads it shares.
    runtime = sorted(map(str, (Path(torch.__file__).parent / "lib").glob("libgomp*")))
    command = [*COMPILE, "-shared", "-fPIC", str(SOURCES[0]), "-Wl,--as-needed", *runtime]
    key = hashlib.sha256(repr((command, platform.machine(), _processor())).encode())
    for source in SOURCES:
        key.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddpm_unet"
    path = cache / f"winograd-{key.hexdigest()[:16]}.so"
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


class _Convolution(torch.autograd.Function):
    """The convolution and its gradients, all by the same method."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias, _layout(x, weight))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            return torch.ops.aten.convolution_backward(
                dy, x, weight, [len(weight)], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted
            )
        layout = _layout(x, weight)
        return (
            _convolve(dy, weight, None, layout, turned=True) if wanted[0] else None,
            _filter_gradient(x, dy, layout) if wanted[1] else None,
            dy.sum((0, 2, 3)) if wanted[2] else None,
        )


def _plain(x: Tensor) -> bool:
    return type(x) in PLAIN and x.is_cpu and x.dtype == torch.float32 and x.layout == torch.strided


def _pays(batch: int, height: int, width: int) -> bool:
    tiles = -(-height // 4) * -(-width // 4)
    return batch * tiles >= 4 and height * width >= 8 * tiles


def _layout(x: Tensor, y: Tensor) -> torch.memory_format:
    """Channels last if the input or the weights are, as torch has it."""
    last = torch.channels_last
    if x.is_contiguous() and y.is_contiguous():
        return torch.contiguous_format
    if any(z.is_contiguous(memory_format=last) and not z.is_contiguous() for z in (x, y)):
        return last
    return torch.contiguous_format


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: torch.memory_format,
    turned: bool = False,
) -> Tensor:
    """The convolution; `turned`: the gradient of its input from that of its output."""
    x, weight = x.contiguous(memory_format=layout), weight.contiguous()
    batch, inputs, height, width = x.shape
    outputs = weight.shape[1 if turned else 0]
    shape = (batch, outputs, height, width)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    functions: Any = library()
    functions.winograd_convolve(
        x.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        *(batch, inputs, outputs, height, width),
        layout is torch.channels_last,
        turned,
        torch.get_num_threads(),
    )
    return y


def _filter_gradient(x: Tensor, dy: Tensor, layout: torch.memory_format) -> Tensor:
    x, dy = x.contiguous(memory_format=layout), dy.contiguous(memory_format=layout)
    batch, inputs, height, width = x.shape
    outputs = dy.shape[1]
    dw = x.new_zeros(outputs, inputs, 3, 3)
    functions: Any = library()
    functions.winograd_filter_gradient(
        x.data_ptr(),
        dy.data_ptr(),
        dw.data_ptr(),
        *(batch, inputs, outputs, height, width),
        layout is torch.channels_last,
        torch.get_num_threads(),
    )
    return dw

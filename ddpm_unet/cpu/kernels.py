"""The compiled functions: convolution, normalisation with SiLU, attention of small heads.

3 x 3 convolutions by Winograd's minimal filtering, F(4x4, 3x3) (Lavin 2016): an output costs 2.25
products instead of 9, in float32, at a relative rounding error of 1e-6 instead of 2e-7. Each has a
function that says whether it takes some tensors and is faster than torch; elsewhere torch serves.

The C++ is compiled at first use into the user's cache folder. Where there is no compiling, torch's
own functions serve, which one line of the log says.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import subprocess
from ctypes import CDLL, c_double, c_float, c_int, c_long, c_void_p
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_IMAGE = [c_long] * 5 + [c_int]
FUNCTIONS: dict[str, dict[str, list[Any]]] = {
    "winograd": {
        "winograd_convolve": [c_void_p] * 4 + _IMAGE + [c_int] * 2,
        "winograd_filter_gradient": [c_void_p] * 3 + _IMAGE + [c_int],
    },
    "norm_silu": {"norm_silu": [*[c_void_p] * 5, c_long, c_void_p, *[c_long] * 4, c_float, c_int]},
    "attend": {"attend": [*[c_void_p] * 4, *[c_long] * 5, c_float, c_int]},
    "adamw": {"adamw": [c_void_p, c_long, *[c_double] * 8, c_int]},
}
"""What is in each source file, and the C types of the arguments; nothing is given back."""


def winograd_applies(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `winograd` takes these, and is faster than torch.

    It takes plain float32 tensors on the CPU with channels in multiples of 16 (those of the output
    may be others where no gradient is wanted), and is faster from 4 tiles on, in all images
    together, if they are half full. It is not for where torch wants to see the operation.
    """
    if x.ndim != 4 or not unseen():
        return False
    batch, channels, height, width = x.shape
    outputs, inputs, *_ = weight.shape
    tiles = -(-height // 4) * -(-width // 4)
    return (
        channels == inputs
        and not inputs % 16
        and not (outputs % 16 and differentiated(x, weight, bias))
        and batch * tiles >= 4
        and height * width >= 8 * tiles
        and plain(x, weight, bias)
        and functions("winograd") is not None
    )


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)`, where `winograd_applies`.

    Channels last if `x` or `weight` are.
    """
    if differentiated(x, weight, bias):
        return _Winograd.apply(x, weight, bias)
    return _convolve(x, weight, bias, _layout(x, weight))


@lru_cache
def functions(name: str) -> Any:
    """The compiled functions of a source file beside this one; None where there is no compiling."""
    found = library(Path(__file__).with_name(f"{name}.cpp"))
    for function, types in FUNCTIONS[name].items() if found is not None else ():
        getattr(found, function).argtypes = types
        getattr(found, function).restype = None
    return found


class _Winograd(torch.autograd.Function):
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


def _layout(x: Tensor, y: Tensor) -> torch.memory_format:
    """Channels last if the input or the weights are, as torch has it."""
    last = torch.channels_last
    marked = (z.is_contiguous(memory_format=last) and not z.is_contiguous() for z in (x, y))
    return last if any(marked) else torch.contiguous_format


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
    functions("winograd").winograd_convolve(
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
    functions("winograd").winograd_filter_gradient(
        x.data_ptr(),
        dy.data_ptr(),
        dw.data_ptr(),
        *(batch, inputs, outputs, height, width),
        layout is torch.channels_last,
        torch.get_num_threads(),
    )
    return dw


def norm_silu_applies(x: Tensor, *others: Tensor | None) -> bool:
    """Whether `norm_silu` takes these: contiguous plain float32 on the CPU, no gradient wanted."""
    return serves(x, *others) and x.is_contiguous() and functions("norm_silu") is not None


def norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """`silu(group_norm(x) * (1 + scale) + shift)`, where `norm_silu_applies`.

    Scale and shift are `[B or 1, C, *ones]`, or None for no modulation.
    """
    batch, channels = x.shape[:2]
    if scale is not None and shift is not None:
        scale, shift = scale.contiguous(), shift.contiguous()
    y = torch.empty_like(x)
    functions("norm_silu").norm_silu(
        *(x.data_ptr(), weight.data_ptr(), bias.data_ptr()),
        *(None if m is None else m.data_ptr() for m in (scale, shift)),
        0 if scale is None or len(scale) == 1 else channels,
        y.data_ptr(),
        *(batch, channels, x.numel() // (batch * channels), groups, eps),
        torch.get_num_threads(),
    )
    return y


def attend_applies(q: Tensor, k: Tensor, v: Tensor, heads: int) -> bool:
    """Whether `attend` takes these, and is faster than torch.

    It takes plain float32 tensors on the CPU, contiguous, with heads of 8, 16, ... 64 channels, and
    is up to three times as fast where these are at most 32 or the keys at most 128.
    """
    dim = q.shape[2] // heads
    return (
        serves(q, k, v)
        and dim % 8 == 0
        and (dim <= 32 or (dim <= 64 and k.shape[1] <= 128))
        and all(x.is_contiguous() for x in (q, k, v))
        and functions("attend") is not None
    )


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """`softmax(q k^T / sqrt(D)) v` of every head, where `attend_applies`.

    Queries are `float32 [B, N, heads * D]`, keys and values `[B, L, heads * D]`, L at least 1.
    """
    batch, tokens, channels = q.shape
    dim = channels // heads
    mixed = torch.empty_like(q)
    functions("attend").attend(
        *(tensor.data_ptr() for tensor in (q, k, v, mixed)),
        *(batch, heads, tokens, k.shape[1], dim, dim**-0.5),
        torch.get_num_threads(),
    )
    return mixed


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

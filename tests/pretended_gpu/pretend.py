"""A CUDA device that is pretended: its tensors say cuda:0 and compute in the memory of the host.

`Pretend` is such a tensor. Within `Pretending()`, what is made with device="cuda" is one. Where a
GPU would raise because devices are mixed, this raises; where the host would wait for the GPU, the
kind of wait and the lines of the project that led to it are counted in `waits`. Nothing is known of
kernels, of memory, of NCCL or Triton.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)

aten = torch.ops.aten
ROOT = str(Path(__file__).parents[2]) + "/"
CUDA = torch.device("cuda", 0)

waits: Counter[str] = Counter()
"""By kind and place, how often the host waited for the device; `watched` begins another."""

SHAPED_BY_DATA = {
    aten.nonzero.default, aten.masked_select.default, aten.bincount.default, aten.equal.default,
    aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
}  # fmt: skip
INDEXING = {
    aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._index_put_impl_.default,
}  # fmt: skip
KEPT_WHOLE = {aten.masked_select.default, aten._unique2.default, aten.index.Tensor}
"""Composites that CUDA computes by themselves; others are taken apart."""


class Pretend(torch.Tensor):
    """A tensor that says it is on the GPU; `inner` holds its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=CUDA,
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretend({self.inner!r})"

    def __tensor_flatten__(self) -> Any:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(tensors: Any, meta: Any, size: Any, stride: Any) -> Any:
        return Pretend(tensors["inner"])

    def tolist(self) -> Any:
        wait("read by the host")
        return self.inner.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy  # type: ignore[assignment]


class Pretending(TorchDispatchMode):
    """Within, what is made on a CUDA device is a `Pretend`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            return compute(func, args, kwargs)
        if any(isinstance(x, Pretend) for x in leaves((args, kwargs))):
            return compute(func, args, kwargs)
        return func(*args, **kwargs)


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operator gives on the pretended device; counts waits, refuses mixed devices."""
    if composite(func):
        with Pretending():
            return func.decompose(*args, **kwargs)
    if func is aten._local_scalar_dense.default:
        wait("read by the host")
        return args[0].inner.item()
    if func is aten._fused_sdp_choice.default:
        return 0
    flat = list(leaves((args, kwargs)))
    here = any(isinstance(x, Pretend) for x in flat)
    device = kwargs.get("device")
    there = here if device is None else torch.device(device).type == "cuda"
    if func is aten._to_copy.default:
        copied(args[0], there, kwargs.get("non_blocking", False))
    elif func is aten.copy_.default:
        there = isinstance(args[0], Pretend)
        copied(args[1], there, args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    elif func in INDEXING:
        there = isinstance(args[0], Pretend)
        indexed(func, there, [i for i in args[1] if i is not None])
    elif here and any(on_host(x) and x.dim() > 0 for x in flat):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({func})"
        )
    elif func in SHAPED_BY_DATA:
        wait(f"shape of {func}")
    inside, told = mapped(to_host, (args, kwargs))
    if there:
        told.pop("pin_memory", None)
    with _disable_current_modes():
        out = func(*inside, **told)
    if not there:
        return out
    out = mapped(lambda x: Pretend(x) if on_host(x) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


@cache
def composite(func: Any) -> bool:
    """Whether CUDA takes an operator apart into others."""
    key = "CompositeImplicitAutograd"
    kept = func in KEPT_WHOLE
    return not kept and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)


def leaves(tree: Any) -> Iterator[Any]:
    """What lies in lists, tuples and dicts."""
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, tuple | list):
        for branch in tree:
            yield from leaves(branch)
    else:
        yield tree


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same lists, tuples and dicts of what a function makes of each leaf."""
    if isinstance(tree, tuple | list):
        return type(tree)([mapped(function, branch) for branch in tree])
    if isinstance(tree, dict):
        return {key: mapped(function, branch) for key, branch in tree.items()}
    return function(tree)


def on_host(value: Any) -> bool:
    """Whether it is a tensor of the host."""
    return isinstance(value, torch.Tensor) and not isinstance(value, Pretend)


def to_host(value: Any) -> Any:
    """The same for the computation behind: tensors, generators and devices of the host."""
    if isinstance(value, Pretend):
        return value.inner
    if isinstance(value, torch.device):
        return torch.device("cpu")
    if isinstance(value, torch.Generator) and value.device.type == "cuda":
        return host_generator(value)
    return value


def copied(source: torch.Tensor, there: bool, non_blocking: bool) -> None:
    """Count a copy to the device (`there`) or from it, unless the host goes on during it."""
    if isinstance(source, Pretend) == there:
        return
    if not there:
        wait("copied to the host")
    elif not non_blocking:
        wait("copied to the device")
    elif not source.is_pinned():
        wait("copied to the device, not pinned")


def indexed(func: Any, there: bool, indices: list[torch.Tensor]) -> None:
    """Count what an index makes the host wait for."""
    if not there and any(isinstance(i, Pretend) for i in indices):
        raise RuntimeError(f"indices should be on the same device as the indexed tensor ({func})")
    if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
        wait("index by a mask")
    if there and any(on_host(i) for i in indices):
        wait("index of the host")


def wait(kind: str) -> None:
    """Count a wait, with the two innermost lines of the project (else a line of a library)."""
    frame, found = sys._getframe(1), []
    while frame and len(found) < 2:
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and "/tests/" not in name and "/site-packages/" not in name:
            found.append(f"{name.removeprefix(ROOT)}:{frame.f_lineno}")
        elif not found and ("/diffusers/" in name or "/accelerate/" in name):
            found.append(f"{Path(name).name}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    waits[f"{kind} at {' < '.join(found)}"] += 1


generators: dict[int, torch.Generator] = {}


def host_generator(of: torch.Generator) -> torch.Generator:
    """The generator that stands behind one of the device: by its seed, begun anew at offset 0."""
    seed = of.initial_seed()
    if of.get_offset() == 0:
        generators[seed] = torch.Generator().manual_seed(seed)
    of.set_offset(of.get_offset() + 4)
    return generators[seed]


@contextmanager
def watched() -> Iterator[Counter[str]]:
    """Within, waits are counted in a counter of their own."""
    global waits
    before, waits = waits, Counter()
    try:
        yield waits
    finally:
        waits = before


class _NoGrad(torch.no_grad):
    """Stands for inference_mode, whose tensors no subclass can wrap."""

    def __new__(cls, mode: Any = True) -> Any:
        return torch.no_grad()(mode) if callable(mode) else torch.no_grad()


def arrange() -> None:
    """Prepare this process: parameters can be moved, and what no operator stands for is off."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)
    torch.backends.cudnn.enabled = False
    for kind in ("flash", "mem_efficient", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{kind}_sdp")(False)
    torch.inference_mode = _NoGrad  # type: ignore[misc]

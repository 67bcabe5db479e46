"""3 x 3 convolutions on the CPU by Winograd's minimal filtering, F(4x4, 3x3): Lavin 2016.

An output costs 2.25 products instead of 9, in float32, at a relative rounding error of 1e-6
instead of 2e-7. Where `winograd.cpp` cannot be compiled, or `applies` says no, the ordinary
convolution serves.
"""

from __future__ import annotations

from ctypes import CDLL, c_int, c_long, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_unet import native

SOURCE = Path(__file__).with_name("winograd.cpp")


def applies(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `conv2d` takes these, and is faster than torch.

    It takes plain float32 tensors on the CPU with channels in multiples of 16 (those of the output
    may be others where no gradient is wanted), and is faster from 4 tiles on, in all images
    together, if they are half full. It is not for where torch wants to see the operation.
    """
    if x.ndim != 4 or not native.unseen():
        return False
    batch, channels, height, width = x.shape
    outputs, inputs, *_ = weight.shape
    return (
        channels == inputs
        and not inputs % 16
        and not (outputs % 16 and native.differentiated(x, weight, bias))
        and _pays(batch, height, width)
        and native.plain(x, weight, bias)
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
    if native.differentiated(x, weight, bias):
        return _Convolution.apply(x, weight, bias)
    return _convolve(x, weight, bias, _layout(x, weight))


@lru_cache(maxsize=1)
def library() -> CDLL | None:
    """The compiled functions; None where there is no compiling."""
    image = [c_long] * 5 + [c_int]
    return native.functions(
        SOURCE,
        winograd_convolve=[c_void_p] * 4 + image + [c_int] * 2,
        winograd_filter_gradient=[c_void_p] * 3 + image + [c_int],
    )


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

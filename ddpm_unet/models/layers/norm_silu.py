"""Group normalisation, modulation and SiLU on the CPU, in one compiled function."""

from __future__ import annotations

from ctypes import CDLL, c_float, c_int, c_long, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_unet import native

SOURCE = Path(__file__).with_name("norm_silu.cpp")


def applies(x: Tensor, *others: Tensor | None) -> bool:
    """Whether `norm_silu` takes these: plain float32 tensors on the CPU, contiguous.

    It is not for where torch wants to see the operation, nor where a gradient is wanted.
    """
    return native.serves(x, *others) and x.is_contiguous() and library() is not None


def norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """`silu(group_norm(x) * (1 + scale) + shift)`, where `applies`.

    Args:
        x: `float32 [B, C, *space]`, contiguous.
        groups: Of the channels.
        weight: Of the normalisation, `[C]`.
        bias: Likewise.
        eps: Added to the variance.
        scale: `[B or 1, C, *ones]`, or None for no modulation.
        shift: Like `scale`, and given with it.

    Returns:
        `float32 [B, C, *space]`.
    """
    batch, channels = x.shape[:2]
    if scale is not None and shift is not None:
        scale, shift = scale.contiguous(), shift.contiguous()
    y = torch.empty_like(x)
    functions: Any = library()
    functions.norm_silu(
        *(x.data_ptr(), weight.data_ptr(), bias.data_ptr()),
        *(None if m is None else m.data_ptr() for m in (scale, shift)),
        0 if scale is None or len(scale) == 1 else channels,
        y.data_ptr(),
        *(batch, channels, x.numel() // (batch * channels), groups, eps),
        torch.get_num_threads(),
    )
    return y


@lru_cache(maxsize=1)
def library() -> CDLL | None:
    """The compiled function; None where there is no compiling."""
    sizes = [c_long] * 4
    types = [*[c_void_p] * 5, c_long, c_void_p, *sizes, c_float, c_int]
    return native.functions(SOURCE, norm_silu=types)

"""Attention with small heads or few keys on the CPU, in one compiled function."""

from __future__ import annotations

from ctypes import CDLL, c_float, c_int, c_long, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_unet import native

SOURCE = Path(__file__).with_name("attend.cpp")


def applies(q: Tensor, k: Tensor, v: Tensor, heads: int) -> bool:
    """Whether `attend` takes these, and is faster than torch.

    It takes plain float32 tensors on the CPU, contiguous, with heads of 8, 16, ... 64 channels, and
    is up to three times as fast where these are at most 32 or the keys at most 128. It is not for
    where torch wants to see the operation, nor where a gradient is wanted.
    """
    dim = q.shape[2] // heads
    return (
        native.serves(q, k, v)
        and dim % 8 == 0
        and (dim <= 32 or (dim <= 64 and k.shape[1] <= 128))
        and all(x.is_contiguous() for x in (q, k, v))
        and library() is not None
    )


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """`softmax(q k^T / sqrt(D)) v` of every head, where `applies`.

    Args:
        q: Queries, `float32 [B, N, heads * D]`.
        k: Keys, `float32 [B, L, heads * D]`, at least one.
        v: Values, like the keys.
        heads: Number of heads.

    Returns:
        `float32 [B, N, heads * D]`.
    """
    batch, tokens, channels = q.shape
    dim = channels // heads
    mixed = torch.empty_like(q)
    functions: Any = library()
    functions.attend(
        *(tensor.data_ptr() for tensor in (q, k, v, mixed)),
        *(batch, heads, tokens, k.shape[1], dim, dim**-0.5),
        torch.get_num_threads(),
    )
    return mixed


@lru_cache(maxsize=1)
def library() -> CDLL | None:
    """The compiled function; None where there is no compiling."""
    return native.functions(SOURCE, attend=[*[c_void_p] * 4, *[c_long] * 5, c_float, c_int])

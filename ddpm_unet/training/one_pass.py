"""The optimiser's step and the average of the weights, on a CPU in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import CDLL, c_double, c_int, c_long, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from ddpm_unet import native
from ddpm_unet.training.ema import EMA

SOURCE = Path(__file__).with_name("adamw.cpp")


@torch.no_grad()
def update(optimizer: Optimizer, ema: EMA, step: int, otherwise: Callable[[], Any]) -> None:
    """Take an optimiser's step, and the weights into the average.

    Args:
        optimizer: Leaves out its step if it has a `found_inf` that is 1.
        ema: The average of the optimiser's parameters.
        step: The number of the step, from 0.
        otherwise: Takes the optimiser's step alone, where there is no doing both at once: for
            other optimisers than AdamW, other devices, the first step, shards of parameters.
    """
    groups = _tables(optimizer, ema)
    if groups is None:
        otherwise()
        ema.update(step)
        return
    functions: Any = library()
    for settings, steps, table in groups:
        torch._foreach_add_(steps, 1)
        count = int(steps[0])
        functions.adamw(
            table.data_ptr(),
            len(table),
            *(settings["lr"], settings["weight_decay"], *settings["betas"], settings["eps"]),
            *(1 - beta**count for beta in settings["betas"]),
            1 - ema.decay_at(step),
            torch.get_num_threads(),
        )


Group = tuple[dict[str, Any], list[Tensor], Tensor]


def _tables(optimizer: Optimizer, ema: EMA) -> list[Group] | None:
    """Settings, counts of steps and addresses by group of parameters; None without all of them."""
    skipped = getattr(optimizer, "found_inf", None)
    left_out = skipped is not None and bool(skipped)
    if type(optimizer) is not AdamW or left_out or not native.unseen() or library() is None:
        return None
    averages = dict(zip(ema.parameters, ema.averages, strict=True))
    groups = []
    for settings in optimizer.param_groups:
        rows, steps = [], []
        for p in settings["params"]:
            state, average = optimizer.state.get(p), averages.pop(p, None)
            if not state or average is None or p.grad is None:
                return None
            tensors = (p, p.grad, state["exp_avg"], state["exp_avg_sq"], average)
            if not native.plain(*tensors) or not all(x.is_contiguous() for x in tensors):
                return None
            rows.append([*(x.data_ptr() for x in tensors), p.numel()])
            steps.append(state["step"])
        if settings["amsgrad"] or settings["maximize"] or len(set(map(int, steps))) != 1:
            return None
        groups.append((settings, steps, torch.tensor(rows)))
    return None if averages else groups


@lru_cache(maxsize=1)
def library() -> CDLL | None:
    """The compiled function; None where there is no compiling."""
    functions = native.library(SOURCE)
    if functions is not None:
        functions.adamw.argtypes = [c_void_p, c_long, *[c_double] * 8, c_int]
        functions.adamw.restype = None
    return functions

"""Whole tensors from and into parameters that may be split over processes (FSDP2's DTensor)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(named: Iterable[tuple[str, Tensor]], keep: bool) -> dict[str, Tensor]:
    """Unsharded copies on the CPU, one tensor at a time; every process must call it.

    Args:
        named: Names and tensors, the same on every process.
        keep: Whether this process wants them; those that do not get an empty dictionary.
    """
    kept = {}
    for name, tensor in named:
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        if keep:
            kept[name] = tensor.detach().to("cpu", copy=True)
    return kept


@torch.no_grad()
def copy_into(target: Tensor, value: Tensor) -> None:
    """Write a whole tensor into `target`, each process its own part."""
    if isinstance(target, DTensor):
        value = distribute_tensor(
            value.to(target.device), target.device_mesh, target.placements
        ).to(target.dtype)
    target.copy_(value)


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` as an optimiser keeps it for `parameter`: split alike, on its device.

    Numbers that are not per element (a step count) stay whole.
    """
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    target = torch.zeros_like(parameter, dtype=value.dtype)
    copy_into(target, value)
    return target


def whole_norm(norm: Tensor | float) -> Tensor:
    """The gradient norm as an ordinary tensor, also where it is sharded."""
    full = getattr(norm, "full_tensor", None)
    return full() if full else torch.as_tensor(norm)

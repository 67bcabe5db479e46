"""Whole tensors from and into parameters that may be split over processes (FSDP2's DTensor)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The unsharded tensor on the CPU; every process must call it."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().to("cpu", copy=True)


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

    Numbers that are not per element (a step count) stay whole, on the device they were made for.
    """
    if value.shape != parameter.shape:
        return value
    target = torch.zeros_like(parameter, dtype=value.dtype)
    copy_into(target, value)
    return target

"""What a network costs, counted without running it: parameters, operations, memory of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Of one forward pass.

    Args:
        parameters: Numbers that the network has.
        gflop: Operations of convolutions and matrix products, 10^9; a multiplication and its
            addition are two.
        kept_mb: Activations kept for the backward pass in training, 10^6 bytes, without the
            parameters.
    """

    parameters: int
    gflop: float
    kept_mb: float


def forward_cost(network: nn.Module, *inputs: Any) -> Cost:
    """Count a forward pass.

    Args:
        network: On the device "meta", where nothing is computed, or on another.
        inputs: What it takes, on the same device.
    """
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            kept[storage] = tensor
        return tensor

    training = network.training
    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network.train()(*inputs)
        size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        del output
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(*inputs)
    network.train(training)
    return Cost(
        parameters=sum(p.numel() for p in network.parameters()),
        gflop=counter.get_total_flops() / 1e9,
        kept_mb=size / 1e6,
    )

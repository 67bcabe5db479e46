"""The optimiser, its learning rate as a function of the step, and its state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from ddpm_unet.config import TrainConfig
from ddpm_unet.training.sharding import like

NamedParameters = list[tuple[str, Parameter]]


class RMSprop(torch.optim.RMSprop):
    """Torch's, which leaves out a step while `found_inf` is 1, as the fused optimisers do."""

    found_inf: Tensor | None = None

    def step(self, closure: Any = None) -> Any:
        """Take a step, or leave it out."""
        if self.found_inf is not None and self.found_inf:
            return None
        return super().step(closure)


def build_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> Optimizer:
    """The optimiser of a configuration, which leaves out a step while its `found_inf` is 1.

    Args:
        groups: Parameters; a group may carry a learning rate of its own.
        config: The loop's settings.
    """
    shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    optimizer: Optimizer
    if config.optimizer == "rmsprop":
        optimizer = RMSprop(groups, momentum=config.momentum, **shared)
    else:
        optimizer = AdamW(groups, betas=config.betas, fused=True, **shared)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at optimiser step `step` (from 0), in [0, 1].

    Linear warm-up over `warmup_steps`, then constant or half a cosine down to zero at `steps`.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Give every group `factor` of its peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def optimizer_state(
    optimizer: Optimizer, parameters: NamedParameters
) -> Iterator[tuple[str, Tensor]]:
    """The optimiser's state as `<parameter>/<entry>` and tensor."""
    for name, parameter in parameters:
        for entry, value in optimizer.state[parameter].items():
            yield f"{name}/{entry}", value


def load_optimizer_state(
    optimizer: Optimizer, parameters: dict[str, Parameter], key: str, value: Tensor
) -> None:
    """Take over one whole tensor that `optimizer_state` named `key`."""
    name, entry = key.rsplit("/", 1)
    parameter = parameters[name]
    optimizer.state[parameter][entry] = like(parameter, value)

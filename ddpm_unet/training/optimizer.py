"""The optimiser, its learning rate as a function of the step, and its state as named tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from ddpm_unet.config import TrainConfig
from ddpm_unet.training.sharding import like, whole

NamedParameters = list[tuple[str, Parameter]]


def build_optimizer(
    groups: list[dict[str, Any]], config: TrainConfig, device: torch.device
) -> Optimizer:
    """AdamW (Loshchilov 2019), fused; `groups` may carry learning rates of their own."""
    optimizer = AdamW(
        groups,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
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


def optimizer_state(optimizer: Optimizer, parameters: NamedParameters) -> dict[str, Tensor]:
    """The optimiser's state as `<parameter>/<entry>` -> whole tensor on the CPU."""
    return {
        f"{name}/{entry}": whole(value)
        for name, parameter in parameters
        for entry, value in optimizer.state[parameter].items()
    }


def load_optimizer_state(
    optimizer: Optimizer, parameters: NamedParameters, saved: dict[str, Tensor]
) -> None:
    """Take over what `optimizer_state` gave."""
    by_name = dict(parameters)
    for key, value in saved.items():
        name, entry = key.rsplit("/", 1)
        parameter = by_name[name]
        value = like(parameter, value)
        if value.dim() == 0 and optimizer.defaults.get("fused"):
            value = value.to(parameter.device)
        optimizer.state[parameter][entry] = value

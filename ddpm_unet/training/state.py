"""What a training is at a step: everything that a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddpm_unet.training.ema import EMA, PowerEMA
from ddpm_unet.training.one_pass import Update
from ddpm_unet.training.optimizer import load_optimizer_state, optimizer_state
from ddpm_unet.training.post_hoc import BUFFERS
from ddpm_unet.training.sharding import copy_into, whole

NOWHERE = torch.iinfo(torch.int64).max
"""The stream position of no image."""
LOOP_NUMBERS = ("images", "scaler", "metrics_size")
"""What the loop adds to `TrainingState.numbers`."""


class TrainingState:
    """Weights, their average, the optimiser's state, and what is counted on the way.

    Args:
        network: The network, as the processes share it (its parameters may be sharded).
        optimizer: Its optimiser, not wrapped.
        ema_decay: See `EMA`.
        ema_sigma_rel: Of further averages, see `PowerEMA`.
        device: Where sums and counts are kept, so that no step waits for them.

    Attributes:
        step: Optimiser steps taken.
        best, best_step, worse: Best validation score, its step, and validations since.
        loss_sum, loss_steps: The loss since the last log line.
        skipped: Steps left out because their gradient was not finite.
        nonfinite: Non-finite losses in a row.
        suspect: Stream position of the first image of these, of this process.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        ema_decay: float,
        ema_sigma_rel: Iterable[float],
        device: torch.device,
    ) -> None:
        self.network, self.optimizer = network, optimizer
        self.named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
        self.ema = EMA([p for _, p in self.named], ema_decay)
        self._at_once = Update(optimizer, self.ema)
        self.powers = {f"{s:g}": PowerEMA(self.ema.parameters, s) for s in ema_sigma_rel}
        self.step = 0
        self.best, self.worse = -math.inf, 0
        self.best_step: int | None = None
        self.loss_sum = torch.zeros((), device=device)
        self.loss_steps = 0
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=device)
        self.suspect = torch.full((), NOWHERE, device=device)

    def update(self, step_optimizer: Callable[[], Any], scaled: bool) -> None:
        """Take the optimiser's step, and the weights into all averages.

        Args:
            step_optimizer: Takes the step.
            scaled: The gradients are, so that nobody else can.
        """
        if scaled:
            step_optimizer()
            self.ema.update(self.step)
        else:
            self._at_once(self.step, step_optimizer)
        for average in self.powers.values():
            average.update(self.step)

    def tensors(self, keep: bool) -> dict[str, dict[str, Tensor]]:
        """All tensors, whole, by group; every process must call it, and those that `keep` get them.

        Groups: "model" (parameters and buffers), "optimizer", "ema", and "ema_" with a length for
        each average besides.
        """
        return {
            "model": whole(self.network.state_dict().items(), keep),
            "optimizer": whole(optimizer_state(self.optimizer, self.named), keep),
            **{group: whole(of.items(), keep) for group, of in self._averages().items()},
        }

    def snapshot(self, keep: bool) -> dict[str, dict[str, Tensor]]:
        """The averages besides, by length, and the buffers, as `Snapshots` keeps them."""
        parameters = {name for name, _ in self.network.named_parameters()}
        state = self.network.state_dict()
        groups = {BUFFERS: {name: t for name, t in state.items() if name not in parameters}}
        for group, average in self._averages().items():
            if group != "ema":
                groups[group.removeprefix("ema_")] = average
        return {group: whole(of.items(), keep) for group, of in groups.items()}

    def _averages(self) -> dict[str, dict[str, Tensor]]:
        names = [name for name, _ in self.named]
        averages = {"ema": self.ema, **{f"ema_{n}": a for n, a in self.powers.items()}}
        return {
            group: dict(zip(names, average.averages, strict=True))
            for group, average in averages.items()
        }

    def numbers(self) -> dict[str, Any]:
        """All else, ready for JSON."""
        return {
            "step": self.step,
            "loss_sum": float(self.loss_sum),
            "loss_steps": self.loss_steps,
            "skipped": int(self.skipped),
            "nonfinite": int(self.nonfinite),
            "best": None if self.best_step is None else self.best,
            "best_step": self.best_step,
            "worse": self.worse,
        }

    def difference(
        self, tensors: dict[str, dict[str, Tensor]], numbers: dict[str, Any]
    ) -> str | None:
        """The first thing that a checkpoint lacks, or has too much, to be one of this training."""
        for name in (*self.numbers(), *LOOP_NUMBERS):
            if name not in numbers:
                return f"has no {name}"
        parameters = dict(self.named)
        averages = ((group, parameters) for group in self._averages())
        for group, own in (("model", self.network.state_dict()), *averages):
            given = tensors.get(group, {})
            for name in (*own, *given):
                if name not in own or name not in given or own[name].shape != given[name].shape:
                    return f"has not the {group}'s {name} of this network"
        for name in tensors.get("optimizer", {}):
            if name.rsplit("/", 1)[0] not in parameters:
                return f"has an optimizer of {name}"
        return None

    def restore(self, tensors: Iterable[tuple[str, str, Tensor]], numbers: dict[str, Any]) -> None:
        """Take over what `tensors` (as group, name, value) and `numbers` gave."""
        targets = {"model": self.network.state_dict(), **self._averages()}
        parameters = dict(self.named)
        for group, name, value in tensors:
            if group == "optimizer":
                load_optimizer_state(self.optimizer, parameters, name, value)
            else:
                copy_into(targets[group][name], value)
        self.step = numbers["step"]
        self.best_step, self.worse = numbers["best_step"], numbers["worse"]
        self.best = -math.inf if self.best_step is None else numbers["best"]
        self.loss_sum.fill_(numbers["loss_sum"])
        self.loss_steps = numbers["loss_steps"]
        self.skipped.fill_(numbers["skipped"])
        self.nonfinite.fill_(numbers["nonfinite"])

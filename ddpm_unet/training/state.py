"""What a training is at a step: weights, their averages, the optimizer's state, and counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from ddpm_unet.config import TrainConfig
from ddpm_unet.training.distributed import copy_into, let_go, replicated, whole
from ddpm_unet.training.post_hoc_ema import BUFFERS, exponent

NOWHERE = torch.iinfo(torch.int64).max
"""The stream position of no image."""
COUNTS = ("step", "loss_steps", "best_step", "worse")
SUMS = ("loss_sum", "skipped", "nonfinite")
LOOP_NUMBERS = ("images", "scaler", "metrics_size")
"""What the loop adds to `TrainingState.numbers`."""


class EMA:
    """Averages of float32 parameters, theta_ema <- d theta_ema + (1 - d) theta.

    d = min(decay, (1 + step) / (10 + step)), so that the first steps are forgotten quickly.
    """

    def __init__(self, parameters: Sequence[Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.averages = [p.detach().clone() for p in self.parameters]
        self.decay = decay

    def decay_at(self, step: int) -> float:
        """The weight of the past at optimizer step number `step` (from 0)."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step number `step` (from 0)."""
        decay = self.decay_at(step)
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # Values move, not storage: what shards or compiles a network holds on to its storage.
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            weights = parameter.clone()
            parameter.copy_(average)
            average.copy_(weights)


class PowerEMA(EMA):
    """An average whose length grows with the training (Karras 2024, arXiv:2312.02696, eq. 1, 2).

    The weights after step i of t weigh (i^(g+1) - (i-1)^(g+1)) / t^(g+1), whose standard deviation
    is `sigma_rel` as a share of the training.
    """

    def __init__(self, parameters: Sequence[Parameter], sigma_rel: float) -> None:
        super().__init__(parameters, 0.0)
        self._power = exponent(sigma_rel) + 1

    def decay_at(self, step: int) -> float:
        """The weight of the past at optimizer step number `step` (from 0)."""
        return (step / (step + 1)) ** self._power


class RMSprop(torch.optim.RMSprop):
    """Torch's, which leaves out a step where `found_inf` is set, as its fused AdamW does.

    No step waits for the device: what changed is put back there.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    _step_supports_amp_scaling = True

    def step(self, closure: Any = None) -> Any:
        """As torch's."""
        assert self.grad_scale is None, "gradients are unscaled to be clipped"
        if self.found_inf is None:
            return super().step(closure)
        before = self._tensors()
        kept = {key: value.detach().clone() for key, value in before.items()}
        loss = super().step(closure)
        with torch.no_grad():
            bad = self.found_inf.bool()
            for key, value in self._tensors().items():
                old = kept.get(key, torch.zeros_like(value))
                value.copy_(torch.where(bad, old, value))
        return loss

    def _tensors(self) -> dict[Any, Tensor]:
        """Parameters with a gradient, and their states but for the count of steps."""
        own = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        states = {(p, n): v for p in own for n, v in self.state[p].items() if n != "step"}
        return {**{(p, ""): p for p in own}, **states}


def build_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> Optimizer:
    """The optimizer of a configuration; a group may carry a learning rate of its own."""
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
    """Share of the peak learning rate at optimizer step `step` (from 0), in [0, 1].

    Linear warm-up over `warmup_steps`, then constant, or a line or half a cosine to 0 at `steps`.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    if config.lr_schedule == "linear":
        return 1 - min(progress, 1.0)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class TrainingState:
    """Weights, their averages, the optimizer's state, and what is counted on the way.

    Attributes:
        step: Optimizer steps taken.
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
        self.powers = {f"{s:g}": PowerEMA(self.ema.parameters, s) for s in ema_sigma_rel}
        self.step = 0
        self.best, self.worse = -math.inf, 0
        self.best_step: int | None = None
        self.loss_sum = torch.zeros((), device=device)
        self.loss_steps = 0
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=device)
        self.suspect = torch.full((), NOWHERE, device=device)
        self.fused: Callable[[int, Callable[[], Any]], None] | None = None
        """Takes a step of the optimizer and the weights into `ema` at once, where it can."""

    def update(self, step_optimizer: Callable[[], Any], bad: Tensor, scaled: bool) -> None:
        """Step unless the gradient is bad, `bool []`, and take the weights into all averages.

        Where it is `scaled`, a gradient scaler looks at the gradient itself.
        """
        optimizer: Any = self.optimizer
        if not scaled:
            optimizer.grad_scale = None
            optimizer.found_inf = replicated(bad.float(), self.named[0][1])
        if self.fused and isinstance(optimizer, AdamW) and not scaled:
            self.fused(self.step, step_optimizer)
        else:
            step_optimizer()
            self.ema.update(self.step)
        for average in self.powers.values():
            average.update(self.step)
        self.skipped += bad

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the network has the averaged weights, and does not train."""
        training = self.network.training
        self.network.eval()
        let_go(self.network)
        with self.ema.applied():
            yield
            let_go(self.network)
        self.network.train(training)

    def tensors(self, keep: bool) -> dict[str, dict[str, Tensor]]:
        """All tensors, whole, by group, where `keep`; every process must call it.

        Groups: "model", "optimizer", "ema", and "ema_" with sigma_rel for each average besides.
        """
        return {group: whole(of, keep) for group, of in self.shards().items()}

    def shards(self) -> dict[str, list[tuple[str, Tensor]]]:
        """This process's tensors themselves, by group and name."""
        states = [
            (f"{name}/{entry}", value)
            for name, parameter in self.named
            for entry, value in self.optimizer.state[parameter].items()
        ]
        groups = {"model": self.network.state_dict(), **self._averages()}
        return {"optimizer": states, **{group: list(of.items()) for group, of in groups.items()}}

    def snapshot(self, keep: bool) -> dict[str, dict[str, Tensor]]:
        """The averages besides, by sigma_rel, and the buffers, as `Snapshots` keeps them."""
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
        found = {name: getattr(self, name) for name in COUNTS}
        found |= {name: getattr(self, name).item() for name in SUMS}
        return found | {"best": None if self.best_step is None else self.best}

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

    def slot(self, group: str, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Where a tensor of `shards` belongs; of the optimizer it is made."""
        if group != "optimizer":
            targets = self._averages()[group] if group != "model" else self.network.state_dict()
            return targets[name]
        name, entry = name.rsplit("/", 1)
        parameter = dict(self.named)[name]
        if shape == parameter.shape:
            made = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        else:  # a step count
            made = torch.zeros(shape, dtype=dtype, device=parameter.device)
        self.optimizer.state[parameter][entry] = made
        return made

    def restore(self, tensors: Iterable[tuple[str, str, Tensor]], numbers: dict[str, Any]) -> None:
        """Take over what `tensors` (as group, name, value) and `numbers` gave."""
        for group, name, value in tensors:
            copy_into(self.slot(group, name, value.shape, value.dtype), value)
        for name in COUNTS:
            setattr(self, name, numbers[name])
        for name in SUMS:
            getattr(self, name).fill_(numbers[name])
        self.best = -math.inf if self.best_step is None else numbers["best"]

"""The optimiser's step and the average of the weights, on a CPU in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from ddpm_unet.cpu.kernels import functions, plain, unseen


class FusedAdamWEMA:
    """An optimiser's step, unless its `found_inf` is 1, and the average of its parameters.

    The average has `parameters` and their `averages`, `decay_at(step)`, the weight of the past at
    step number `step` from 0, and `update(step)`, which takes in the weights after it.
    """

    def __init__(self, optimizer: Optimizer, ema: Any) -> None:
        self.optimizer, self.ema = optimizer, ema
        self._averages = dict(zip(ema.parameters, ema.averages, strict=True))
        # Asked before `found_inf` is, which on a GPU would be waiting for it.
        self._possible = type(optimizer) is AdamW and plain(*ema.parameters)
        self._ready = False

    @torch.no_grad()
    def __call__(self, step: int, otherwise: Callable[[], Any]) -> None:
        """Do both at step number `step`, from 0.

        `otherwise` takes the optimiser's step alone where there is no doing both at once: for other
        optimisers than AdamW, other devices, the first step, shards of parameters.
        """
        tables = self._tables()
        if tables is None:
            otherwise()
            self.ema.update(step)
            return
        compiled = functions("adamw")
        for settings, steps, table in tables:
            torch._foreach_add_(steps, 1)
            count = int(steps[0])
            compiled.adamw(
                table.data_ptr(),
                len(table),
                *(settings["lr"], settings["weight_decay"], *settings["betas"], settings["eps"]),
                *(1 - beta**count for beta in settings["betas"]),
                1 - self.ema.decay_at(step),
                torch.get_num_threads(),
            )

    def _tables(self) -> list[tuple[dict[str, Any], list[Tensor], Tensor]] | None:
        """Settings, counts of steps and addresses of every group; None where torch is to do it."""
        if not self._possible or not unseen():
            return None
        skipped = getattr(self.optimizer, "found_inf", None)
        if skipped is not None and skipped:
            return None
        if not self._ready:
            self._ready = functions("adamw") is not None and self._suits()
            if not self._ready:
                return None
        tables = []
        for settings in self.optimizer.param_groups:
            steps, rows = [], []
            for p in settings["params"]:
                gradient, state = p.grad, self.optimizer.state[p]
                if gradient is None or not gradient.is_contiguous():
                    return None
                tensors = (p, gradient, state["exp_avg"], state["exp_avg_sq"], self._averages[p])
                rows.append([*[x.data_ptr() for x in tensors], p.numel()])
                steps.append(state["step"])
            tables.append((settings, steps, torch.tensor(rows)))
        return tables

    def _suits(self) -> bool:
        """Whether all parameters have been through the same steps, and lie plainly."""
        trained = 0
        for settings in self.optimizer.param_groups:
            states = [self.optimizer.state.get(p, {}) for p in settings["params"]]
            averaged = all(p in self._averages for p in settings["params"])
            if settings["amsgrad"] or settings["maximize"] or not all(states) or not averaged:
                return False
            for p, state in zip(settings["params"], states, strict=True):
                tensors = (p, state["exp_avg"], state["exp_avg_sq"], self._averages[p])
                if not plain(*tensors) or not all(x.is_contiguous() for x in tensors):
                    return False
            trained += len(states)
            if len({int(state["step"]) for state in states}) > 1:
                return False
        return trained == len(self._averages)

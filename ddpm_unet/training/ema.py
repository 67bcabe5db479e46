"""Averages of the weights: the exponential one, and those from which others are made afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn import Parameter

from ddpm_unet.training.post_hoc import exponent


class EMA:
    """Averages of `parameters`, float32, on the device where the parameters are.

    theta_ema <- d theta_ema + (1 - d) theta with d = min(decay, (1 + step) / (10 + step)), so
    that the first steps are forgotten quickly.

    Args:
        parameters: The trained parameters, float32.
        decay: The average's weight of its own past, 0 to 1.
    """

    def __init__(self, parameters: Sequence[Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.averages = [p.detach().clone() for p in self.parameters]
        self.decay = decay

    def decay_at(self, step: int) -> float:
        """The weight of the past at optimiser step number `step` (from 0)."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step number `step` (from 0)."""
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

    The weights after step i of t weigh (i^(g+1) - (i-1)^(g+1)) / t^(g+1): a power function of i.

    Args:
        parameters: The trained parameters, float32.
        length: Its standard deviation as a share of the training, sigma_rel.
    """

    def __init__(self, parameters: Sequence[Parameter], length: float) -> None:
        super().__init__(parameters, 0.0)
        self._power = exponent(length) + 1

    def decay_at(self, step: int) -> float:
        """The weight of the past at optimiser step number `step` (from 0)."""
        return (step / (step + 1)) ** self._power

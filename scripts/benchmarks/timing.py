"""Timing several sides in turns, so that a busy machine slows all of them alike.

Every sample stands between two short matrix products, whose rate says how fast the machine was
at that moment. Ratios are taken round by round, and medians over the rounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
        quick: Smaller work where the whole takes minutes.
        seconds: No new round begins after so many.
        least: Rounds at least, however long they take.
        most: Rounds at most.
        warm_up: Rounds before that do not count.
    """

    quick: bool = False
    seconds: float = 40.0
    least: int = 5
    most: int = 25
    warm_up: int = 1


QUICK = Effort(quick=True, seconds=2.0, least=2, most=7)


class Spread(NamedTuple):
    """A median and the quartiles around it."""

    low: float
    median: float
    high: float


class Timer:
    """Samples of each side, in seconds, and the machine's rate around each.

    Args:
        effort: How many rounds.
        clock: Gives seconds.
        rate: Gives the machine's rate at this moment, FLOP/s.

    Attributes:
        samples: Seconds, by side; equally many of every side.
        rates: Rate of the matrix products around each sample, FLOP/s.
    """

    def __init__(
        self,
        effort: Effort,
        clock: Callable[[], float] | None = None,
        rate: Callable[[], float] | None = None,
    ) -> None:
        self.effort = effort
        self.clock, self.rate = clock or settled_clock, rate or matrix_rate
        self.samples: dict[str, list[float]] = {}
        self.rates: dict[str, list[float]] = {}
        self._before: float | None = None

    def rounds(self) -> Iterator[None]:
        """Turns in which every side is to be sampled once; those of the warm-up are forgotten."""
        for _ in range(self.effort.warm_up):
            yield
        self.samples, self.rates = {}, {}
        start = self.clock()
        for number in range(self.effort.most):
            if number >= self.effort.least and self.clock() - start > self.effort.seconds:
                return
            yield

    @contextmanager
    def sample(self, side: str) -> Iterator[None]:
        """Within, the work of a side is done."""
        before = self.rate() if self._before is None else self._before
        start = self.clock()
        yield
        seconds = self.clock() - start
        after = self._before = self.rate()
        self.samples.setdefault(side, []).append(seconds)
        self.rates.setdefault(side, []).append((before + after) / 2)

    def alternate(self, sides: Mapping[str, Callable[[], object]]) -> Timer:
        """Call the sides in turns; gives itself."""
        for _ in self.rounds():
            for name, work in sides.items():
                with self.sample(name):
                    work()
        return self


def settled_clock() -> float:
    """Seconds, once a GPU that is in use has done all it was told."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def matrix_rate(size: int = 896) -> float:
    """FLOP/s of one float32 matrix product on the CPU, now."""
    a, out = torch.ones(size, size), torch.empty(size, size)
    start = time.perf_counter()
    torch.mm(a, a, out=out)
    return 2 * size**3 / (time.perf_counter() - start)


def thread_rates(seconds: float = 0.5) -> dict[int, float]:
    """Median FLOP/s of matrix products on one thread, on two, and on all that torch uses here."""
    everyone = torch.get_num_threads()
    rates: dict[int, float] = {}
    try:
        for threads in sorted({1, min(2, os.cpu_count() or 1), everyone}):
            torch.set_num_threads(threads)
            matrix_rate()
            end = time.perf_counter() + seconds
            seen = [matrix_rate()]
            while time.perf_counter() < end:
                seen.append(matrix_rate())
            rates[threads] = median(seen)
    finally:
        torch.set_num_threads(everyone)
    return rates


def spread(values: Sequence[float]) -> Spread:
    """The median and quartiles of one value or more."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    return Spread(*quantiles(values, n=4, method="inclusive"))


def quotients(upper: Sequence[float], lower: Sequence[float], factor: float = 1.0) -> Spread:
    """What `upper` is of `lower`, times `factor`, round by round."""
    return spread([factor * a / b for a, b in zip(upper, lower, strict=True)])

"""What the loop needs to know of a job, and how data are dealt to the processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor, nn

Batch = dict[str, Any]
Build = nn.Module | Callable[[], Any]
"""A network, or what builds one once the random generators are seeded."""


class Job(Protocol):
    """The parts in which trainings differ.

    Attributes:
        criterion: Validation score, the higher the better, whose best model is kept; None keeps
            the newest.
        digest: Of the data, to tell whether they changed between stop and resume; None where it is
            not known.
        workers: Loader processes.
    """

    criterion: str | None
    digest: str | None
    workers: int

    def describe(self) -> str:
        """One line on the data."""

    def build_model(self) -> nn.Module:
        """The network, freshly initialised or with given weights."""

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The optimizer's groups, each with its `params` and, if it has its own, `lr`."""

    def stream(self, model: nn.Module, accelerator: Accelerator) -> Any:
        """The training data: `stream.__getitems__(positions)` is a finished batch."""

    def name(self, position: int) -> str:
        """The image at a stream position, for messages."""

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss per image, float32 `[B]`, or one number, their mean."""

    def validate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Numbers on held-out data; every process calls it and gets the same ones."""

    def preview(self, model: nn.Module, accelerator: Accelerator, path: Path) -> None:
        """An image of what the model can do, written to `path` by the main process."""

    def export(self, model: nn.Module, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Write the model with the weights `state_dict` as a folder that other programs load."""


def set_up(network: Build) -> Any:
    """The network of a job."""
    return network if isinstance(network, nn.Module) else network()


def even_batches(
    count: int, batch_size: int, accelerator: Accelerator
) -> Iterator[tuple[range, float]]:
    """Batches of 0 .. count - 1 for this process, equally many on every process.

    A network that is split over the processes must run equally often on each, so where a process
    has one too few it gets the first batch again, with weight 0.

    Yields:
        The numbers in a batch, and its weight, 1 or 0.
    """
    starts = range(0, count, batch_size)
    for turn in range(math.ceil(len(starts) / accelerator.num_processes)):
        number = turn * accelerator.num_processes + accelerator.process_index
        start = starts[number] if number < len(starts) else 0
        yield range(start, min(start + batch_size, count)), float(number < len(starts))

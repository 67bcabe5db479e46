"""What the loop needs to know of a job, and how data are dealt to the processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

Batch = dict[str, Any]
Build = nn.Module | Callable[[], Any]
"""A network, or what builds one once the random generators are seeded."""


class Job:
    """What a training is of. `network`, `windows` and `description` serve most jobs as they are.

    Attributes:
        network: A network, or what builds it.
        windows: The training data: `windows.__getitems__(positions)` is a finished batch, and
            `windows.name(position)` the image at a stream position, for messages.
        description: Lines on the data, for the log.
        criterion: Validation score, the higher the better, whose best model is kept; None keeps
            the newest.
        digest: Of the data, to tell whether they changed between stop and resume; None where it is
            not known.
        workers: Loader processes; None for those of `speed.loader_processes`.
        reports: The loop writes the page of the run when it is done; else who trains does.
    """

    network: Build
    windows: Any
    description: str = ""
    criterion: str | None = None
    digest: str | None = None
    workers: int | None = 0
    reports: bool = True

    def describe(self) -> str:
        """What the data are, in lines."""
        return self.description

    def build_model(self) -> Any:
        """The network, freshly initialised or with given weights."""
        return self.network if isinstance(self.network, nn.Module) else self.network()

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The optimizer's groups, each with its `params` and, if it has its own, `lr`."""
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]

    def stream(self, model: nn.Module, accelerator: Accelerator) -> Any:
        """The training data, once the network is built."""
        return self.windows

    def name(self, position: int) -> str:
        """The image at a stream position, for messages."""
        return self.windows.name(position)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss per image, float32 `[B]`, or one number, their mean."""
        raise NotImplementedError

    def validate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Numbers on held-out data; every process calls it and gets the same ones."""
        return {}

    def preview(self, model: nn.Module, accelerator: Accelerator, path: Path) -> None:
        """An image of what the model can do, written to `path` by the main process."""

    def export(self, model: nn.Module, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Write the model with the weights `state_dict` as a folder that other programs load."""
        raise NotImplementedError

    def evaluator(self) -> Callable[[nn.Module, Accelerator, Path], dict[str, float]] | None:
        """What scores generated images in training, on every process; None where there are none.

        It also writes some of them to a file.
        """
        return None


def even_batches(
    count: int, batch_size: int, accelerator: Accelerator
) -> Iterator[tuple[range, float]]:
    """Batches of 0 .. count - 1 for this process, each with its weight; equally many on all.

    A network that is split over the processes must run equally often on each, so where a process
    has one too few it gets the first batch again, with weight 0.
    """
    starts = range(0, count, batch_size)
    for turn in range(math.ceil(len(starts) / accelerator.num_processes)):
        number = turn * accelerator.num_processes + accelerator.process_index
        start = starts[number] if number < len(starts) else 0
        yield range(count)[start : start + batch_size], float(number < len(starts))


def total_over(
    items: Any,
    count: int,
    batch_size: int,
    accelerator: Accelerator,
    summed: Callable[[range, Batch], Tensor],
) -> Tensor:
    """The sum over the first `count` items, shared by all processes, of the numbers of a batch.

    `summed` gets positions and the batch on the device, and gives their sums.
    """
    total: Tensor | float = 0.0
    for positions, counted in even_batches(count, batch_size, accelerator):
        batch = items.__getitems__(positions)
        batch = {key: value.to(accelerator.device) for key, value in batch.items()}
        with accelerator.autocast():
            total = total + summed(positions, batch) * counted
    return torch.as_tensor(accelerator.reduce(total, "sum"))

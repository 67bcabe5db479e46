"""What the loop needs to know of a job, and how the jobs deal their data to the processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from ddpm_unet.config import TrainConfig
from ddpm_unet.data.loader import StepBatches, make_loader

Batch = dict[str, Any]


class Job(Protocol):
    """The parts in which training to denoise and training to segment differ.

    Attributes:
        criterion: Validation score, the higher the better, whose best model is kept; None keeps
            the newest.
        digest: Of the data, to tell whether they changed between stop and resume.
    """

    criterion: str | None

    @property
    def digest(self) -> str | None:
        """Of the data, None where it is not known."""

    def describe(self) -> str:
        """One line on the data."""

    def build_model(self) -> nn.Module:
        """The network, freshly initialised or with given weights."""

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The optimiser's groups, each with its `params` and, if it has its own, `lr`."""

    def batches(
        self, model: nn.Module, first_step: int, accelerator: Accelerator
    ) -> Iterator[Batch]:
        """This process's micro-batches for the steps from `first_step` on."""

    def name(self, position: int) -> str:
        """The image at a stream position, for messages."""

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss per image, float32 `[B]`."""

    def validate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Numbers on held-out data; every process calls it and gets the same ones."""

    def preview(self, model: nn.Module, accelerator: Accelerator, path: Path) -> None:
        """An image of what the model can do, written to `path` by the main process."""

    def export(self, model: nn.Module, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Write the model with the weights `state_dict` as a folder that other programs load."""


def micro_batches(
    stream: Dataset[Any],
    first_step: int,
    train: TrainConfig,
    workers: int,
    accelerator: Accelerator,
) -> Iterator[Batch]:
    """This process's micro-batches of a stream, from step `first_step` to the last."""
    positions = StepBatches(
        range(first_step, train.steps),
        train.batch_size,
        accelerator.process_index,
        accelerator.num_processes,
        train.micro_batch,
    )
    return make_loader(
        stream, positions, workers=workers, pin_memory=accelerator.device.type == "cuda"
    )


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

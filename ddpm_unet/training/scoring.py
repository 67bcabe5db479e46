"""Whole pictures scored: those that validate during training, those kept to test after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator, DistributedType, PartialState
from torch import Tensor, nn

from ddpm_unet.config import SegmentConfig
from ddpm_unet.cpu import accelerate_cpu
from ddpm_unet.data.labelled import PairSet
from ddpm_unet.data.splits import Split
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.plots import save_picture
from ddpm_unet.models.segmenter import load_segmentation_model
from ddpm_unet.replace import replace_json
from ddpm_unet.training.job import even_batches
from ddpm_unet.training.run_folder import RunFolder


class ScoredJob(Protocol):
    """What scoring needs to know of a job.

    Attributes:
        config: Its settings.
        test: The pictures kept to test.
    """

    config: Any

    @property
    def test(self) -> PairSet[Any] | None:
        """The pictures kept to test."""

    def count(self, model: nn.Module, pictures: Any, number: int, device: torch.device) -> Tensor:
        """What a picture adds to the scores: a tensor on `device`, summed over the pictures."""

    def scores(self, counts: Tensor) -> dict[str, float]:
        """The scores, of the sum of all pictures' `count`."""

    def further_scores(
        self, model: nn.Module, pictures: Any, device: torch.device
    ) -> dict[str, float]:
        """Scores of the tested pictures that are no function of such a sum."""

    def compare(self, model: nn.Module, pictures: Any, device: torch.device) -> np.ndarray:
        """The first picture beside what is made of it, `uint8 [H, W, 3]`."""


def somebody_validates(config: SegmentConfig, split: Split) -> bool:
    """Whether any picture validates.

    Raises:
        UserError: None does, and training is to wait for its score.
    """
    if not split["validation"] and config.train.early_stopping_patience:
        raise UserError(
            f"train.early_stopping_patience {config.train.early_stopping_patience}: no image "
            "validates; set data.split.validation, or train.early_stopping_patience 0"
        )
    return bool(split["validation"])


def score_validation(
    job: ScoredJob, model: nn.Module, pictures: PairSet[Any], accelerator: Accelerator
) -> dict[str, float]:
    """Scores of whole pictures, shared among the processes."""
    shares: Iterable[tuple[Sequence[int], float]] = even_batches(len(pictures), 1, accelerator)
    if accelerator.distributed_type == DistributedType.FSDP:
        # A sharded network needs every process for every tile, and pictures differ in tiles.
        main = float(accelerator.is_main_process)
        shares = (([number], main) for number in range(len(pictures)))
    counts = []
    for (number,), counted in shares:
        with accelerator.autocast():
            found = job.count(model, pictures, number, accelerator.device)
        counts.append(found if counted else torch.zeros_like(found))
    total = torch.stack(counts).sum(dim=0)
    return job.scores(torch.as_tensor(accelerator.reduce(total, "sum")))


def score_test(job: ScoredJob, run: RunFolder) -> dict[str, float]:
    """Score the run's model on the pictures kept to test, if any, in the main process.

    Writes `scores.json`, and `test.png` with the first picture and what is made of it.
    """
    state = PartialState()
    if job.test is None or not state.is_main_process:
        return {}
    model = load_segmentation_model(run.model).to(state.device)
    if job.config.train.native:
        accelerate_cpu(model)
    with torch.inference_mode():
        counts = [job.count(model, job.test, i, state.device) for i in range(len(job.test))]
        save_picture(job.compare(model, job.test, state.device), run.path / "test.png")
        further = job.further_scores(model, job.test, state.device)
    scores = job.scores(torch.stack(counts).sum(dim=0)) | further
    replace_json(run.path / "scores.json", scores)
    print(
        f"on {len(job.test)} test picture(s): "
        + ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
    )
    return scores

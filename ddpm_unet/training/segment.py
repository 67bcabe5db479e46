"""The job of learning to segment, from a denoiser or from scratch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from ddpm_unet.config import SegmentConfig
from ddpm_unet.data.check import check_pairs
from ddpm_unet.data.labelled import LabelledSet
from ddpm_unet.data.loader import StepBatches, make_loader
from ddpm_unet.data.masks import IGNORE_INDEX
from ddpm_unet.data.pair_stream import PairStream
from ddpm_unet.data.pairs import BUILTIN_HELD_OUT, BUILTIN_IMAGES
from ddpm_unet.data.sources import open_images
from ddpm_unet.data.splits import split_pictures
from ddpm_unet.data.stream import Stream, to_model_range
from ddpm_unet.diffusion.objective import Objective
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.metrics import confusion, overlap
from ddpm_unet.evaluation.plots import save_picture
from ddpm_unet.inference.colors import class_colors
from ddpm_unet.inference.overlay import displayable, draw_overlay
from ddpm_unet.inference.segmentation import (
    Preparation,
    SegmentationModel,
    class_probabilities,
    tiling,
)
from ddpm_unet.inference.tiles import predict_tiles
from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.segmenter import Segmenter, load_segmentation_model
from ddpm_unet.models.unet import UNet
from ddpm_unet.training.job import Batch, even_batches
from ddpm_unet.training.losses import segmentation_loss
from ddpm_unet.training.run_folder import RunFolder

SCRATCH = "scratch"


class SegmentJob:
    """A network that labels pixels, trained on masks.

    Args:
        config: All settings; `init` is a folder or "scratch".

    Raises:
        UserError: The labelled set has faults (a line each), or does not fit the network.
    """

    def __init__(self, config: SegmentConfig) -> None:
        self.config = config
        report = check_pairs(config.data)
        print(report)
        report.stop_at_faults()
        self.report = report
        self.split = split_pictures(report.names, report.sizes, report.config.split)
        border = config.loss.name == "border"
        self.labelled = LabelledSet(report, self.split["train"], border)
        self.criterion: str | None = None
        self.validation: LabelledSet | None = None
        if self.split["validation"]:
            self.validation = LabelledSet(report, self.split["validation"])
            self.criterion = config.criterion
        self.class_weights = (
            torch.tensor(config.loss.class_weights) if config.loss.class_weights else None
        )
        if self.class_weights is not None and len(self.class_weights) != len(self.class_names):
            raise UserError(
                f"loss.class_weights has {len(self.class_weights)} numbers for "
                f"{len(self.class_names)} classes; give one per class, or none"
            )
        self.objective = Objective(config.diffusion)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""
        return tuple(self.labelled.class_names)

    @property
    def joint(self) -> bool:
        """Whether the network learns to denoise in the same steps."""
        return self.config.architecture == "unet" and self.config.head.transfer == "joint"

    def describe(self) -> str:
        """What trains and what validates."""
        return f"{self.labelled.describe()}\n{self.split['how']}"

    @cached_property
    def test(self) -> LabelledSet | None:
        """The pictures kept to test: those of the split, or of the built-in set."""
        if self.config.data.images == BUILTIN_IMAGES and not self.config.data.include_held_out:
            return LabelledSet(check_pairs(replace(self.config.data, images=BUILTIN_HELD_OUT)))
        return LabelledSet(self.report, self.split["test"]) if self.split["test"] else None

    def build_model(self) -> SegmentationModel:
        """The network, on the denoiser's weights or freshly initialised."""
        config, channels = self.config, self.labelled.channels
        classes: dict[str, Any] = {
            "num_classes": len(self.class_names),
            "class_names": self.class_names,
            "class_colors": self.report.config.class_colors,
        }
        if config.architecture == "classic":
            return ClassicUNet(replace(config.classic, in_channels=channels, **classes))
        head = replace(config.head, **classes)
        if config.init == SCRATCH:
            return Segmenter(
                UNet(replace(config.model, in_channels=channels, out_channels=channels)), head
            )
        return Segmenter.from_denoiser(str(config.init), head, channels)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """One group a block where learning rates differ."""
        if isinstance(model, Segmenter):
            return model.parameter_groups(self.config.train.lr, self.config.layer_decay)
        return [{"params": list(model.parameters())}]

    def batches(
        self, model: nn.Module, first_step: int, accelerator: Accelerator
    ) -> Iterator[Batch]:
        """This process's micro-batches."""
        train, data = self.config.train, self.config.data
        network: Any = model
        stream: Dataset[Batch] = PairStream(self.labelled, self.config.seed, network.margin)
        if self.joint:
            unlabelled = replace(
                self.config.unlabelled, size=data.size, channels=self.labelled.channels
            )
            stream = WithUnlabelled(
                stream, Stream(open_images(unlabelled), unlabelled, self.config.seed)
            )
        positions = StepBatches(
            range(first_step, train.steps),
            train.batch_size,
            accelerator.process_index,
            accelerator.num_processes,
            train.micro_batch,
        )
        return make_loader(
            stream,
            positions,
            workers=data.workers,
            pin_memory=accelerator.device.type == "cuda",
        )

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Segmentation loss per image, in joint training with the denoising loss added."""
        images, masks = batch["image"], batch["mask"]
        denoising: Tensor | float = 0.0
        if self.joint:
            logits, denoising = self._joint(model, images, batch)
        else:
            logits = model(images)
        weights = self.class_weights
        segmenting = segmentation_loss(
            self.config.loss.name,
            logits,
            masks,
            class_weights=None if weights is None else weights.to(images.device),
            pixel_weights=batch.get("weight"),
            focal_gamma=self.config.loss.focal_gamma,
        )
        return segmenting + self.config.loss.denoise_weight * denoising

    def _joint(self, model: nn.Module, images: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """One pass over clean labelled and noisy unlabelled images: logits, denoising losses."""
        clean = to_model_range(batch["unlabelled"])
        timesteps, noise = self.objective.to(images.device).draw(
            self.config.seed, batch["position"], clean.shape[1:], images.device
        )
        told = torch.full_like(timesteps, self.config.head.timestep)
        logits = images.new_empty(0)

        def denoiser(noisy: Tensor, t: Tensor) -> Tensor:
            nonlocal logits
            predictions, scores = model(torch.cat([images, noisy]), torch.cat([told, t]), both=True)
            logits = scores[: len(images)]
            return predictions[len(images) :]

        losses = self.objective.losses(denoiser, clean, timesteps, noise)
        return logits, losses

    def validate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Overlap with the masks of the validation pictures, predicted whole."""
        return {} if self.validation is None else self.score(model, self.validation, accelerator)

    def score(
        self, model: nn.Module, pictures: LabelledSet, accelerator: Accelerator
    ) -> dict[str, float]:
        """Dice and intersection over union per class and in the mean, and the pixel error.

        Pixels of all pictures are counted together; unlabelled ones do not count.
        """
        names = self.class_names
        counts = torch.zeros(len(names), len(names), dtype=torch.int64, device=accelerator.device)
        for numbers, counted in even_batches(len(pictures), 1, accelerator):
            item = pictures[numbers[0]]
            predicted = self._predict(model, item["image"], accelerator).argmax(dim=0)
            counts += int(counted) * confusion(
                predicted, item["mask"].to(predicted.device), len(names), IGNORE_INDEX
            )
        scores = overlap(torch.as_tensor(accelerator.reduce(counts, "sum")))
        return {
            "mean_dice": scores.mean_dice,
            "mean_iou": scores.mean_iou,
            "pixel_error": scores.pixel_error,
            **{f"dice_{n}": float(v) for n, v in zip(names, scores.dice, strict=True)},
            **{f"iou_{n}": float(v) for n, v in zip(names, scores.iou, strict=True)},
        }

    def draw(
        self,
        model: nn.Module,
        accelerator: Accelerator,
        path: Path,
        pictures: LabelledSet | None = None,
    ) -> None:
        """The first validation picture (else training one) under its mask and its prediction."""
        pictures = pictures or self.validation or self.labelled
        item = pictures[0]
        predicted = self._predict(model, item["image"], accelerator).argmax(dim=0).cpu().numpy()
        if accelerator.is_main_process:
            save_picture(self.comparison(item, predicted), path)

    def comparison(self, item: dict[str, Tensor], predicted: np.ndarray) -> np.ndarray:
        """True mask and prediction over the image, side by side, `uint8 [H, 2 W, 3]`."""
        image = displayable(((item["image"] + 1) / 2).movedim(0, -1).numpy())
        colors = class_colors(len(self.class_names), self.report.config.class_colors)
        truth = item["mask"].clamp(min=0).numpy()
        sides: Sequence[np.ndarray] = [
            draw_overlay(image, mask.astype(np.uint8), colors) for mask in (truth, predicted)
        ]
        return np.concatenate(sides, axis=1)

    def _predict(self, model: nn.Module, image: Tensor, accelerator: Accelerator) -> Tensor:
        network: Any = model
        config = self.config.predict
        with accelerator.autocast():
            return predict_tiles(
                class_probabilities(network, config.turns),
                image,
                tiling(network, config),
                device=accelerator.device,
            )

    def export(self, model: nn.Module, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Write a folder that `scripts/segment.py` reads, and the split beside it."""
        network: Any = model
        network.save_pretrained(folder, state_dict)
        data = self.config.data
        Preparation(network.in_channels, data.scale, data.value_range).write(folder)
        (folder.parent / "split.yaml").write_text(yaml.safe_dump(dict(self.split), sort_keys=False))


def score_test(job: SegmentJob, run: RunFolder) -> dict[str, float]:
    """Score the run's model on the pictures kept to test, if any.

    Writes `scores.json`, and `test.png` with the first picture's mask and prediction.
    """
    if job.test is None:
        return {}
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    model = load_segmentation_model(run.model).to(accelerator.device)
    with torch.inference_mode():
        scores = job.score(model, job.test, accelerator)
        if accelerator.is_main_process:
            job.draw(model, accelerator, run.path / "test.png", job.test)
            (run.path / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    accelerator.print(
        f"on {len(job.test)} test picture(s): "
        + ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
    )
    return scores


class WithUnlabelled(Dataset[Batch]):
    """A labelled stream with an unlabelled image at every position."""

    def __init__(self, labelled: Dataset[Batch], unlabelled: Stream) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """The labelled batch, and "unlabelled" images."""
        labelled: Any = self.labelled
        batch: Batch = labelled.__getitems__(positions)
        return batch | {"unlabelled": self.unlabelled.__getitems__(positions)["image"]}

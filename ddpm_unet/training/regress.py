"""The job of learning to predict pictures from pictures, from a denoiser or from scratch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ddpm_unet.config import SegmentConfig
from ddpm_unet.config.reading import check_limits
from ddpm_unet.data.check import check_pairs
from ddpm_unet.data.labelled import TargetSet
from ddpm_unet.data.pair_stream import PairStream
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.data.splits import split_images
from ddpm_unet.data.targets import target_settings
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.image_quality import SMALLEST, image_scores, torchmetrics_of_images
from ddpm_unet.evaluation.plots import save_picture
from ddpm_unet.inference.overlay import displayable
from ddpm_unet.inference.predictor import (
    SegmentationModel,
    add_residual,
    regressed_values,
    tiling,
)
from ddpm_unet.inference.tiles import predict_tiles
from ddpm_unet.training.job import Batch, micro_batches
from ddpm_unet.training.picture_losses import picture_loss
from ddpm_unet.training.pixel_network import build_network, export, parameter_groups
from ddpm_unet.training.scoring import score_validation, somebody_validates

SCORES = ("psnr", "ssim", "mae")


class RegressJob:
    """A network that gives every pixel regressed_values, trained on pictures.

    Args:
        config: All settings; `init` is a folder or "scratch".

    Raises:
        UserError: The pairs have faults (a line each), or settings contradict each other.
    """

    def __init__(self, config: SegmentConfig) -> None:
        check_limits(config)
        torchmetrics_of_images()
        self.config = config = replace(config, data=target_settings(config.data))
        self.report = check_pairs(config.data)
        self.targets = self.report.target_images()
        self._check_settings()
        self.split = split_images(self.report.names, self.report.sizes, self.report.config.split)
        self.pairs = TargetSet(self.report, self.split["train"])
        self.validation: TargetSet | None = None
        self.criterion: str | None = None
        if somebody_validates(config, self.split):
            self.validation = self._scored("validation")
            self.criterion = "psnr"

    def describe(self) -> str:
        """What the check found, what trains and what validates."""
        return "\n".join(
            [str(self.report), self.split["how"], f"training on {self.pairs.describe()}"]
        )

    @property
    def digest(self) -> str | None:
        """Of the data."""
        return None

    def name(self, position: int) -> str:
        """The picture at a stream position."""
        return PairStream(self.pairs, self.config.seed).name(position)

    @cached_property
    def test(self) -> TargetSet | None:
        """The pictures that the split keeps to test."""
        return self._scored("test") if self.split["test"] else None

    def build_model(self) -> SegmentationModel:
        """The network, on the denoiser's weights or freshly initialised.

        Raises:
            UserError: It does not fit the images or `data.size`, or there is no such denoiser.
        """
        outputs = {"num_classes": self.targets.channels, "class_names": (), "class_colors": ()}
        return build_network(self.config, self.report.channels, outputs)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """One group a block where learning rates differ."""
        return parameter_groups(model, self.config)

    def batches(
        self, model: nn.Module, first_step: int, accelerator: Accelerator
    ) -> Iterator[Batch]:
        """This process's micro-batches."""
        config, network = self.config, _any(model)
        stream = PairStream(self.pairs, config.seed, network.margin)
        return micro_batches(stream, first_step, config.train, config.data.workers, accelerator)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss per image; of a network under deep supervision, the mean over its outputs."""
        outputs, settings = model(batch["image"]), self.config.regression
        supervised = outputs if isinstance(outputs, tuple) else (outputs,)
        losses = [
            picture_loss(
                settings.loss,
                add_residual(output, batch["image"], settings.residual),
                batch["target"],
                settings.huber_delta,
            )
            for output in supervised
        ]
        return torch.stack(losses).mean(dim=0)

    def validate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Likeness to the pictures that validate, predicted whole."""
        if self.validation is None:
            return {}
        return score_validation(self, model, self.validation, accelerator)

    def count(
        self, model: nn.Module, pictures: TargetSet, number: int, device: torch.device
    ) -> Tensor:
        """A picture's `SCORES`, and 1, `float32 [4]` on `device`."""
        item = pictures[number]
        predicted = self._predict(model, item["image"], device)
        found = image_scores(predicted, item["target"].to(device))
        return torch.tensor([*(found[name] for name in SCORES), 1.0], device=device)

    def scores(self, counts: Tensor) -> dict[str, float]:
        """Mean over the pictures of PSNR, SSIM and mean absolute error, at `data.scale`.

        Args:
            counts: The sum of all pictures' `count`.
        """
        *sums, pictures = counts.tolist()
        return {name: value / pictures for name, value in zip(SCORES, sums, strict=True)}

    def further_scores(
        self, model: nn.Module, pictures: TargetSet, device: torch.device
    ) -> dict[str, float]:
        """None."""
        return {}

    def preview(self, model: nn.Module, accelerator: Accelerator, path: Path) -> None:
        """The first validation picture (else training one), its prediction and its target."""
        with accelerator.autocast():
            picture = self.compare(model, self.validation or self.pairs, accelerator.device)
        if accelerator.is_main_process:
            save_picture(picture, path)

    def compare(self, model: nn.Module, pictures: TargetSet, device: torch.device) -> np.ndarray:
        """The first picture, its prediction and its target, `uint8 [H, 3 W, 3]`.

        Of a volume, the middle slice.
        """
        item = pictures[0]
        predicted = self._predict(model, item["image"], device).cpu()
        image = np.moveaxis(pictures.item(0).image, 0, -1)
        shown = [displayable(image), *(shades(planes) for planes in (predicted, item["target"]))]
        if image.ndim == 4:
            shown = [volume[len(volume) // 2] for volume in shown]
        return np.concatenate(shown, axis=1)

    def export(self, model: nn.Module, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Write a folder that `scripts/segment.py` reads, and the split beside it."""
        data = self.config.data
        preparation = Preprocessing(
            _any(model).in_channels,
            data.scale,
            data.value_range,
            targets=self.targets,
            residual=self.config.regression.residual,
        )
        export(model, state_dict, folder, preparation, self.split)

    def _predict(self, model: nn.Module, image: Tensor, device: torch.device) -> Tensor:
        """What a whole picture becomes, `float32 [K, H, W]` on `device`."""
        predict, network = self.config.predict, _any(model)
        found = regressed_values(network, self.config.regression.residual, predict.tta)
        return predict_tiles(found, image, tiling(network, predict), device=device).to(device)

    def _scored(self, part: str) -> TargetSet:
        pictures = TargetSet(self.report, self.split[part])  # type: ignore[literal-required]
        small = [i for i, size in enumerate(pictures.sizes) if min(size) < SMALLEST]
        if small:
            raise UserError(
                f"{pictures.name(small[0])}: is scored, and under {SMALLEST} pixels wide at "
                f"data.scale {self.config.data.scale:g}, too few for SSIM; raise data.scale, leave "
                "it out, or change data.split"
            )
        return pictures

    def _check_settings(self) -> None:
        config, channels = self.config, self.report.channels
        if config.architecture == "unet" and config.head.transfer == "joint":
            raise UserError('head.transfer joint: is for task "segment"; take finetune')
        if config.architecture == "classic" and config.classic.one_logit:
            raise UserError('classic.one_logit: is for task "segment"; leave it out')
        if config.regression.loss == "ssim" and config.data.size < SMALLEST:
            raise UserError(
                f"regression.loss ssim: data.size {config.data.size} is under its window of "
                f"{SMALLEST} pixels; raise it"
            )
        if config.regression.residual and channels < self.targets.channels:
            raise UserError(
                f"regression.residual: the targets have {self.targets.channels} channels and are to"
                f" be added to the images' first ones, which have {channels}; leave it out"
            )


def shades(planes: Tensor) -> np.ndarray:
    """`[K, *space]` in [-1, 1] as `uint8 [*space, 3]`, for people; of two channels the first."""
    levels = ((planes.clamp(-1, 1) + 1) * 127.5).round().byte()
    return displayable(levels.movedim(0, -1).numpy())


def _any(model: nn.Module) -> Any:
    """A network with the attributes of a `SegmentationModel`."""
    return model

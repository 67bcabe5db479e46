"""The job of learning to segment, from a denoiser or from scratch."""

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
from torch.utils.data import Dataset

from ddpm_unet.config import SegmentConfig
from ddpm_unet.config.reading import check_limits
from ddpm_unet.data.check import check_pairs
from ddpm_unet.data.labelled import LabelledSet
from ddpm_unet.data.masks import IGNORE_INDEX
from ddpm_unet.data.pair_stream import PairStream, WithExtra
from ddpm_unet.data.pairs import BUILTIN_HELD_OUT, BUILTIN_IMAGES, POINTS
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.data.splits import split_images
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.metrics import confusion, overlap
from ddpm_unet.evaluation.plots import save_picture
from ddpm_unet.evaluation.rand import thinned_scores
from ddpm_unet.inference.overlay import class_colors, side_by_side
from ddpm_unet.inference.predictor import SegmentationModel, class_probabilities, tiling
from ddpm_unet.inference.tiles import predict_tiles
from ddpm_unet.training.job import Batch, micro_batches
from ddpm_unet.training.joint import JointDenoising
from ddpm_unet.training.losses import segmentation_loss
from ddpm_unet.training.pixel_network import build_network, export, parameter_groups
from ddpm_unet.training.scoring import score_validation, somebody_validates


class SegmentJob:
    """A network that labels pixels, trained on masks.

    Args:
        config: All settings; `init` is a folder or "scratch".

    Raises:
        UserError: The labelled set has faults (a line each), or settings contradict each other.
    """

    def __init__(self, config: SegmentConfig) -> None:
        check_limits(config)
        self.config = config
        self.report = check_pairs(config.data)
        code = self.report.mask_code()
        self.class_names = tuple(code.class_names)
        self._check_settings()
        self.split = split_images(self.report.names, self.report.sizes, self.report.config.split)
        border = config.loss.name == "border"
        self.labelled = LabelledSet(self.report, self.split["train"], border)
        extra = self.report.extra
        self.extra = LabelledSet(extra, border=border) if extra else None
        self.validation: LabelledSet | None = None
        self.criterion: str | None = None
        if somebody_validates(config, self.split):
            self.validation = LabelledSet(self.report, self.split["validation"])
            self.criterion = config.criterion
        weights = config.loss.class_weights
        self.class_weights = torch.tensor(weights) if weights else None
        self.joint: JointDenoising | None = None
        if config.architecture == "unet" and config.head.transfer == "joint":
            self.joint = JointDenoising(config, self.report.channels)

    def describe(self) -> str:
        """What the check found, what trains and what validates."""
        lines = [str(self.report), self.split["how"], f"training on {self.labelled.describe()}"]
        if self.extra:
            lines.append(f"and on further {self.extra.describe()}")
        if self.joint:
            lines.append(f"denoising {self.joint.images.describe()}")
        return "\n".join(lines)

    @property
    def digest(self) -> str | None:
        """Of the data."""
        return None

    def name(self, position: int) -> str:
        """The picture at a stream position."""
        return self._stream().name(position)

    @cached_property
    def test(self) -> LabelledSet | None:
        """The pictures kept to test: those of the split, or of the built-in set."""
        if self.split["test"]:
            return LabelledSet(self.report, self.split["test"])
        data = self.config.data
        if data.images == BUILTIN_IMAGES and not data.include_held_out:
            return LabelledSet(check_pairs(replace(data, images=BUILTIN_HELD_OUT)))
        return None

    def build_model(self) -> SegmentationModel:
        """The network, on the denoiser's weights or freshly initialised.

        Raises:
            UserError: It does not fit the images or `data.size`, or there is no such denoiser.
        """
        classes = {
            "num_classes": len(self.class_names),
            "class_names": self.class_names,
            "class_colors": self.report.config.class_colors,
        }
        return build_network(self.config, self.report.channels, classes)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """One group a block where learning rates differ."""
        return parameter_groups(model, self.config)

    def batches(
        self, model: nn.Module, first_step: int, accelerator: Accelerator
    ) -> Iterator[Batch]:
        """This process's micro-batches."""
        config = self.config
        network: Any = model
        stream: Dataset[Batch] = self._stream(network.margin)
        if self.joint:
            stream = self.joint.beside(stream, network.unet.config.in_channels)
        return micro_batches(stream, first_step, config.train, config.data.workers, accelerator)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Segmentation loss per image, in joint training with the denoising loss added.

        Of a network under deep supervision, the mean over its outputs.
        """
        loss = self.config.loss
        if self.joint:
            logits, denoising = self.joint.losses(model, batch)
        else:
            logits, denoising = model(batch["image"]), torch.zeros(())
        weights = self.class_weights
        supervised = logits if isinstance(logits, tuple) else (logits,)
        segmenting = [
            segmentation_loss(
                loss.name,
                scores,
                batch["mask"],
                class_weights=None if weights is None else weights.to(scores.device),
                pixel_weights=batch.get("weight"),
                focal_gamma=loss.focal_gamma,
            )
            for scores in supervised
        ]
        return torch.stack(segmenting).mean(dim=0) + loss.denoise_weight * denoising

    def validate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Overlap with the masks of the validation pictures, predicted whole."""
        if self.validation is None:
            return {}
        return score_validation(self, model, self.validation, accelerator)

    def count(
        self, model: nn.Module, pictures: LabelledSet, number: int, device: torch.device
    ) -> Tensor:
        """Pixels of a picture by true and predicted class, `int64 [K, K]` on `device`."""
        item = pictures[number]
        predicted = self._predict(model, item["image"], device)
        target = item["mask"].to(device)
        return confusion(predicted, target, len(self.class_names), IGNORE_INDEX)

    def scores(self, counts: Tensor) -> dict[str, float]:
        """Dice and intersection over union, in the mean and per class, and the pixel error.

        Pixels of all pictures count together, at `data.scale`; unlabelled ones do not count. A
        class that neither masks nor predictions have gets no score.

        Args:
            counts: The sum of all pictures' `count`.
        """
        found = overlap(counts)
        values = {"mean_dice": found.mean_dice, "mean_iou": found.mean_iou}
        values["pixel_error"] = found.pixel_error
        for kind, numbers in (("dice", found.dice), ("iou", found.iou)):
            for name, number in zip(self.class_names, numbers.tolist(), strict=True):
                if not np.isnan(number):
                    values[f"{kind}_{name}"] = number
        return values

    def further_scores(
        self, model: nn.Module, pictures: LabelledSet, device: torch.device
    ) -> dict[str, float]:
        """V_rand and V_info of the cells, where `cell_class` says which class they are.

        After border thinning, the best over thresholds of the cells' probability: see
        `evaluation.rand`.
        """
        cell = self.config.cell_class
        if cell is None:
            return {}
        items = [pictures[number] for number in range(len(pictures))]
        cells = [self._probabilities(model, item["image"], device)[cell] for item in items]
        found = thinned_scores(
            [(item["mask"] == cell).numpy() for item in items],
            [probability.clamp(0, 1).cpu().numpy() for probability in cells],
        )
        return {"v_rand": found.v_rand, "v_info": found.v_info}

    def preview(self, model: nn.Module, accelerator: Accelerator, path: Path) -> None:
        """The first validation picture (else training one) under its mask and its prediction."""
        with accelerator.autocast():
            picture = self.compare(model, self.validation or self.labelled, accelerator.device)
        if accelerator.is_main_process:
            save_picture(picture, path)

    def compare(self, model: nn.Module, pictures: LabelledSet, device: torch.device) -> np.ndarray:
        """The first picture under its mask, and under its prediction, `uint8 [H, 2 W, 3]`.

        Of a volume, slices.
        """
        item, image = pictures[0], np.moveaxis(pictures.item(0).image, 0, -1)
        predicted = self._predict(model, item["image"], device).cpu()
        masks = [m.numpy().astype(np.uint8) for m in (item["mask"].clamp(min=0), predicted)]
        colors = class_colors(len(self.class_names), self.report.config.class_colors)
        return side_by_side(image, masks, colors)

    def export(self, model: nn.Module, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Write a folder that `scripts/segment.py` reads, and the split beside it."""
        network: Any = model
        data = self.config.data
        voxel = data.voxel if data.masks == POINTS else None
        preparation = Preprocessing(network.in_channels, data.scale, data.value_range, voxel)
        export(model, state_dict, folder, preparation, self.split)

    def _predict(self, model: nn.Module, image: Tensor, device: torch.device) -> Tensor:
        """Class of every pixel of a whole picture, `int64 [H, W]` on `device`."""
        return self._probabilities(model, image, device).argmax(dim=0).to(device)

    def _probabilities(self, model: nn.Module, image: Tensor, device: torch.device) -> Tensor:
        """Probability of every class of a whole picture, `float32 [K, H, W]`."""
        network: Any = model
        probabilities = class_probabilities(network, self.config.predict.tta)
        tiles = tiling(network, self.config.predict)
        return predict_tiles(probabilities, image, tiles, device=device)

    def _stream(self, context: int = 0) -> PairStream | WithExtra:
        """The training windows, with so many pixels around them."""
        stream = PairStream(self.labelled, self.config.seed, context)
        if self.extra is None:
            return stream
        further = PairStream(self.extra, self.config.seed, context)
        return WithExtra(stream, further, self.config.data.extra.share)

    def _check_settings(self) -> None:
        weights, loss = self.config.loss.class_weights, self.config.loss.name
        if weights and len(weights) != len(self.class_names):
            raise UserError(
                f"loss.class_weights has {len(weights)} numbers for {len(self.class_names)} "
                "classes; give one per class, or none"
            )
        if weights and not sum(weights):
            raise UserError("loss.class_weights are all 0; give at least one class a weight")
        if weights and loss == "border":
            raise UserError(
                "loss.class_weights: the maps of loss.name border balance the classes themselves; "
                "leave one of the two out"
            )
        cell = self.config.cell_class
        if cell is not None and (len(self.class_names) != 2 or self.config.data.dims == 3):
            raise UserError(
                "cell_class: is for pictures (data.dims 2) of two classes; leave it out"
            )
        if cell is not None and cell not in (0, 1):
            raise UserError(f"cell_class {cell}: there are classes 0 and 1")
        if self.config.data.dims == 3 and loss == "border":
            raise UserError("loss.name border: its weight maps are of pictures; data.dims is 3")

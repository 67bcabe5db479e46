"""The job of learning to segment, from a denoiser or from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator, DistributedType, PartialState
from torch import Tensor, nn
from torch.utils.data import Dataset

from ddpm_unet.config import SegmentConfig
from ddpm_unet.config.limits import check_limits
from ddpm_unet.data.check import check_pairs
from ddpm_unet.data.labelled import LabelledSet
from ddpm_unet.data.masks import IGNORE_INDEX
from ddpm_unet.data.pair_stream import PairStream
from ddpm_unet.data.pairs import BUILTIN_HELD_OUT, BUILTIN_IMAGES, POINTS
from ddpm_unet.data.splits import split_pictures
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.metrics import confusion, overlap
from ddpm_unet.evaluation.plots import save_picture
from ddpm_unet.inference.colors import class_colors
from ddpm_unet.inference.overlay import side_by_side
from ddpm_unet.inference.segmentation import (
    Preparation,
    SegmentationModel,
    class_probabilities,
    dimensions,
    tiling,
)
from ddpm_unet.inference.tiles import predict_tiles
from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.segmenter import Segmenter, load_segmentation_model
from ddpm_unet.models.unet import UNet
from ddpm_unet.replace import replace_json, replace_text
from ddpm_unet.training.job import Batch, even_batches, micro_batches
from ddpm_unet.training.joint import SCRATCH, JointDenoising
from ddpm_unet.training.losses import segmentation_loss
from ddpm_unet.training.run_folder import RunFolder


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
        self.split = split_pictures(self.report.names, self.report.sizes, self.report.config.split)
        border = config.loss.name == "border"
        self.labelled = LabelledSet(self.report, self.split["train"], border)
        self.validation: LabelledSet | None = None
        self.criterion: str | None = None
        if self.split["validation"]:
            self.validation = LabelledSet(self.report, self.split["validation"])
            self.criterion = config.criterion
        elif config.train.patience:
            raise UserError(
                f"train.patience {config.train.patience}: no picture validates; set "
                "data.split.validation, or train.patience 0"
            )
        weights = config.loss.class_weights
        self.class_weights = torch.tensor(weights) if weights else None
        self.joint: JointDenoising | None = None
        if config.architecture == "unet" and config.head.transfer == "joint":
            self.joint = JointDenoising(config, self.report.channels)

    def describe(self) -> str:
        """What the check found, what trains and what validates."""
        lines = [str(self.report), self.split["how"], f"training on {self.labelled.describe()}"]
        if self.joint:
            lines.append(f"denoising {self.joint.images.describe()}")
        return "\n".join(lines)

    def name(self, position: int) -> str:
        """The picture at a stream position."""
        return PairStream(self.labelled, self.config.seed).name(position)

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
        model, size = self._network(), self.config.data.size
        if dimensions(model) != self.config.data.dims:
            raise UserError(
                f"data.dims {self.config.data.dims}: the network is one of {dimensions(model)} "
                "dimensions; set data.dims to that, or take another network"
            )
        side = size + 2 * model.margin
        if model.valid_size(side) != side:
            raise UserError(
                f"data.size {size}: the network without padding gives no window of that size; "
                f"the next that fits is {model.valid_size(side) - 2 * model.margin}"
            )
        tiling(model, self.config.predict)
        return model

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """One group a block where learning rates differ."""
        if isinstance(model, Segmenter):
            return model.parameter_groups(self.config.train.lr, self.config.layer_decay)
        return [{"params": list(model.parameters())}]

    def batches(
        self, model: nn.Module, first_step: int, accelerator: Accelerator
    ) -> Iterator[Batch]:
        """This process's micro-batches."""
        config = self.config
        network: Any = model
        stream: Dataset[Batch] = PairStream(self.labelled, self.config.seed, network.margin)
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
        size = len(self.class_names)
        counts = torch.zeros(size, size, dtype=torch.int64, device=accelerator.device)
        pictures = len(self.validation)
        shares: Iterable[tuple[Sequence[int], float]] = even_batches(pictures, 1, accelerator)
        if accelerator.distributed_type == DistributedType.FSDP:
            # A sharded network needs every process for every tile, and pictures differ in tiles.
            main = float(accelerator.is_main_process)
            shares = (([number], main) for number in range(pictures))
        for (number,), counted in shares:
            with accelerator.autocast():
                found = self.count(model, self.validation, number, accelerator.device)
            counts += int(counted) * found
        return self.scores(torch.as_tensor(accelerator.reduce(counts, "sum")))

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

    def draw(self, model: nn.Module, accelerator: Accelerator, path: Path) -> None:
        """The first validation picture (else training one) under its mask and its prediction."""
        with accelerator.autocast():
            picture = self.compare(model, self.validation or self.labelled, accelerator.device)
        if accelerator.is_main_process:
            save_picture(picture, path)

    def compare(self, model: nn.Module, pictures: LabelledSet, device: torch.device) -> np.ndarray:
        """The first picture under its mask, and under its prediction, `uint8 [H, 2 W, 3]`.

        Of a volume, slices.
        """
        item, image = pictures[0], np.moveaxis(pictures.picture(0).image, 0, -1)
        predicted = self._predict(model, item["image"], device).cpu()
        masks = [m.numpy().astype(np.uint8) for m in (item["mask"].clamp(min=0), predicted)]
        colors = class_colors(len(self.class_names), self.report.config.class_colors)
        return side_by_side(image, masks, colors)

    def export(self, model: nn.Module, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Write a folder that `scripts/segment.py` reads, and the split beside it."""
        network: Any = model
        network.save_pretrained(folder, state_dict)
        data = self.config.data
        voxel = data.voxel if data.masks == POINTS else None
        Preparation(network.in_channels, data.scale, data.value_range, voxel).write(folder)
        split = yaml.safe_dump(dict(self.split), sort_keys=False)
        replace_text(folder.parent / "split.yaml", split)

    def _predict(self, model: nn.Module, image: Tensor, device: torch.device) -> Tensor:
        """Class of every pixel of a whole picture, `int64 [H, W]` on `device`."""
        network: Any = model
        probabilities = class_probabilities(network, self.config.predict.turns)
        tiles = tiling(network, self.config.predict)
        return predict_tiles(probabilities, image, tiles, device=device).argmax(dim=0).to(device)

    def _network(self) -> SegmentationModel:
        config, channels = self.config, self.report.channels
        classes: dict[str, Any] = {
            "num_classes": len(self.class_names),
            "class_names": self.class_names,
            "class_colors": self.report.config.class_colors,
        }
        if config.architecture == "classic":
            classic = replace(config.classic, in_channels=channels, dims=config.data.dims)
            network = ClassicUNet(replace(classic, **classes))
            if config.init not in (None, SCRATCH):
                network.load_encoder(str(config.init))
            return network
        head = replace(config.head, **classes)
        if config.init == SCRATCH:
            data = config.data
            outputs = config.diffusion.output_channels(channels)
            unet = replace(config.model, in_channels=channels, out_channels=outputs)
            return Segmenter(UNet(replace(unet, sample_size=data.size, dims=data.dims)), head)
        return Segmenter.from_denoiser(str(config.init), head, channels)

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
        if self.config.data.dims == 3 and loss == "border":
            raise UserError("loss.name border: its weight maps are of pictures; data.dims is 3")


def score_test(job: SegmentJob, run: RunFolder) -> dict[str, float]:
    """Score the run's model on the pictures kept to test, if any, in the main process.

    Writes `scores.json`, and `test.png` with the first picture's mask and prediction.
    """
    state = PartialState()
    if job.test is None or not state.is_main_process:
        return {}
    model = load_segmentation_model(run.model).to(state.device)
    with torch.inference_mode():
        counts = [job.count(model, job.test, i, state.device) for i in range(len(job.test))]
        save_picture(job.compare(model, job.test, state.device), run.path / "test.png")
    scores = job.scores(torch.stack(counts).sum(dim=0))
    replace_json(run.path / "scores.json", scores)
    print(
        f"on {len(job.test)} test picture(s): "
        + ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
    )
    return scores

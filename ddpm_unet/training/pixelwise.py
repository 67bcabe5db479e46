"""The job of giving every pixel classes or numbers, from a denoiser or from scratch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ddpm_unet.config import ImageLoss, LossName, PredictConfig
from ddpm_unet.cpu import accelerate_cpu
from ddpm_unet.data.masks import IGNORE_INDEX
from ddpm_unet.data.preprocessing import Preprocessing, Targets
from ddpm_unet.data.splits import Split
from ddpm_unet.data.stream import to_bytes, to_model_range
from ddpm_unet.errors import refuse
from ddpm_unet.evaluation import metrics
from ddpm_unet.evaluation.image_quality import image_scores
from ddpm_unet.evaluation.rand import thinned_scores
from ddpm_unet.evaluation.report import best_median_worst
from ddpm_unet.files import replace_text
from ddpm_unet.inference.objects import CHOICES, label_objects
from ddpm_unet.inference.overlay import class_colors, displayable, side_by_side
from ddpm_unet.inference.predictor import (
    SegmentationModel,
    add_residual,
    class_probabilities,
    regressed_values,
    tiling,
)
from ddpm_unet.inference.tiles import Predict, predict_tiles
from ddpm_unet.models.segmenter import Segmenter, load_segmentation_model
from ddpm_unet.training.distributed import sharded
from ddpm_unet.training.job import Batch, Build, Job, even_batches
from ddpm_unet.training.joint import JointDenoising
from ddpm_unet.training.losses import image_loss, interior_loss, segmentation_loss
from ddpm_unet.training.run_folder import RunFolder

Predicted = tuple[Tensor, dict[str, Tensor]]
"""What is predicted of a whole image, `[K, *space]`, and the image with what lies beside it."""


@dataclass
class ClassTarget:
    """Classes of pixels.

    Args:
        class_names, class_colors: One name a class; one RGB colour (0 to 255) a class, or empty.
        loss, class_weights, focal_gamma: See `segmentation_loss`.
        criterion: Validation score by which the best model is kept.
        cell_class: Class whose connected pieces are cells, scored as partitions; None for none.
        objects: Where the network's last output, after the classes, is of the objects' interiors:
            pixels of a small object.
        sure: Likewise: least probability of an interior; None for the usual one.
    """

    class_names: tuple[str, ...]
    class_colors: tuple[tuple[int, int, int], ...] = ()
    loss: LossName = "cross_entropy+dice"
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 2.0
    criterion: str = "mean_dice"
    cell_class: int | None = None
    objects: int | None = None
    sure: float | None = None

    def __post_init__(self) -> None:
        weights, count = self.class_weights, len(self.class_names)
        self._weights = torch.tensor(weights) if weights else None
        refuse({
            f"loss.class_weights has {len(weights)} numbers for {count} classes; give one per "
            "class, or none": weights and len(weights) != count,
            "loss.class_weights are all 0; give at least one class a weight":
                weights and not sum(weights),
            "loss.class_weights: the maps of loss.name border balance the classes themselves; "
            "leave one of the two out": weights and self.loss == "border",
            "cell_class: is for images (data.dims 2) of two classes; leave it out":
                self.cell_class is not None and count != 2,
            f"cell_class {self.cell_class}: there are classes 0 and 1":
                self.cell_class not in (None, 0, 1),
        })  # fmt: skip

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """`segmentation_loss`, with the `interior_loss` added for objects."""
        if self._weights is not None:  # moved once: a step does not wait for a GPU
            self._weights = self._weights.to(output.device)
        added: Tensor | float = 0.0
        if self.objects is not None:
            added = interior_loss(output[:, -1], batch["interior"], batch["mask"])
            output = output[:, :-1]
        return added + segmentation_loss(
            self.loss,
            output,
            batch["mask"],
            class_weights=self._weights,
            pixel_weights=batch.get("weight"),
            focal_gamma=self.focal_gamma,
        )

    def predict(self, network: SegmentationModel, tta: bool) -> Predict:
        """Tiles to probabilities."""
        return class_probabilities(network, tta, self.objects is not None)

    def classes(self, planes: Tensor) -> Tensor:
        """The likeliest class of every pixel, `int64 [*space]`."""
        return planes[: len(self.class_names)].argmax(dim=0)

    def update_metric(self, planes: Tensor, item: dict[str, Tensor]) -> Tensor:
        """Pixels of an image by true and predicted class, `int64 [K, K]`."""
        predicted = self.classes(planes)
        mask = item["mask"].to(predicted.device)
        return metrics.confusion(predicted, mask, len(self.class_names), IGNORE_INDEX)

    def compute(self, total: Tensor) -> dict[str, float]:
        """Dice and intersection over union, in the mean and per class, and the pixel error.

        Pixels of all images count together, at `data.scale`; unlabelled ones do not count. A
        class that neither masks nor predictions have gets no score.
        """
        found = metrics.overlap(total)
        values = {"mean_dice": found.mean_dice, "mean_iou": found.mean_iou}
        values["pixel_error"] = found.pixel_error
        for kind, scores in (("dice", found.dice), ("iou", found.iou)):
            for name, score in zip(self.class_names, scores.tolist(), strict=True):
                if not np.isnan(score):
                    values[f"{kind}_{name}"] = score
        return values

    def score_image(self, planes: Tensor, item: dict[str, Tensor]) -> dict[str, float]:
        """Dice, HD95 and boundary F; of masks that number objects, `object_scores` too."""
        classes, count = self.classes(planes), len(self.class_names)
        scores = metrics.scores_of_image(classes, item["mask"], count, IGNORE_INDEX)
        if "objects" not in item:
            return scores
        return scores | self.score_objects(planes, item, self.sure)

    def score_objects(
        self, planes: Tensor, item: dict[str, Tensor], sure: float | None
    ) -> dict[str, float]:
        """`object_scores` of an image, at a least probability of interiors."""
        classes = self.classes(planes).cpu().numpy()
        interior = None if self.objects is None else planes[-1].cpu().numpy()
        found = label_objects(classes, interior, (self.objects or 0) / 2, sure)
        found[item["mask"].numpy() == IGNORE_INDEX] = 0
        return metrics.object_scores(found, item["objects"].numpy())

    def further_scores(self, pairs: Iterable[Predicted]) -> dict[str, float]:
        """V_rand and V_info of the cells."""
        cell = self.cell_class
        if cell is None:
            return {}
        truth, cells = [], []
        for planes, item in pairs:
            truth.append((item["mask"] == cell).numpy())
            cells.append(planes[cell].clamp(0, 1).cpu().numpy())
        scores = thinned_scores(truth, cells)
        return {"v_rand": scores.v_rand, "v_info": scores.v_info}

    def visualize(self, planes: Tensor, item: dict[str, Tensor]) -> np.ndarray:
        """The image under its mask, and under its prediction."""
        masks = [item["mask"].clamp(min=0), self.classes(planes).cpu()]
        colors = class_colors(len(self.class_names), self.class_colors)
        return side_by_side(
            shades(item["image"]), [m.numpy().astype(np.uint8) for m in masks], colors
        )


@dataclass
class ImageTarget:
    """Numbers of pixels, those of images to predict, in [-1, 1].

    Args:
        targets: What these images are.
        loss, huber_delta: See `image_loss`.
        residual: The network gives what is to be added to the first channels of its input.
    """

    targets: Targets
    loss: ImageLoss = "l1"
    huber_delta: float = 0.1
    residual: bool = False
    criterion: str = field(default="psnr", init=False)

    SCORES = ("psnr", "ssim", "mae")

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """`image_loss`."""
        output = add_residual(output, batch["image"], self.residual)
        return image_loss(self.loss, output, batch["target"], self.huber_delta)

    def predict(self, network: SegmentationModel, tta: bool) -> Predict:
        """Tiles to images."""
        return regressed_values(network, self.residual, tta)

    def update_metric(self, planes: Tensor, item: dict[str, Tensor]) -> Tensor:
        """An image's `SCORES`, and 1, `float32 [4]`."""
        found = image_scores(planes, item["target"].to(planes.device))
        return torch.tensor([*(found[name] for name in self.SCORES), 1.0], device=planes.device)

    def compute(self, total: Tensor) -> dict[str, float]:
        """Mean over the images of PSNR, SSIM and mean absolute error, at `data.scale`."""
        *sums, count = total.tolist()
        return {name: value / count for name, value in zip(self.SCORES, sums, strict=True)}

    def score_image(self, planes: Tensor, item: dict[str, Tensor]) -> dict[str, float]:
        """PSNR, SSIM and mean absolute error."""
        return image_scores(planes, item["target"].to(planes.device))

    def further_scores(self, pairs: Iterable[Predicted]) -> dict[str, float]:
        """None."""
        return {}

    def visualize(self, planes: Tensor, item: dict[str, Tensor]) -> np.ndarray:
        """The image, its prediction and its target; of a volume, the middle slice."""
        shown = [shades(each) for each in (item["image"], planes.cpu(), item["target"])]
        if planes.ndim == 4:
            shown = [volume[len(volume) // 2] for volume in shown]
        return np.concatenate(shown, axis=1)


Target = ClassTarget | ImageTarget
"""What is predicted: how it is learned, scored and shown."""


@dataclass(eq=False)
class PixelwiseJob(Job):
    """A network that gives every pixel of an image classes or numbers.

    Args:
        network: The network, or what builds it once the generators are seeded.
        target: What is predicted.
        windows: Gives the training batches by position, for a network that loses so many pixels on
            every side.
        preprocessing: What the images went through, kept in the model's folder.
        validation: Whole images to choose the best model by.
        open_test: Gives whole images that are kept to test.
        joint: Denoises unlabelled images in the same steps.
        denoise_weight: Factor of the denoising loss.
        predict: How whole images are predicted.
        lr: Peak learning rate, and `layer_decay`, of each block as a share of the next block's.
        split: What trains, validates and tests, kept in the run folder.
        workers, description, digest: See `Job`.
        loss: In place of the target's: `(network, batch) -> [B]`, or one number.
    """

    network: Build
    target: Target
    windows: Callable[[int], Any]
    _: KW_ONLY
    preprocessing: Preprocessing | None = None
    validation: Any = None
    open_test: Callable[[], Any] = lambda: None
    joint: JointDenoising | None = None
    denoise_weight: float = 1.0
    predict: PredictConfig = field(default_factory=PredictConfig)
    lr: float = 2e-4
    layer_decay: float = 1.0
    split: Split | None = None
    workers: int | None = 0
    description: str = ""
    digest: str | None = None
    loss: Callable[[nn.Module, Batch], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.validation is not None and not scorable(self.validation):
            self.validation = None
            self.description += "\nno validation: the masks of the images for it label no pixel"
        self.criterion = self.target.criterion if self.validation is not None else None

    @cached_property
    def test(self) -> Any:
        """The images kept to test; None where no pixel of theirs is labelled, which is said."""
        found = self.open_test()
        if found is not None and not scorable(found):
            print("no test: the masks of the images kept for it label no pixel")
            return None
        return found

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """One group a block where learning rates differ."""
        if isinstance(model, Segmenter):
            return model.parameter_groups(self.lr, self.layer_decay)
        return [{"params": list(model.parameters())}]

    def stream(self, model: nn.Module, accelerator: Accelerator) -> Any:
        """The training windows."""
        network: Any = model
        windows = self.windows(network.margin)
        return (
            self.joint.beside(windows, network.unet.config.in_channels) if self.joint else windows
        )

    def name(self, position: int) -> str:
        """The image at a stream position."""
        return self.windows(0).name(position)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of each image, in joint training with the denoising loss added.

        Of a network under deep supervision, the mean over its outputs.
        """
        if self.loss is not None:
            return self.loss(model, batch)
        denoising: Tensor | float = 0.0
        if self.joint:
            output, denoising = self.joint.losses(model, batch)
        else:
            output = model(batch["image"])
        outputs = output if isinstance(output, tuple) else (output,)
        supervised = torch.stack([self.target.losses(each, batch) for each in outputs])
        return supervised.mean(dim=0) + self.denoise_weight * denoising

    def validate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Scores of whole validation images, shared among the processes."""
        if self.validation is None:
            return {}
        parts: Iterable[tuple[Sequence[int], float]]
        parts = even_batches(len(self.validation), 1, accelerator)
        if sharded(model):  # which needs every process for every tile, and images differ in tiles
            main = float(accelerator.is_main_process)
            parts = (([number], main) for number in range(len(self.validation)))
        found = []
        for (number,), counted in parts:
            item = item_of(self.validation, number)
            with accelerator.autocast():
                planes = self.planes(model, item)
            metric = self.target.update_metric(planes, item)
            found.append(metric if counted else torch.zeros_like(metric))
        total = torch.stack(found).sum(dim=0)
        return self.target.compute(torch.as_tensor(accelerator.reduce(total, "sum")))

    def preview(self, model: nn.Module, accelerator: Accelerator, path: Path) -> None:
        """The first validation image (else training window) beside what is predicted of it."""
        item = self._first()
        with accelerator.autocast():
            planes = self.planes(model, item)
        if accelerator.is_main_process:
            Image.fromarray(self.target.visualize(planes, item)).save(path)

    def export(self, model: nn.Module, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Write a folder that `scripts/segment.py` reads, and the split beside it."""
        network: Any = model
        network.save_pretrained(folder, state_dict)
        preprocessing = self.preprocessing or Preprocessing(1)
        replace(preprocessing, channels=network.in_channels).write(folder)
        if self.split is not None:
            text = yaml.safe_dump(dict(self.split), sort_keys=False)
            replace_text(folder.parent / "split.yaml", text)

    def planes(self, model: nn.Module, item: dict[str, Tensor]) -> Tensor:
        """What is predicted of a whole image, `float32 [K, *space]` on the network's device."""
        network: Any = model
        predict = self.target.predict(network, self.predict.tta)
        device = next(model.parameters(), torch.empty(0)).device
        tiles = tiling(network, self.predict)
        return predict_tiles(predict, item["image"], tiles, device=device).to(device)

    @property
    def _parts_objects(self) -> bool:
        """Whether interiors of objects are learned, and validation images number objects."""
        learned = isinstance(self.target, ClassTarget) and self.target.objects is not None
        return learned and self.validation is not None and "objects" in item_of(self.validation, 0)

    def choose_sure(self, model: SegmentationModel, folder: Path) -> float | None:
        """From which probability of an interior on a model parts objects; kept in its folder.

        The one of `CHOICES` with which AP at 0.5 of the validation images is best in the mean, the
        middle one of several. None without such images, or interiors.
        """
        target = self.target
        if not self._parts_objects or not isinstance(target, ClassTarget):
            return None
        scores: list[list[float]] = [[] for _ in CHOICES]
        for planes, item in self._predicted(model, self.validation):
            for found, sure in zip(scores, CHOICES, strict=True):
                precision = target.score_objects(planes, item, sure).get("ap50")
                found += [] if precision is None else [precision]
        means = np.array([np.mean(found) if found else 0.0 for found in scores])
        best = np.flatnonzero(means >= means.max() - 1e-9)
        sure = CHOICES[best[len(best) // 2]]
        self.target = replace(target, sure=sure)
        replace(Preprocessing.read(folder, 1), sure=sure).write(folder)
        return sure

    def score_test(
        self, run: RunFolder, device: torch.device, native: bool = False
    ) -> dict[str, float]:
        """Score the run's model on the images kept to test, if any, and print it.

        Before, `choose_sure`.

        Writes `scores.json`, `scores.csv`, `test.png` with the first image and what is predicted
        of it, and `predictions/` with those of best, median and worst score.
        """
        if self.test is None and not self._parts_objects:
            return {}
        model = load_segmentation_model(run.model).to(device)
        if native and device.type == "cpu":
            accelerate_cpu(model)
        sure = self.choose_sure(model, run.model)
        if sure is not None:
            print(f"interiors of objects: above {sure:g}, the best for the validation images")
        if self.test is None:
            return {}
        counts: list[Tensor] = []
        images: list[dict[str, float]] = []
        for planes, item in self._predicted(model, self.test):
            if not images:
                Image.fromarray(self.target.visualize(planes, item)).save(run.path / "test.png")
            counts.append(self.target.update_metric(planes, item))
            images.append(self.target.score_image(planes, item))
        scores = self.target.compute(torch.stack(counts).sum(dim=0)) | metrics.mean_over_images(
            images
        )
        scores |= self.target.further_scores(self._predicted(model, self.test))
        rows = [{"name": self.test.name(i), **found} for i, found in enumerate(images)]
        metrics.write_scores(run.path, scores, rows)
        (run.path / "predictions").mkdir(exist_ok=True)
        for word, number in best_median_worst(images).items():
            ((planes, item),) = self._predicted(model, self.test, [number])
            Image.fromarray(self.target.visualize(planes, item)).save(
                run.path / f"predictions/{word}.png"
            )
        print(f"on {len(self.test)} test image(s):\n{metrics.shown_scores(scores)}")
        return scores

    def _predicted(
        self, model: nn.Module, items: Any, numbers: Iterable[int] | None = None
    ) -> Iterator[Predicted]:
        """Whole images, all of them or those of some numbers, and what is predicted of each."""
        for number in range(len(items)) if numbers is None else numbers:
            item = item_of(items, number)
            with torch.inference_mode():
                planes = self.planes(model, item)
            yield planes, item

    def _first(self) -> dict[str, Tensor]:
        if self.validation is not None:
            return item_of(self.validation, 0)
        return {key: value[0] for key, value in self.windows(0).__getitems__([0]).items()}


def item_of(items: Any, number: int) -> dict[str, Tensor]:
    """A whole image, `float32 [C, *space]` in [-1, 1], and what lies beside it."""
    item = items[number]
    return {**item, "image": to_model_range(item["image"])}


def scorable(items: Any) -> bool:
    """Whether any pixel is labelled."""
    every = (items[number] for number in range(len(items)))
    return any("mask" not in item or bool((item["mask"] != IGNORE_INDEX).any()) for item in every)


def shades(planes: Tensor) -> np.ndarray:
    """`[K, *space]` in [-1, 1] as `uint8 [*space, 3]`, for people; of two channels the first."""
    return displayable(to_bytes(planes).movedim(0, -1).cpu().numpy())

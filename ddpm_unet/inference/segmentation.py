"""A segmentation network as a function from tiles to class probabilities, and its tiling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm_unet.config import ImageDataConfig, PredictConfig, ValueRange
from ddpm_unet.config.reading import from_plain, read_json
from ddpm_unet.data.pixels import convert_channels, normalised, to_unit
from ddpm_unet.data.settings import check_data_settings
from ddpm_unet.data.targets import Targets
from ddpm_unet.errors import UserError
from ddpm_unet.inference.tiles import Predict, Tiling
from ddpm_unet.inference.turns import over_turns
from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.segmenter import Segmenter
from ddpm_unet.replace import replace_json

SegmentationModel = ClassicUNet | Segmenter
PREPARATION = "preparation.json"
DEFAULTS = {2: PredictConfig(256, 32, 16), 3: PredictConfig(96, 16, 8)}
"""Least tiles of pictures and of volumes."""
PIXELS = {2: 768**2, 3: 96**3}
"""How many pixels a network may get at once where the tile is not given."""


def class_probabilities(model: SegmentationModel, turns: bool = False) -> Predict:
    """Tiles `[B, C, h, w]` in [-1, 1] to probabilities `float32 [B, K, h, w]` of every class.

    Args:
        model: In evaluation mode; one output channel means two classes.
        turns: Average over the flips and quarter turns.
    """

    def predict(tiles: Tensor) -> Tensor:
        logits = model(tiles).float()
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits.softmax(dim=1)

    return over_turns(predict) if turns else predict


def tiling(model: SegmentationModel, config: PredictConfig) -> Tiling:
    """Tiles that suit the network: exact seams without padding, blended ones with it.

    Args:
        model: Gives the margin that is lost or not trusted.
        config: Gives the tile's size, which grows to the next one that the network takes, and
            the overlap and margin, which a network without padding has no use for. Without a size
            the tiles are those with which the least is computed in bounded memory.

    Raises:
        UserError: Tiles that are all margin and overlap.
    """
    default = DEFAULTS[dimensions(model)]
    tile, overlap, margin = (
        getattr(default if getattr(config, name) is None else config, name)
        for name in ("tile", "overlap", "margin")
    )
    pixels = PIXELS[dimensions(model)] if config.tile is None else 0
    if model.margin:
        tile = model.valid_size(max(tile, 2 * model.margin + model.step))
        return Tiling(tile, model.margin, overlap=0, step=model.step, pixels=pixels)
    step = 32 if dimensions(model) == 2 else 2 ** (_levels(model) - 1)
    least = 2 * max(0, margin) + max(0, overlap) + step
    if min(overlap, margin) < 0 or tile < least:
        raise UserError(
            f"tiles of {tile} pixels that share {overlap}, with a margin of {margin}: give an "
            f"overlap and a margin of 0 or more, and then a tile of at least {least}"
        )
    return Tiling(tile, margin, overlap, step, pixels=pixels)


def dimensions(model: SegmentationModel) -> int:
    """2 for a network of pictures, 3 for one of volumes."""
    return model.config.dims if isinstance(model, ClassicUNet) else model.unet.config.dims


def _levels(model: SegmentationModel) -> int:
    """Sizes at which the network works, each half of the one before."""
    if isinstance(model, Segmenter):
        return len(model.unet.config.block_out_channels)
    return model.config.depth


@dataclass(frozen=True)
class Preparation:
    """What was done to pictures before the network saw them in training.

    Args:
        channels: Channels of the network's input.
        scale: Factor by which they were resampled.
        value_range: Pixel values of black and white, "percentiles" for those of each picture;
            None for the full range of the type.
        voxel: Side of the cells in which points were put, where the network was trained on points.
        targets: Of a network that predicts pictures, what these are; None for classes.
        residual: Such a network gives what is to be added to the first channels of its input.
    """

    channels: int
    scale: float = 1.0
    value_range: ValueRange = None
    voxel: float | None = None
    targets: Targets | None = None
    residual: bool = False

    def write(self, folder: Path) -> None:
        """Keep it in a model's folder."""
        replace_json(folder / PREPARATION, asdict(self))

    @classmethod
    def read(cls, folder: Path, model: SegmentationModel) -> Preparation:
        """That of a model's folder; without one, pictures are taken as they are.

        Raises:
            UserError: The file is there and unreadable.
        """
        path = folder / PREPARATION
        if not path.is_file():
            return cls(model.in_channels)
        values = read_json(path)
        targets = values.pop("targets", None)
        found = from_plain(cls, values, path)
        if targets is not None:
            found = replace(found, targets=from_plain(Targets, targets, f"{path}: targets"))
        try:
            check_data_settings(ImageDataConfig(scale=found.scale, value_range=found.value_range))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return found

    @property
    def whole(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """What must see a whole picture or volume `[..., C]`, before `pixels`; None: nothing."""
        if self.value_range != "percentiles":
            return None
        return partial(normalised, value_range=self.value_range)

    def pixels(self, picture: np.ndarray, name: str) -> np.ndarray:
        """Pixels `[..., C]` of a file to `float32 [..., channels]` in [-1, 1]."""
        shape = picture.shape
        flat = convert_channels(picture.reshape(1, -1, shape[-1]), self.channels, name)
        return to_unit(flat, self.value_range, name).reshape(*shape[:-1], self.channels)

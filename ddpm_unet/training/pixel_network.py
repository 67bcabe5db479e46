"""The network of the jobs that give every pixel scores or numbers: built, stepped, written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from ddpm_unet.config import SegmentConfig
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.data.splits import Split
from ddpm_unet.errors import UserError
from ddpm_unet.inference.predictor import SegmentationModel, dimensions, tiling
from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.segmenter import Segmenter
from ddpm_unet.models.unet import UNet
from ddpm_unet.replace import replace_text
from ddpm_unet.training.joint import SCRATCH


def build_network(
    config: SegmentConfig, channels: int, outputs: Mapping[str, Any]
) -> SegmentationModel:
    """The network, on the denoiser's weights or freshly initialised.

    Args:
        config: All settings.
        channels: Of the images.
        outputs: `num_classes`, and perhaps `class_names` and `class_colors`.

    Raises:
        UserError: It does not fit the images or `data.size`, or there is no such denoiser.
    """
    model, size = _network(config, channels, outputs), config.data.size
    if dimensions(model) != config.data.dims:
        raise UserError(
            f"data.dims {config.data.dims}: the network is one of {dimensions(model)} "
            "dimensions; set data.dims to that, or take another network"
        )
    side = size + 2 * model.margin
    if model.valid_size(side) != side:
        raise UserError(
            f"data.size {size}: the network without padding gives no window of that size; "
            f"the next that fits is {model.valid_size(side) - 2 * model.margin}"
        )
    tiling(model, config.predict)
    return model


def parameter_groups(model: nn.Module, config: SegmentConfig) -> list[dict[str, Any]]:
    """One group a block where learning rates differ."""
    if isinstance(model, Segmenter):
        return model.parameter_groups(config.train.lr, config.layer_decay)
    return [{"params": list(model.parameters())}]


def export(
    model: nn.Module,
    state_dict: dict[str, Tensor],
    folder: Path,
    preparation: Preprocessing,
    split: Split,
) -> None:
    """Write a folder that `scripts/segment.py` reads, and the split beside it."""
    network: Any = model
    network.save_pretrained(folder, state_dict)
    preparation.write(folder)
    replace_text(folder.parent / "split.yaml", yaml.safe_dump(dict(split), sort_keys=False))


def _network(config: SegmentConfig, channels: int, outputs: Mapping[str, Any]) -> SegmentationModel:
    if config.architecture == "classic":
        classic = replace(config.classic, in_channels=channels, dims=config.data.dims)
        network = ClassicUNet(replace(classic, **outputs))
        if config.init not in (None, SCRATCH):
            network.load_encoder(str(config.init))
        return network
    head = replace(config.head, **outputs)
    if config.init == SCRATCH:
        data = config.data
        predicted = config.diffusion.output_channels(channels)
        unet = replace(config.model, in_channels=channels, out_channels=predicted)
        return Segmenter(UNet(replace(unet, sample_size=data.size, dims=data.dims)), head)
    return Segmenter.from_denoiser(str(config.init), head, in_channels=channels)

"""The processes, devices and precision of a run."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ddpm_unet.config import TrainConfig
from ddpm_unet.errors import UserError
from ddpm_unet.training.run_folder import RunFolder


def open_accelerator(run: RunFolder, settings: Any) -> Accelerator:
    """The processes, their devices and the precision.

    Raises:
        UserError: This machine has not what the settings ask for.
    """
    config: TrainConfig = settings.train
    if settings.tracker != "none" and find_spec(settings.tracker) is None:
        raise UserError(
            f"tracker {settings.tracker}: is not installed; pip install {settings.tracker}, or "
            "set tracker none"
        )
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision=config.mixed_precision,
            log_with=None if settings.tracker == "none" else settings.tracker,
            project_dir=run.path,
        )
    except ValueError as error:
        raise UserError(
            f"train.mixed_precision {config.mixed_precision}: {error} Else set another"
        ) from error
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("train.mixed_precision fp16: needs a GPU; on the CPU set no or bf16")
    if config.batch_size < accelerator.num_processes:
        raise UserError(
            f"train.batch_size = {config.batch_size} is less than the number of processes, "
            f"{accelerator.num_processes}; each needs at least one image"
        )
    return accelerator


def laid_out(network: nn.Module, channels_last: bool | None, device: torch.device) -> nn.Module:
    """The network, in the memory layout of the settings.

    By default channels come last on a GPU, and for volumes. For pictures on a CPU they do not:
    with Winograd's convolutions a step takes 1.1 to 1.4 times as long then.
    """
    volumes = any(parameter.ndim == 5 for parameter in network.parameters())
    if channels_last is None:
        channels_last = volumes or device.type != "cpu"
    if not channels_last:
        return network
    return network.to(memory_format=torch.channels_last_3d if volumes else torch.channels_last)

"""Settings of the loop that no training could use."""

from __future__ import annotations

import math

from ddpm_unet.config import PreviewConfig, TrainConfig
from ddpm_unet.errors import UserError


def check_training(config: TrainConfig) -> None:
    """Refuse a loop that could not run, or could lose what it did.

    Raises:
        UserError: Names the setting.
    """
    for name, least in (
        ("steps", 1), ("batch_size", 1), ("micro_batch", 0), ("warmup_steps", 0), ("log_every", 1),
        ("checkpoint_every", 1), ("keep_checkpoints", 1), ("validate_every", 0),
        ("sample_every", 0), ("patience", 0),
    ):  # fmt: skip
        _refuse(f"train.{name}", getattr(config, name), least, math.inf)
    _refuse("train.lr", config.lr, 1e-12, 10.0)
    _refuse("train.momentum", config.momentum, 0.0, 1.0 - 1e-9)
    _refuse("train.weight_decay", config.weight_decay, 0.0, 1e6)
    _refuse("train.clip_norm", config.clip_norm, 0.0, 1e30)
    _refuse("train.ema_decay", config.ema_decay, 0.0, 1.0)
    for beta in config.betas:
        _refuse("train.betas", beta, 0.0, 1.0 - 1e-9)


def check_preview(config: PreviewConfig, timesteps: int) -> None:
    """Refuse grids that could not be drawn from a chain of `timesteps`.

    Raises:
        UserError: Names the setting.
    """
    _refuse("preview.num_images", config.num_images, 1, math.inf)
    _refuse("preview.validation_images", config.validation_images, 1, math.inf)
    _refuse("preview.steps", config.steps, 1, timesteps)


def _refuse(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # nan is neither
        limits = f"at least {least:g}" if most == math.inf else f"between {least:g} and {most:g}"
        raise UserError(f"{name} {value:g}: must be {limits}")

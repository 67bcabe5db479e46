"""The numbers that a setting may be. Whatever is not listed must be finite and at least 0."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from ddpm_unet.config.data import (
    AugmentConfig,
    ExtraPairsConfig,
    ImageDataConfig,
    LatentConfig,
    PairDataConfig,
    SplitConfig,
)
from ddpm_unet.config.jobs import AutoencodeConfig, DenoiseConfig, SegmentConfig
from ddpm_unet.config.process import DiffusionConfig
from ddpm_unet.config.training import (
    PredictConfig,
    PreviewConfig,
    RegressionConfig,
    SegmentLossConfig,
    TrainConfig,
)
from ddpm_unet.errors import UserError

Limits = tuple[float, float]

UNLISTED: Limits = (0, 2**53)  # up to which floats hold every whole number
POSITIVE: Limits = (1, 2**53)
FINITE: Limits = (-1e300, 1e300)
SEED: Limits = (0, 2**32 - 1)
SHARE: Limits = (0, 1)
BELOW_1: Limits = (0, 1 - 1e-9)

_DATA: dict[str, Limits] = {
    "size": (1, 65_536),
    "scale": (1e-3, 1e3),
    "channels": (1, 1024),
    "value_range": FINITE,
    "workers": (0, 1024),
    "max_pixels": (1e-6, 1e9),
}
LIMITS: dict[type, dict[str, Limits]] = {
    ImageDataConfig: {**_DATA, "condition_classes": (2, 256)},
    PairDataConfig: {
        **_DATA,
        "num_classes": (2, 256),
        "mask_values": FINITE,
        "target_range": FINITE,
        "voxel": (1e-6, 1e6),
        "ignore_value": FINITE,
        "class_colors": (0, 255),
        "boundary_width": (1, 1000),
        "border_sigma": (1e-3, 1e6),
    },
    ExtraPairsConfig: {"share": SHARE, "scale": (1e-3, 1e3)},
    LatentConfig: {"epochs": (1, 10_000)},
    SplitConfig: {"limit": POSITIVE},
    AugmentConfig: {
        "elastic_sigma": (0, 1000),
        "elastic_grid": (1, 64),
        "brightness": SHARE,
        "contrast": (0, 10),
        "gamma": (0, 10),
        "noise": SHARE,
    },
    DiffusionConfig: {"num_train_timesteps": (1, 100_000), "min_snr_gamma": (1e-6, 1e6)},
    TrainConfig: {
        "steps": (1, 10**9),
        "batch_size": (1, 10**6),
        "lr": (1e-12, 10),
        "betas": BELOW_1,
        "momentum": BELOW_1,
        "ema_decay": SHARE,
        "ema_lengths": (0.01, 0.28),
        "ema_every": POSITIVE,
        "checkpoint_every": POSITIVE,
        "keep_checkpoints": POSITIVE,
        "log_every": POSITIVE,
    },
    PreviewConfig: {"num_images": (1, 4096), "steps": POSITIVE, "validation_images": POSITIVE},
    SegmentLossConfig: {"class_weights": (0, 1e6)},
    RegressionConfig: {"huber_delta": (1e-6, 2)},
    PredictConfig: {"tile": (1, 65_536)},
    AutoencodeConfig: {"seed": SEED},
    DenoiseConfig: {"seed": SEED, "condition_dropout": SHARE},
    SegmentConfig: {"seed": SEED, "layer_decay": (1e-6, 1)},
}


def check_limits(settings: Any, prefix: str = "") -> None:
    """Refuse numbers that no job could use, and NaN.

    Args:
        settings: A dataclass of settings, with others in it.
        prefix: What the names of its settings begin with in messages.

    Raises:
        UserError: Names the setting and its limits.
    """
    limits = LIMITS.get(type(settings), {})
    for field in fields(settings):
        name, value = f"{prefix}{field.name}", getattr(settings, field.name)
        if is_dataclass(value):
            check_limits(value, f"{name}.")
            continue
        least, most = field.metadata.get("bounds") or limits.get(field.name, UNLISTED)
        for number in _numbers(value):
            if not least <= number <= most:  # NaN is neither
                shown = number if isinstance(number, int) else f"{number:g}"
                raise UserError(f"{name} {shown}: must be {_within(least, most)}")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, tuple | list):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _within(least: float, most: float) -> str:
    if (least, most) == FINITE:
        return "a finite number"
    if most == UNLISTED[1]:
        return f"at least {least:g}"
    return f"between {least:.12g} and {most:.12g}"

"""Training: `ddpm-unet train-ddpm`, `train-seg` and `train-autoencoder`, and `check`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ddpm_unet.cli import read_settings
from ddpm_unet.commands.shared import prepare_gpu, recipe, shipped
from ddpm_unet.config import AutoencodeConfig, CheckConfig, DenoiseConfig, SegmentConfig
from ddpm_unet.errors import UserError


def train_ddpm(arguments: Sequence[str] | None = None) -> None:
    """Train a U-Net to denoise images."""
    settings, name = read_settings(DenoiseConfig, recipe("histology64.yaml"), arguments)

    from ddpm_unet.training.from_config import build_denoise_job

    _train(build_denoise_job, settings, name)


def train_autoencoder(arguments: Sequence[str] | None = None) -> None:
    """Train an autoencoder for latent denoising."""
    default = recipe("histology_autoencoder.yaml")
    settings, name = read_settings(AutoencodeConfig, default, arguments)

    from ddpm_unet.training.autoencode import AutoencodeJob

    _train(AutoencodeJob, settings, name)


def _train(build: Callable[[Any], Any], settings: Any, name: str) -> None:
    from ddpm_unet.training.loop import train
    from ddpm_unet.training.run_folder import RunFolder

    settings.run = settings.run or f"runs/{name}"
    prepare_gpu()
    train(build(settings), RunFolder(Path(settings.run)), settings)


def train_seg(arguments: Sequence[str] | None = None) -> None:
    """Train a U-Net to segment from a handful of masks; with --task regress, to regress.

    Without --init it starts from the newest run's denoiser that takes such images, and says which;
    without any run, and where the shipped one takes others, from random weights.
    With --check it only looks at the images and masks, and says what it found.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    arguments = [a for a in given if a != "--check"]
    settings, name = read_settings(SegmentConfig, recipe("histology_nuclei.yaml"), arguments)

    from ddpm_unet.data.preprocessing import target_settings

    data = target_settings(settings.data) if settings.task == "regress" else settings.data
    if len(arguments) < len(given):
        from ddpm_unet.data.check import print_check

        print_check(data)
        return
    settings.run = settings.run or f"runs/{name}"

    from ddpm_unet.training.from_config import choose_denoiser, run_pixel_job
    from ddpm_unet.training.run_folder import RunFolder, newest_models

    run = RunFolder(Path(settings.run))
    settings.init = settings.init or run.setting("init")
    if settings.architecture == "unet" and not settings.init:
        cure = "train one with scripts/train_ddpm.py, or give --init DIR or --init scratch"
        own, ours = newest_models(), shipped("histology64")
        folders = [*own, *[ours] * (ours / "model_index.json").is_file()]
        try:
            denoiser, chosen = choose_denoiser(settings, data, folders, cure)
            settings.init = str(denoiser)
        except UserError:
            if own:
                raise
            settings.init = "scratch"
            chosen = "starting from random weights: no denoiser of such images is at hand"
        if os.environ.get("RANK", "0") == "0":
            print(chosen)
    prepare_gpu()
    run_pixel_job(settings)


def check(arguments: Sequence[str] | None = None) -> None:
    """Say what is right and wrong with images and masks."""
    from ddpm_unet.data.check import print_check

    print_check(read_settings(CheckConfig, None, arguments)[0].data)

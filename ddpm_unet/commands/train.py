"""Training: `ddpm-unet train-ddpm`, `train-seg` and `train-autoencoder`, and `check`.

What nobody gave comes, of data of one's own, from a plan (`ddpm_unet.training.plan`), which is
printed and kept in the run folder as plan.yaml; of built-in data from the recipe that ships.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_unet.commands.shared import best_device, prepare_gpu, recipe, shipped
from ddpm_unet.config import AutoencodeConfig, CheckConfig, DenoiseConfig, SegmentConfig
from ddpm_unet.config.reading import build, read_settings, read_values
from ddpm_unet.errors import UserError

if TYPE_CHECKING:
    from ddpm_unet.training.pixelwise import PixelwiseJob
    from ddpm_unet.training.plan import Plan
    from ddpm_unet.training.planned import Wish

BUILTIN, PLAN = "builtin:", "plan.yaml"
CURE = "train one with scripts/train_ddpm.py, or give --init DIR or --init scratch"


def _read(kind: type, default: str, arguments: Sequence[str] | None, data: str = "") -> Wish:
    """The settings that are given: by flags and --config, else by the run's own plan.

    Those of built-in data, or of a job without `data` to plan by, are completed by a recipe.
    """
    begun = time.monotonic()
    values, flags, file = read_values(kind, None, arguments, default)
    source, run, planned = str(values.get(data, BUILTIN)), values.get("run"), False
    if file is None and not source.startswith(BUILTIN) and values.get("data.masks") != "points":
        what = "denoiser" if kind is DenoiseConfig else "segmenter"
        run = run or f"runs/{Path(source.rpartition(':')[2]).name}_{what}"
        planned = not ((Path(run) / PLAN).is_file() and any(Path(run).glob("checkpoints/[0-9]*")))
        if not planned:
            values, _, _ = read_values(kind, Path(run) / PLAN, arguments)
    else:
        if file is None:
            file = recipe(default)
            values, _, _ = read_values(kind, file, arguments)
        run = run or f"runs/{file.stem}"

    from ddpm_unet.training.planned import Wish

    return Wish(kind, {**values, "run": str(run)}, flags, planned, begun)


def train_ddpm(arguments: Sequence[str] | None = None) -> None:
    """Train a U-Net to denoise images."""
    wish = _read(DenoiseConfig, "histology64.yaml", arguments, "data.source")

    from ddpm_unet.training.from_config import build_denoise_job
    from ddpm_unet.training.planned import plan_images

    plan = plan_images(wish.values, best_device().type) if wish.planned else None
    settings = build(DenoiseConfig, plan.values if plan else wish.values)
    _train(build_denoise_job(settings), settings, wish, plan)


def train_autoencoder(arguments: Sequence[str] | None = None) -> None:
    """Train an autoencoder for latent denoising."""
    wish = _read(AutoencodeConfig, "histology_autoencoder.yaml", arguments)
    settings = build(AutoencodeConfig, wish.values)

    from ddpm_unet.training.autoencode import AutoencodeJob

    _train(AutoencodeJob(settings), settings, wish)


def train_seg(arguments: Sequence[str] | None = None) -> None:
    """Train a U-Net to segment from a handful of masks; with --task regress, to regress.

    Without --init it starts from the newest run's denoiser that takes such images, and says which;
    without any run, and where the shipped one takes others, from random weights.
    With --check it only looks at the images and masks, and says what it found.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    wish = _read(
        SegmentConfig, "histology_nuclei.yaml", [a for a in given if a != "--check"], "data.images"
    )
    settings, plan, report = build(SegmentConfig, wish.values), None, None

    from ddpm_unet.data.preprocessing import labelled_data

    if "--check" in given:
        from ddpm_unet.data.check import print_check

        print_check(labelled_data(settings))
        return

    from accelerate import PartialState

    from ddpm_unet.data.folder import with_dims
    from ddpm_unet.evaluation.card import write_pages
    from ddpm_unet.training.from_config import build_pixel_job
    from ddpm_unet.training.planned import choose_denoiser, plan_pairs
    from ddpm_unet.training.run_folder import newest_models

    own, run = newest_models(), wish.run
    if wish.planned:
        plan, report = plan_pairs(wish.values, best_device().type, own, _shipped())
        settings = build(SegmentConfig, plan.values)
    settings.data = with_dims(settings.data, settings.data.images)
    settings.init = settings.init or run.setting("init")
    if settings.architecture == "unet" and not settings.init:
        try:
            seen = replace(settings, data=labelled_data(settings))
            denoiser, chosen = choose_denoiser(seen, [*own, *_shipped()], CURE)
            settings.init = str(denoiser)
        except UserError:
            if own:
                raise
            settings.init = "scratch"
            chosen = "starting from random weights: no denoiser of such images is at hand"
        _say(chosen)
    job: PixelwiseJob = build_pixel_job(settings, report=report)
    job.reports = False  # once, with the scores
    _train(job, settings, wish, plan)
    state = PartialState()
    if state.is_main_process:
        job.score_test(run, state.device, settings.train.native)
        write_pages(run.path)


def check(arguments: Sequence[str] | None = None) -> None:
    """Say what is right and wrong with images and masks."""
    from ddpm_unet.data.check import print_check

    print_check(read_settings(CheckConfig, None, arguments)[0].data)


def _train(job: Any, settings: Any, wish: Wish, plan: Plan | None = None) -> None:
    from ddpm_unet.training.loop import train
    from ddpm_unet.training.planned import choose_steps

    run = wish.run
    prepare_gpu()
    chosen = choose_steps(job, settings, wish, plan, best_device().type != "cpu")
    _say(chosen or "")
    if plan is not None:
        settings = build(wish.kind, plan.values)
        for name in ("run", "resume", "minutes"):  # of one run: --config takes the plan for another
            plan.given.pop(name, None)
        run.notes[PLAN] = str(plan)
        _say(f"plan, also in {run.path / PLAN}:\n{run.notes[PLAN]}")
    train(job, run, settings)


def _shipped() -> list[Path]:
    """The denoiser that ships, where it is there."""
    folder = shipped("histology64")
    return [folder] if (folder / "model_index.json").is_file() else []


def _say(text: str) -> None:
    if text and os.environ.get("RANK", "0") == "0":
        print(text)

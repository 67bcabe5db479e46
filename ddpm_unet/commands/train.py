"""Training: `ddpm-unet train-ddpm`, `train-seg` and `train-autoencoder`, and `check`.

What nobody gave comes, of data of one's own, from a plan (`ddpm_unet.training.plan`), which is
printed and kept in the run folder as plan.yaml; of built-in data from the recipe that ships.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_unet.commands.shared import best_device, models_at_hand, prepare_gpu, recipe
from ddpm_unet.config import AutoencodeConfig, CheckConfig, DenoiseConfig, SegmentConfig
from ddpm_unet.config.reading import build, read_file, read_flags, read_settings
from ddpm_unet.errors import UserError

if TYPE_CHECKING:
    from ddpm_unet.training.pixelwise import PixelwiseJob
    from ddpm_unet.training.plan import Plan

BUILTIN, PLAN = "builtin:", "plan.yaml"
WAY = re.compile(r"init|architecture|train\.steps|(model|head|regression|joint)\.")
"""Settings that, given, say how a segmenter begins or how long it learns; else ways are tried."""
CURE = "train one with scripts/train_ddpm.py, or give --init DIR or --init scratch"


@dataclass
class Wish:
    """What a person wants of a training.

    Args:
        values: Settings by dotted name: of flags, and of a file.
        flags: Names of those that flags give.
        planned: Whether the rest is to be planned.
        begun: When, by `time.monotonic`, the command began.
    """

    values: dict[str, Any]
    flags: set[str]
    planned: bool
    begun: float


def _read(kind: type, default: str, arguments: Sequence[str] | None, data: str = "") -> Wish:
    """The settings that flags and --config give.

    Without --config, data of one's own are planned, or were: then the run's plan is the file. Of
    built-in data, and of a job without `data` to plan by, it is a recipe.
    """
    begun = time.monotonic()
    flags, file = read_flags(kind, arguments, default)
    run, source, planned = flags.get("run"), str(flags.get(data, BUILTIN)), False
    if file is None and not source.startswith(BUILTIN) and flags.get("data.masks") != "points":
        what = "denoiser" if kind is DenoiseConfig else "segmenter"
        run = run or f"runs/{Path(source.rpartition(':')[2]).name}_{what}"
        file = Path(run) / PLAN
        planned = not (file.is_file() and any(Path(run).glob("checkpoints/[0-9]*")))
    file = file or recipe(default)
    written = {} if planned else read_file(kind, file)
    run = run or written.get("run") or f"runs/{file.stem}"
    return Wish({**written, **flags, "run": str(run)}, set(flags), planned, begun)


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

    from ddpm_unet.evaluation.card import write_pages
    from ddpm_unet.training import planned
    from ddpm_unet.training.from_config import build_pixel_job
    from ddpm_unet.training.run_folder import RunFolder

    (own, ours), run = models_at_hand(), RunFolder(Path(wish.values["run"]))
    if wish.planned:
        seen, device = planned.look_at_pairs(wish.values), best_device().type
        plan, report = planned.plan_pairs(seen, planned.find_start(seen, own, ours), device)
        if plan.values["architecture"] == "unet" and not any(map(WAY.match, wish.values)):
            scratch = planned.plan_pairs(seen, planned.SCRATCH, device)
            plan, report = planned.better_way([(plan, report), scratch], settings.minutes, _say)
        settings = build(SegmentConfig, plan.values)
    data = labelled_data(settings)
    settings.data = replace(settings.data, dims=data.dims)
    settings.init = settings.init or run.setting("init")
    if settings.architecture == "unet" and not settings.init:
        channels = planned.channels_of(data)
        denoiser, why = planned.choose_denoiser(
            replace(settings, data=data), channels, [*own, *ours]
        )
        if denoiser is None and own:
            repeat = channels == 1 and not settings.head.repeat_grey
            cure = "set head.repeat_grey true to repeat the grey channel, " * repeat + CURE
            raise UserError(f"no denoiser to start from: {why}; {cure}")
        settings.init = str(denoiser or "scratch")
        nothing = "starting from random weights: no denoiser of such images is at hand"
        _say(why if denoiser else nothing)
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
    from ddpm_unet.training.run_folder import RunFolder

    run, accelerated = RunFolder(Path(settings.run)), best_device().type != "cpu"
    prepare_gpu()
    chosen, why = choose_steps(job, settings, wish.flags, wish.planned, accelerated, wish.begun)
    for name, value in chosen.items():
        if f"train.{name}" not in wish.flags:
            setattr(settings.train, name, value)
    if plan is not None:
        plan.apply(chosen, why)
        run.notes[PLAN] = str(plan)
        _say(f"plan, also in {run.path / PLAN}:\n{run.notes[PLAN]}")
    elif chosen:
        _say(f"train.steps {settings.train.steps}: {why}")
    train(job, run, settings)


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text)

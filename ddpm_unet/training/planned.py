"""From given settings to a plan of the rest: by the data, the models at hand, and a step's time."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_unet.config import DenoiseConfig, PairDataConfig, SegmentConfig
from ddpm_unet.config.data import check_data_settings
from ddpm_unet.config.reading import build
from ddpm_unet.data.check import OBJECTS, check_pairs
from ddpm_unet.data.folder import with_dims
from ddpm_unet.data.pairs import complete_settings, find_pairs
from ddpm_unet.data.pixels import convert_channels
from ddpm_unet.data.preprocessing import Preprocessing, labelled_data
from ddpm_unet.data.report import Report
from ddpm_unet.data.sources import source_images
from ddpm_unet.errors import UserError
from ddpm_unet.inference.conditioning import Conditioning
from ddpm_unet.models.autoencoder import PLACES
from ddpm_unet.models.pretrained import model_folder, read_config
from ddpm_unet.training import loop
from ddpm_unet.training.fingerprint import Fingerprint, objects_of, of_images, of_pairs
from ddpm_unet.training.from_config import build_pixel_job
from ddpm_unet.training.plan import (
    FEWEST_STEPS,
    SCRATCH,
    Plan,
    Start,
    choose_pixels,
    of_steps,
    plan_denoiser,
    plan_segmentation,
    schedule,
)
from ddpm_unet.training.run_folder import RunFolder

MINUTES: dict[type, float] = {DenoiseConfig: 120.0, SegmentConfig: 20.0}
"""That a planned training takes at most, unless `minutes` says otherwise."""
WANTED: dict[type, tuple[int, int]] = {DenoiseConfig: (20_000, 50_000), SegmentConfig: (1000, 3000)}
"""Steps that are enough, on a CPU and on an accelerator."""
TRIAL = 0.1
"""Share of a training for which each of two ways to begin is tried."""


def plan_images(values: dict[str, Any], device: str) -> Plan:
    """The plan of `train-ddpm` for the images of a source.

    Args:
        values: The settings that are given, by dotted name.
        device: Where it will run, "cpu" or "cuda".
    """
    settings = build(DenoiseConfig, values)
    found = of_images(source_images(with_dims(settings.data, settings.data.source)))
    start = Start(settings.init, "given", _seen_by(settings.init)) if settings.init else SCRATCH
    return plan_denoiser(Plan(found, device, values, start))


class Seen(NamedTuple):
    """What is given for a segmenter, and what its images are."""

    values: dict[str, Any]
    """The settings that are given, by dotted name."""
    settings: SegmentConfig
    """Those and defaults, as the files complete them."""
    found: Fingerprint


def look_at_pairs(values: dict[str, Any]) -> Seen:
    """Look at the images of `train-seg`."""
    settings = build(SegmentConfig, values)
    data = labelled_data(settings)
    found = of_pairs(find_pairs(complete_settings(data)).pairs)
    return Seen(values, replace(settings, data=data), found)


def find_start(seen: Seen, models: Sequence[Path], shipped: Sequence[Path]) -> Start:
    """The denoiser that is given, or the first that takes such images.

    Args:
        seen: The images.
        models: Denoisers, best first.
        shipped: Further ones, of which the images' units and scale say nothing of these.
    """
    config = seen.settings
    if config.architecture == "classic" or config.init == "scratch":
        given = None if config.init == "scratch" else config.init
        return Start(given, "the network has no denoiser")
    folder, why = config.init, "given"
    if folder is None:
        found = seen.found.channels
        colour = 3 if found == [1, 3] else max(found, default=None)
        channels = config.data.channel_count or colour
        chosen, why = choose_denoiser(config, channels, [*models, *shipped])
        if chosen is None:
            return Start(None, f"no denoiser at hand takes these images ({why})")
        folder = str(chosen)
    return Start(folder, why, None if Path(folder) in shipped else _seen_by(folder))


def plan_pairs(seen: Seen, start: Start, device: str) -> tuple[Plan, Report]:
    """The plan of `train-seg` for images and masks, and what their check found."""
    values, settings, found = seen
    data = settings.data
    if found.looks:  # the check needs to know what channels, and what is black and white
        draft = Plan(found, device, values, start)
        choose_pixels(draft)
        data = labelled_data(build(SegmentConfig, draft.values))
    report = check_pairs(replace(data, size=values.get("data.size", 1)))  # 1: chosen to fit
    report.stop_at_faults()
    if settings.task != "regress":
        found = replace(found, objects=objects_of(report))
    plan = plan_segmentation(Plan(found, device, values, start))
    if report.config.mask_kind != data.mask_kind:
        plan.choose("data.mask_kind", report.config.mask_kind, OBJECTS)
    return plan, report


def better_way(
    ways: Sequence[tuple[Plan, Report]], minutes: float | None, say: Callable[[str], None]
) -> tuple[Plan, Report]:
    """The plan that validates best after `TRIAL` of its training.

    The first, where there is nothing to validate by or too little time.

    Args:
        ways: Plans for the same images, and what the check of these found.
        minutes: What the training may take; None for `MINUTES` and `WANTED`.
        say: Takes a line for each before it is tried.
    """
    tried = []
    for plan, report in ways:
        settings = build(SegmentConfig, plan.values)
        job: Any = build_pixel_job(settings, report=report)
        if job.criterion is None:
            return ways[0]
        step = loop.seconds_a_step(job, settings)
        wanted = None if minutes else round(TRIAL * WANTED[SegmentConfig][plan.large])
        length = TRIAL * (minutes or MINUTES[SegmentConfig])
        if FEWEST_STEPS * step > 60 * length:
            return ways[0]
        for name, value in schedule(step, length, wanted=wanted).items():
            setattr(settings.train, name, value)
        way = plan.values["init"] if plan.values["architecture"] == "unet" else "2015's network"
        say(f"trying {way}: {settings.train.steps} steps of {step:.2g} s")
        tried.append((loop.trial_score(job, settings), way))
    plan, report = ways[max(range(len(ways)), key=lambda number: tried[number][0])]
    said = ", ".join(f"{way} {score:.3f}" for score, way in tried)
    plan.choose("init", plan.values["init"], "the better of those tried")
    plan.notes.append(f"tried, {job.criterion} of the validation images: {said}")
    return plan, report


def _seen_by(folder: str) -> Preprocessing | None:
    """How a denoiser's images were prepared, if that is known."""
    seen = Preprocessing.read(Path(folder), 1)
    return seen if seen.dtype else None


def choose_denoiser(
    config: SegmentConfig, channels: int | None, folders: Sequence[Path]
) -> tuple[Path | None, str]:
    """The first denoiser, of those given, best first, that sees what a segmenter is to see.

    Args:
        config: Of the segmenter.
        channels: Of its images; None where that is not known.
        folders: The denoisers.

    Returns:
        Its folder, if one fits, and why it was taken, or why none was.

    Raises:
        UserError: One cannot be read.
    """
    passed = list[str]()
    for folder in folders:
        fault = why_not(folder, config, channels)
        if fault is None:
            over = f"; passed over: {_some(passed)}" if passed else ""
            return folder, f"starting from {folder}{over}"
        passed.append(f"{folder} ({fault})")
    return None, _some(passed) or "there is none"


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def why_not(folder: Path, config: SegmentConfig, channels: int | None) -> str | None:
    """Why a denoiser cannot segment images of so many channels, in a few words; None if it can."""
    unet, own = read_config(model_folder(folder)), Conditioning.read(folder)
    taken = 1 if config.head.repeat_grey else unet.in_channels
    faults = {
        "denoises latents": any((folder / place).is_dir() for place in PLACES),
        "denoises images with their masks": own.mask_classes,
        "is conditioned on an image": own.concat_cond,
        "is self-conditioned": own.self_conditioning,
        "is conditioned on classes, and head.class_label is not set":
            (unet.num_class_embeds or unet.class_embed_type) and config.head.class_label is None,
        f"is of {unet.dims} dimensions, data.dims is {config.data.axes}":
            unet.dims != config.data.axes,
        f"takes {taken} channel{'s' * (taken > 1)}, the images have {channels}":
            channels not in (None, taken),
    }  # fmt: skip
    return next((fault for fault, present in faults.items() if present), None)


def channels_of(data: PairDataConfig) -> int | None:
    """Channels of the first image; None if it has faults, which the check of all will name."""
    with suppress(UserError):
        check_data_settings(data)
        for pair in find_pairs(complete_settings(data)).pairs[:1]:
            image = convert_channels(pair.read_image(), data.channel_count, pair.image_file)
            return image.shape[-1]
    return None


def choose_steps(
    job: Any, settings: Any, flags: Container[str], planned: bool, accelerated: bool, begun: float
) -> tuple[dict[str, Any], str]:
    """Fields of `TrainConfig` that depend on the time of a step, and why.

    There are some where the rest is planned, or `minutes` given. A run that goes on keeps its own.

    Args:
        job: What is trained.
        settings: Of it.
        flags: Names of the settings that flags give.
        planned: Whether a plan asks for them.
        accelerated: Whether there is an accelerator.
        begun: When, by `time.monotonic`, the command began.
    """
    minutes, given = settings.minutes, "train.steps" in flags
    if minutes and given:
        raise UserError(
            f"minutes {minutes:g}: --train.steps is given too; leave one of the two out"
        )
    if not planned and not minutes:
        return {}, ""
    if saved := RunFolder(Path(settings.run)).setting("train"):
        return {name: saved[name] for name in of_steps(1)}, "as the run began"
    if given:
        return of_steps(settings.train.steps), "given"
    step, costs = loop.seconds_a_step(job, settings), _costs(job, settings)
    if minutes:
        chosen = schedule(step, minutes, spent=time.monotonic() - begun, **costs)
        return chosen, f"{step:.2g} s a step on this machine, {minutes:g} minutes"
    most, wanted = MINUTES[type(settings)], WANTED[type(settings)][accelerated]
    chosen = schedule(step, most, wanted=wanted, **costs)
    return chosen, f"{step:.2g} s a step on this machine, {most:g} minutes at most (--minutes)"


def _costs(job: Any, settings: Any) -> dict[str, Any]:
    """Pixels that are predicted in a validation, a preview and the test, in those of a step."""
    batch, views = settings.train.batch_size, getattr(settings, "preview", None)
    if views:
        drawn = views.num_images * views.steps
        return {"validation": views.validation_images / batch, "preview": drawn / batch}
    window = settings.data.size**settings.data.axes
    sizes = np.array([[window]]) if job.validation is None else job.validation.sizes
    each = float(sizes.prod(1).mean()) / (batch * window)
    tested = len(job.split["test"]) if job.split else 0
    return {"validation": len(sizes) * each, "preview": each, "test": tested * each}

"""From given settings to a plan of the rest: by the data, the models at hand, and a step's time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from ddpm_unet.training.fingerprint import objects_of, of_images, of_pairs
from ddpm_unet.training.plan import (
    Machine,
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
NO_DENOISER = "no denoiser to start from: "


@dataclass
class Wish:
    """What a person wants of a training.

    Args:
        kind: The class of its settings.
        values: Those that are given, by dotted name.
        flags: Names of those given as flags.
        planned: Whether the rest is to be planned.
        begun: When, by `time.monotonic`, the command began.
    """

    kind: type
    values: dict[str, Any]
    flags: set[str]
    planned: bool
    begun: float

    @property
    def run(self) -> RunFolder:
        """Its folder."""
        return RunFolder(Path(self.values["run"]))


def plan_images(values: dict[str, Any], device: str) -> Plan:
    """The plan of `train-ddpm` for the images of a source."""
    settings = build(DenoiseConfig, values)
    data = with_dims(settings.data, settings.data.source)
    start = _seen(settings.init, "given") if settings.init else None
    found = of_images(source_images(data), data.axes)
    return plan_denoiser(found, Machine(device, os.cpu_count() or 1), values, start)


def plan_pairs(
    values: dict[str, Any], device: str, models: Sequence[Path], shipped: Sequence[Path]
) -> tuple[Plan, Report]:
    """The plan of `train-seg` for images and masks, and what their check found.

    Args:
        values: The settings that are given.
        device: Where it will run, "cpu" or "cuda".
        models: Denoisers to start from, best first.
        shipped: Further ones, of which the images' units and scale say nothing of these.
    """
    settings, machine = build(SegmentConfig, values), Machine(device, os.cpu_count() or 1)
    data = labelled_data(settings)
    found = of_pairs(find_pairs(complete_settings(data)).pairs, data.axes)
    channels = {look.channels for look in found.looks}
    seen = data
    if "data.channels" not in values and channels:
        seen = replace(data, channels=3 if channels == {1, 3} else max(channels))
    start = _start(replace(settings, data=seen), values.get("init"), models, shipped)
    if found.looks:
        draft = Plan(found, machine, values)
        choose_pixels(draft, start)
        names = ("data.channels", "data.value_range")
        of_pixels = build(SegmentConfig, {name: draft.values[name] for name in names}).data
        data = replace(data, channels=of_pixels.channels, value_range=of_pixels.value_range)
    size = data.size if "data.size" in values else 1  # which no image is smaller than
    report = check_pairs(replace(data, size=size))
    report.stop_at_faults()
    if settings.task != "regress":
        found = replace(found, objects=objects_of(report))
    plan = plan_segmentation(found, machine, start, values, settings.head.transfer)
    if report.config.mask_kind != data.mask_kind:
        plan.choose("data.mask_kind", report.config.mask_kind, OBJECTS)
    return plan, report


def _start(
    settings: SegmentConfig, given: Any, models: Sequence[Path], shipped: Sequence[Path]
) -> Start:
    """The denoiser that is given, or the first that takes such images, else none."""
    if settings.architecture == "classic" or given == "scratch":
        return Start(None, "the network has no denoiser")
    why = "given"
    if given is None:
        try:
            folder, why = choose_denoiser(settings, [*models, *shipped], "train one")
        except UserError as error:
            why = str(error).removeprefix(NO_DENOISER).rpartition(";")[0] or "there is none"
            return Start(None, f"no denoiser at hand takes these images ({why})")
        given = str(folder)
    return Start(given, why) if Path(given) in shipped else _seen(given, why)


def _seen(folder: str, why: str) -> Start:
    """A denoiser, and how its images were prepared if that is known."""
    seen = Preprocessing.read(Path(folder), 1)
    known = (seen.scale, seen.value_range, seen.channels) if seen.dtype else ()
    return Start(folder, why, *known)


def choose_denoiser(config: SegmentConfig, folders: Sequence[Path], cure: str) -> tuple[Path, str]:
    """The first denoiser, of those given, best first, that sees what a segmenter is to see.

    Returns:
        Its folder, and a line that names it and says why those before it were passed over.

    Raises:
        UserError: None fits, with `cure` as what to do; or one cannot be read.
    """
    channels, passed = channels_of(config.data), list[str]()

    def shown(most: int = 4) -> str:
        more = f" and {len(passed) - most} more" if len(passed) > most else ""
        return ", ".join(passed[:most]) + more

    for folder in folders:
        fault = why_not(folder, config, channels)
        if fault is None:
            return folder, f"starting from {folder}" + f"; passed over: {shown()}" * bool(passed)
        passed.append(f"{folder} ({fault})")
    if channels == 1 and not config.head.repeat_grey:
        cure = f"set head.repeat_grey true to repeat the grey channel, {cure}"
    raise UserError(f"{NO_DENOISER}{shown()}; {cure}")


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
    job: Any, settings: Any, wish: Wish, plan: Plan | None, accelerated: bool
) -> str | None:
    """Set what depends on the time of a step, if a plan or a budget asks for it.

    In the plan, if there is one, else in `settings`, and then gives a line that says it. A run that
    goes on keeps its own.
    """
    train, minutes = settings.train, settings.minutes
    if minutes and "train.steps" in wish.flags:
        raise UserError(
            f"minutes {minutes:g}: --train.steps is given too; leave one of the two out"
        )
    if plan is None and not minutes:
        return None
    if saved := wish.run.setting("train"):  # a budget is spent on the run as it was begun
        chosen, why = {name: saved[name] for name in of_steps(1)}, "as the run began"
    elif plan is not None and "train.steps" in plan.given:
        chosen, why = of_steps(train.steps), "given"
    else:
        step, budget = loop.seconds_a_step(job, settings), minutes or MINUTES[wish.kind]
        wanted = None if minutes else WANTED[wish.kind][accelerated]
        spent = (time.monotonic() - wish.begun) if minutes else 0.0
        chosen = schedule(step, budget, wanted=wanted, spent=spent, **_costs(job, settings))
        why = f"{step:.2g} s a step on this machine, {budget:g} minutes"
        why += " at most (--minutes)" * (not minutes)
    if plan is not None:
        plan.apply(chosen, why)
        return None
    for name, value in chosen.items():
        if f"train.{name}" not in wish.flags:
            setattr(train, name, value)
    return f"train.steps {train.steps}: {why}"


def _costs(job: Any, settings: Any) -> dict[str, float]:
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

"""Training: `ddpm-unet train-ddpm`, `train-seg` and `train-autoencoder`, and `check`.

What nobody gave comes, of data of one's own, from a plan (`ddpm_unet.training.plan`), which is
printed and kept in the run folder as plan.yaml; of built-in data from the recipe that ships.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm_unet.commands.shared import best_device, prepare_gpu, recipe, shipped
from ddpm_unet.config import AutoencodeConfig, CheckConfig, DenoiseConfig, SegmentConfig
from ddpm_unet.config.data import DataConfig
from ddpm_unet.config.reading import build, read_values
from ddpm_unet.errors import UserError

if TYPE_CHECKING:
    from ddpm_unet.data.check import Report
    from ddpm_unet.training.pixelwise import PixelwiseJob
    from ddpm_unet.training.plan import Fingerprint, Look, Machine, Objects, Plan, Start

BUILTIN, PLAN = "builtin:", "plan.yaml"
CURE = "train one with scripts/train_ddpm.py, or give --init DIR or --init scratch"
MINUTES: dict[type, float] = {DenoiseConfig: 120.0, SegmentConfig: 20.0}
"""That a planned training takes at most, unless --minutes says otherwise."""
WANTED: dict[type, tuple[int, int]] = {DenoiseConfig: (20_000, 50_000), SegmentConfig: (1000, 3000)}
"""Steps that are enough, on a CPU and on an accelerator."""


@dataclass
class _Wish:
    """What a person wants: values by dotted name, those given as flags, whether it is planned."""

    kind: type
    values: dict[str, Any]
    flags: set[str]
    planned: bool
    begun: float

    @property
    def run(self) -> Path:
        return Path(self.values["run"])


def _read(kind: type, default: str, arguments: Sequence[str] | None, data: str = "") -> _Wish:
    """The settings that are given: by flags and --config, else by the run's own plan.

    Those of built-in data, or of a job without `data` to plan by, are completed by a recipe.
    """
    begun = time.monotonic()
    values, flags, file = read_values(kind, None, arguments, default)
    source, run = str(values.get(data, BUILTIN)), values.get("run")
    _refuse_flat(values, source)
    if file is None and not source.startswith(BUILTIN) and values.get("data.masks") != "points":
        what = "denoiser" if kind is DenoiseConfig else "segmenter"
        run = Path(run or f"runs/{Path(source.rpartition(':')[2]).name}_{what}")
        again = (run / PLAN).is_file() and any((run / "checkpoints").glob("[0-9]*"))
        if again:
            values, _, _ = read_values(kind, run / PLAN, arguments)
        return _Wish(kind, {**values, "run": str(run)}, flags, not again, begun)
    if file is None:
        file = recipe(default)
        values, _, _ = read_values(kind, file, arguments)
    return _Wish(kind, {**values, "run": run or f"runs/{file.stem}"}, flags, False, begun)


def _refuse_flat(values: dict[str, Any], place: str) -> None:
    """Refuse images of two dimensions where the files are volumes."""
    from ddpm_unet.data.folder import with_dims

    if values.get("data.dims") == 2 and with_dims(DataConfig(), place).dims == 3:
        raise UserError(f"data.dims 2: {place} holds volumes; set it 3, or leave it out")


def train_ddpm(arguments: Sequence[str] | None = None) -> None:
    """Train a U-Net to denoise images."""
    wish, plan = _read(DenoiseConfig, "histology64.yaml", arguments, "data.source"), None

    from ddpm_unet.training.from_config import build_denoise_job

    if wish.planned:
        plan = _plan_denoiser(wish)
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
    arguments = [a for a in given if a != "--check"]
    wish = _read(SegmentConfig, "histology_nuclei.yaml", arguments, "data.images")
    settings, plan, report = build(SegmentConfig, wish.values), None, None

    from ddpm_unet.data.folder import with_dims
    from ddpm_unet.data.preprocessing import target_settings

    data = target_settings(settings.data) if settings.task == "regress" else settings.data
    if len(arguments) < len(given):
        from ddpm_unet.data.check import print_check

        print_check(data)
        return

    from ddpm_unet.training.from_config import build_pixel_job, choose_denoiser
    from ddpm_unet.training.run_folder import RunFolder, newest_models

    run = RunFolder(wish.run)
    if wish.planned:
        plan, report = _plan_segmentation(wish, settings)
        settings = build(SegmentConfig, plan.values)
    settings.data, data = (with_dims(each, each.images) for each in (settings.data, data))
    settings.init = settings.init or run.setting("init")
    if settings.architecture == "unet" and not settings.init:
        own = newest_models()
        try:
            denoiser, chosen = choose_denoiser(settings, data, [*own, *_shipped()], CURE)
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

    from accelerate import PartialState

    from ddpm_unet.evaluation.card import write_pages

    state = PartialState()
    if state.is_main_process:
        job.score_test(run, state.device, settings.train.native)
        write_pages(run.path)


def check(arguments: Sequence[str] | None = None) -> None:
    """Say what is right and wrong with images and masks."""
    from ddpm_unet.data.check import print_check

    values = read_values(CheckConfig, None, arguments)[0]
    _refuse_flat(values, str(values.get("data.images", BUILTIN)))
    print_check(build(CheckConfig, values).data)


def _train(job: Any, settings: Any, wish: _Wish, plan: Plan | None = None) -> None:
    from ddpm_unet.training.loop import train
    from ddpm_unet.training.run_folder import RunFolder

    run = RunFolder(wish.run)
    prepare_gpu()
    _choose_steps(job, settings, run, wish, plan)
    if plan is not None:
        settings = build(wish.kind, plan.values)
        for name in ("run", "resume", "minutes"):  # of one run: --config takes the plan for another
            plan.given.pop(name, None)
        run.notes[PLAN] = str(plan)
        _say(f"plan, also in {run.path / PLAN}:\n{run.notes[PLAN]}")
    train(job, run, settings)


def _choose_steps(job: Any, settings: Any, run: Any, wish: _Wish, plan: Plan | None) -> None:
    """Set what depends on the time of a step, if a plan or a budget asks for it."""
    from ddpm_unet.training.loop import seconds_a_step
    from ddpm_unet.training.plan import of_steps, schedule

    train, minutes = settings.train, settings.minutes
    saved = run.setting("train")
    if minutes and "train.steps" in wish.flags:
        raise UserError(
            f"minutes {minutes:g}: --train.steps is given too; leave one of the two out"
        )
    if plan is None and not minutes:
        return
    if saved:  # a budget is spent on the run as it was begun
        chosen, why = {name: saved[name] for name in of_steps(1)}, "as the run began"
    elif plan is not None and "train.steps" in plan.given:
        chosen, why = of_steps(train.steps), "given"
    else:
        step, budget = seconds_a_step(job, settings), minutes or MINUTES[wish.kind]
        wanted = None if minutes else WANTED[wish.kind][best_device().type != "cpu"]
        spent = (time.monotonic() - wish.begun) if minutes else 0.0
        chosen = schedule(step, budget, wanted=wanted, spent=spent, **_costs(job, settings))
        why = f"{step:.2g} s a step on this machine, {budget:g} minutes"
        why += " at most (--minutes)" * (not minutes)
    if plan is not None:
        plan.apply(chosen, why)
        return
    for name, value in chosen.items():
        if f"train.{name}" not in wish.flags:
            setattr(train, name, value)
    _say(f"train.steps {train.steps}: {why}")


def _costs(job: Any, settings: Any) -> dict[str, float]:
    """Pixels that are predicted in a validation, a preview and the test, in those of a step."""
    batch = settings.train.batch_size
    if not hasattr(job, "split"):
        views = getattr(settings, "preview", None)
        drawn = views.num_images * views.steps if views else 0
        return {"validation": (views.validation_images if views else 0) / batch,
                "preview": drawn / batch}  # fmt: skip
    window = settings.data.size**settings.data.dims
    sizes = np.array([[window]]) if job.validation is None else job.validation.sizes
    each = float(sizes.prod(1).mean()) / (batch * window)
    tested = len(job.split["test"]) if job.split else 0
    return {"validation": len(sizes) * each, "preview": each, "test": tested * each}


def _machine() -> Machine:
    from ddpm_unet.training.plan import Machine

    return Machine(best_device().type, os.cpu_count() or 1)


def _plan_denoiser(wish: _Wish) -> Plan:
    """By the images of a source."""
    from ddpm_unet.data.folder import with_dims
    from ddpm_unet.data.sources import source_images
    from ddpm_unet.training.plan import CUT, chosen_images, look_at, plan_denoiser

    settings: DenoiseConfig = build(DenoiseConfig, wish.values)
    data = settings.data
    if "data.dims" not in wish.values:
        data = with_dims(data, data.source)
    images, faults = source_images(data), list[UserError]()

    def looks() -> Iterator[Look]:
        for number in chosen_images(len(images)):
            try:
                info = images.info(number)
                if not info.in_pieces:
                    yield look_at(images.read(number), data.dims)
                    continue
                side = [min(length, CUT) for length in info.size]
                corner = [(n - m) // 2 for n, m in zip(info.size, side, strict=True)]
                part = look_at(images.read_window(number, corner, side))
                yield replace(part, size=info.size)
            except UserError as error:  # which the training names
                faults.append(error)

    start = _seen(settings.init, "given") if settings.init else None
    found = _fingerprint(len(images), looks(), data)
    if not found.looks:
        raise faults[0]
    return plan_denoiser(found, _machine(), wish.values, start)


def _plan_segmentation(wish: _Wish, settings: SegmentConfig) -> tuple[Plan, Report]:
    """By the images and masks; gives what their check found too."""
    from ddpm_unet.data.check import check_pairs
    from ddpm_unet.data.folder import with_dims
    from ddpm_unet.data.pairs import complete_settings, find_pairs
    from ddpm_unet.data.preprocessing import target_settings
    from ddpm_unet.training.plan import chosen_images, look_at, plan_segmentation

    data = target_settings(settings.data) if settings.task == "regress" else settings.data
    if "data.dims" not in wish.values:
        data = with_dims(data, data.images)
    pairs = find_pairs(complete_settings(data)).pairs

    def looks() -> Iterator[Look]:
        for number in chosen_images(len(pairs)):
            with suppress(UserError):  # which the check names
                pair = pairs[number]
                yield look_at(pair.read_image(), data.dims, pair.spacing)

    found = _fingerprint(len(pairs), looks(), data)
    start = _start(wish, replace(settings, data=data), found)
    transfer = settings.head.transfer
    if found.looks:
        values = plan_segmentation(found, _machine(), start, wish.values, transfer).values
        of_pixels = {name: values[f"data.{name}"] for name in ("channels", "value_range")}
        as_read = build(SegmentConfig, {f"data.{n}": v for n, v in of_pixels.items()}).data
        data = replace(data, channels=as_read.channels, value_range=as_read.value_range)
    size = data.size if "data.size" in wish.values else 1  # which no image is smaller than
    report = check_pairs(replace(data, size=size))
    report.stop_at_faults()
    if settings.task != "regress":
        objects = _objects(report, chosen_images(len(report.pairs)))
        found = replace(found, objects=objects)
    return plan_segmentation(found, _machine(), start, wish.values, transfer), report


def _fingerprint(count: int, looks: Iterator[Look], data: DataConfig) -> Fingerprint:
    """Of the first images that are looked at, until they are many pixels."""
    from ddpm_unet.training.plan import MOST_PIXELS, Fingerprint

    seen: list[Look] = []
    for look in looks:
        seen.append(look)
        if sum(float(np.prod(each.size)) for each in seen) > MOST_PIXELS:
            break
    return Fingerprint(count, tuple(seen), dims=data.dims)


def _objects(report: Report, numbers: Sequence[int]) -> Objects:
    """What the masks of some pairs hold."""
    from ddpm_unet.training.plan import MOST_PIXELS, measure

    code, pixels = report.mask_code(), 0.0

    def masks() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        nonlocal pixels
        for number in numbers:
            pair = report.pairs[number]
            values = code.read(pair.read_mask(), pair.mask_file)
            classes = code.classes(values, pair.mask_file)
            numbered = code.kind == "instances"
            yield classes, code.cells(values, classes, ()) if numbered else None
            pixels += classes.size
            if pixels > MOST_PIXELS:
                return

    return measure(masks(), code.num_classes, report.config.dims)


def _start(wish: _Wish, settings: SegmentConfig, found: Fingerprint) -> Start:
    """The newest denoiser that takes such images, else none."""
    from ddpm_unet.training.from_config import choose_denoiser
    from ddpm_unet.training.plan import Start
    from ddpm_unet.training.run_folder import newest_models

    given = wish.values.get("init")
    if settings.architecture == "classic" or given == "scratch":
        return Start(None, "the network has no denoiser")
    channels = {look.channels for look in found.looks}
    if "data.channels" not in wish.values and channels:
        data = replace(settings.data, channels=3 if channels == {1, 3} else max(channels))
        settings = replace(settings, data=data)
    folders, why = [*newest_models(), *_shipped()], "given"
    if given is None:
        try:
            folder, why = choose_denoiser(settings, settings.data, folders, "train one")
        except UserError as error:
            why = str(error).removeprefix("no denoiser to start from: ").rpartition(";")[0]
            return Start(None, f"no denoiser at hand takes these images ({why or 'there is none'})")
        given = str(folder)
    return Start(given, why) if Path(given) in _shipped() else _seen(given, why)


def _shipped() -> list[Path]:
    """The denoiser that ships, where it is there."""
    folder = shipped("histology64")
    return [folder] if (folder / "model_index.json").is_file() else []


def _seen(folder: str, why: str) -> Start:
    """A denoiser, and how its images were prepared if that is known."""
    from ddpm_unet.data.preprocessing import Preprocessing
    from ddpm_unet.training.plan import Start

    seen = Preprocessing.read(Path(folder), 1)
    return Start(folder, why, *((seen.scale, seen.value_range) if seen.dtype else ()))


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text)

"""A plan of a training: what the images and the machine say of settings that nobody gave.

As nnU-Net does (Isensee 2021), rules make settings of a `Fingerprint` of the data, each with its
reason. A setting that was given wins, and the rules that depend on it go by it. Lengths are in
pixels of the files, unless `scale` is applied to them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddpm_unet.config.reading import inline_yaml
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.training.fingerprint import Fingerprint

OBJECT, SMALL_OBJECT, DETAIL = 24, 8, 3
"""Pixels, after scaling, that are enough of an object, a small one, and the thinnest class."""
SCALES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625)
FORWARD = 0.45
"""Time a pixel of a prediction takes, with the overlap of tiles, as a share of one in a step."""
FEWEST_STEPS = 10
"""Of any budget."""
RARE = 0.1
"""Share of the pixels below which windows seek a class, as nnU-Net's do."""
TO_TEST = 10
"""So many labelled images are enough to keep some to test."""
SIDES: dict[int, tuple[int, ...]] = {2: (64, 96, 128), 3: (40,)}
LARGER_SIDES: dict[int, tuple[int, ...]] = {2: (192, 256), 3: (64,)}
"""Of windows, of images and of volumes; the larger ones on accelerators alone."""
OF_ONE_RUN = ("run", "resume", "minutes")
SEEN = "as the denoiser saw its images"
FROM_SCRATCH = "2015's network learns fastest from scratch"


@dataclass(frozen=True)
class Start:
    """The denoiser that a training starts from.

    Args:
        folder: Of the model; None for none, so from scratch.
        why: In words.
        seen: How the images of its training were prepared, where they were images like these.
    """

    folder: str | None
    why: str
    seen: Preprocessing | None = None


SCRATCH = Start(None, "there is none")


@dataclass
class Plan:
    """Settings by dotted name, each with its reason; `given` ones stay as they are.

    Args:
        found: What the images are.
        device: Where the training will run: "cpu", "cuda", ...
        given: Settings that somebody gave.
        start: The denoiser to start from.

    Attributes:
        choices: What was chosen, and why.
        notes: Further lines on how.
    """

    found: Fingerprint
    device: str
    given: dict[str, Any] = field(default_factory=dict)
    start: Start = SCRATCH
    choices: dict[str, tuple[Any, str]] = field(default_factory=dict, init=False)
    notes: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.large = self.device != "cpu"
        self.kind = "of an accelerator" if self.large else "of a CPU"
        if self.found.dims == 3:
            self.choose("data.dims", 3, "the files are volumes")

    def choose(self, name: str, value: Any, reason: str) -> Any:
        """Decide on a setting; gives what holds."""
        if name in self.given:
            value, reason = self.given[name], "given"
        self.choices[name] = (value, reason)
        return value

    def apply(self, schedule: Mapping[str, Any], reason: str) -> None:
        """Take the fields of `TrainConfig` that `schedule` or `of_steps` gave."""
        for name, value in schedule.items():
            self.choose(f"train.{name}", value, reason if name == "steps" else "of these steps")

    @property
    def values(self) -> dict[str, Any]:
        """All settings, given and chosen, by dotted name."""
        return {**self.given, **{name: value for name, (value, _) in self.choices.items()}}

    def __str__(self) -> str:
        """A YAML file of settings for any run, each with its reason as a comment."""
        known = {*self.choices, *OF_ONE_RUN}
        rest = {n: (v, "given") for n, v in self.given.items() if n not in known}
        tree: dict[str, Any] = {}
        for name, choice in {**rest, **self.choices}.items():
            *groups, leaf = name.split(".")
            within = tree
            for group in groups:
                within = within.setdefault(group, {})
            within[leaf] = choice

        def lines(within: dict[str, Any], indent: str = "") -> list[str]:
            found = []
            for key, choice in within.items():
                if isinstance(choice, dict):
                    found += [f"{indent}{key}:", *lines(choice, f"{indent}  ")]
                else:
                    setting = f"{indent}{key}: {inline_yaml(choice[0])}".ljust(40)
                    found.append(f"{setting}  # {choice[1]}")
            return found

        seen = [f"found: {self.found}", f"on: {self.device}, {os.cpu_count()} cores"]
        return "\n".join([*(f"# {note}" for note in seen + self.notes), *lines(tree), ""])


def choose_pixels(plan: Plan) -> None:
    """Channels, and what is black and white: as a denoiser that is known saw them, if it is so.

    Else the range of the files' type where it is used, or what the images hold.
    """
    found, seen = plan.found, plan.start.seen
    channels, repeats = found.channels, plan.values.get("head.repeat_grey")
    if seen and seen.channels == 3 and set(channels) <= {1, 3} and not repeats:
        plan.choose("data.channels", 3, SEEN)
    elif channels == [1, 3]:
        plan.choose("data.channels", 3, "some images are grey, some in colour")
    elif channels[0] == 1:
        plan.choose("data.channels", 1, "the images are grey")
    elif channels[0] == 3:
        plan.choose("data.channels", 3, "the images are in colour")
    else:
        plan.choose("data.channels", None, f"as the images have them: {channels[0]}")
    if seen:
        plan.choose("data.value_range", seen.value_range, SEEN)
        return
    low, high = found.median("low"), found.median("high")
    used = f"pixels from {low:.4g} to {high:.4g} (0.5 and 99.5 %)"
    least, most = np.quantile([look.high - look.low for look in found.looks], [0.1, 0.9])
    tops = {look.top for look in found.looks}
    value_range: Any = "percentiles"
    why = f"{used}, and images differ in it"
    if len(tops) == 1 and max(tops) and least >= 0.4 * max(tops):
        value_range, why = None, f"{used} use the range of the files' type"
    elif most < 2 * max(least, 1e-12):
        ends = min(look.low for look in found.looks), max(look.brightest for look in found.looks)
        low, high = (float(f"{end:.4g}") for end in ends)
        if low < high:
            value_range, why = (low, high), f"{used} use a part of the files' type"
    plan.choose("data.value_range", value_range, why)


def _scale(plan: Plan, scale: float, why: str) -> float:
    if plan.start.seen:
        scale, why = plan.start.seen.scale, SEEN
    return float(plan.choose("data.scale", scale, why))


def _window(plan: Plan, scale: float, least: float) -> int:
    """Side of the training windows, at `scale`."""
    found = plan.found
    room = max(8, int(found.least_side * scale) // 8 * 8)
    sides = SIDES[found.dims] + LARGER_SIDES[found.dims] * plan.large
    size = next((side for side in sides if side >= least), sides[-1])
    said = f"{least:.0f} pixels hold four objects"
    if room < size:
        size, said = room, f"the smallest image is {found.least_side} pixels, x {scale:g}"
    return int(plan.choose("data.size", size, said))


def _batch(plan: Plan, size: int, pixels: int) -> None:
    """Windows a step: so many pixels in all."""
    window = size**plan.found.dims
    batch = min(max(16, pixels // 2**14), max(2, round(pixels / window)))
    plan.choose("train.batch_size", batch, f"{batch * window:,} pixels a step")


def plan_segmentation(plan: Plan) -> Plan:
    """Choose settings of `train-seg` for labelled images, or for pairs of images (no `objects`)."""
    found, init, objects = plan.found, plan.start.folder, plan.found.objects
    wanted, why, width = 1.0, "the images as they are", found.texture
    split_apart = False
    if objects and objects.typical:
        width = objects.typical
        if objects.touching is not None:
            said = f"masks number objects, {objects.touching:.0%} of which touch another"
            split_apart = bool(plan.choose("objects", objects.touching > 0.02, said))
        wanted = OBJECT / width
        why = (
            f"objects are {width:.3g} pixels wide (median of {len(objects.found)} in "
            f"{len(found.looks)} of {found.count} images)"
        )
        for length, enough, name in (
            (objects.small, SMALL_OBJECT * (1 + split_apart), "small ones"),
            (objects.detail, DETAIL, "the thinnest class"),
        ):
            if length and enough / length > wanted:
                wanted, why = enough / length, f"{why}, {name} {length:.3g}"
    choose_pixels(plan)
    scale = _scale(plan, next((s for s in SCALES if s <= wanted), SCALES[-1]), why)
    size = _window(plan, scale, 4 * width * scale)
    plan.choose("init", init or "scratch", plan.start.why)
    kind, why = ("unet", "the denoiser's") if init else ("classic", FROM_SCRATCH)
    classic = plan.choose("architecture", kind, why) == "classic"
    if classic:
        _classic(plan, size)
    elif init:
        plan.choose("head.transfer", "finetune", "the default way to use a denoiser")
    else:
        _unet(plan)
    _batch(plan, size, 2**20 if plan.large else 2 ** (17 if classic else 16))
    if objects and 0 < (rarest := min(filter(None, objects.shares), default=0)) < RARE:
        plan.choose("data.foreground", 0.33, f"the rarest class covers {rarest:.1%} of the pixels")
    _augment(plan, size, split_apart)
    _split(plan, scale)
    plan.choose("train.lr", 2e-3 if classic else 5e-4, "for a network of this kind")
    return plan


def _classic(plan: Plan, size: int) -> None:
    depth = 3 if size < 32 else 4
    plan.choose("classic.depth", depth, f"its coarsest level sees {size // 2 ** (depth - 1)} of "
                f"the window's {size} pixels a side")  # fmt: skip
    width = (32 if plan.large else 16) // (plan.found.dims - 1)
    plan.choose("classic.base_width", width, plan.kind)
    plan.choose("classic.padding", "same", "windows and images of any size")
    plan.choose("classic.norm", "batch", "learns faster")
    plan.choose("classic.dropout", 0.0, "augmentation is enough")


def _unet(plan: Plan) -> None:
    """The network of a denoiser."""
    widths: tuple[int, ...] = (64, 128, 192, 256) if plan.large else (32, 48, 96, 128)
    if plan.found.dims == 3:
        widths = tuple(width // 2 for width in widths[:3])
    widths = plan.choose("model.block_out_channels", widths, plan.kind)
    coarse, plain = "attention at the coarsest level", len(widths) - 1
    down, up = ("DownBlock2D",) * plain, ("UpBlock2D",) * plain
    plan.choose("model.down_block_types", (*down, "AttnDownBlock2D"), coarse)
    plan.choose("model.up_block_types", ("AttnUpBlock2D", *up), coarse)
    plan.choose("model.layers_per_block", 2 if plan.large else 1, "as wide")
    plan.choose("model.norm_num_groups", math.gcd(8, *widths), "divides the widths")
    plan.choose("model.attention_head_dim", math.gcd(32, widths[-1]), "divides the widths")


def _augment(plan: Plan, size: int, split_apart: bool) -> None:
    found, flat = plan.found, plan.found.dims == 2
    why = "micrographs have no up; set it false for scenes" if flat else "anatomy has sides"
    for name in ("flips", "rot90"):
        plan.choose(f"data.augment.{name}", flat, why)
    sigma = 0.0 if split_apart else float(min(10, round(size / 20)))
    why = "rims between objects do not survive it" if split_apart else f"a twentieth of {size}"
    plan.choose("data.augment.elastic_sigma", sigma, why)
    channels = plan.values.get("data.channels") or found.looks[0].channels
    if found.objects and channels == 3 and flat:
        plan.choose("data.augment.color", 0.1, "stains and lamps differ")


def _split(plan: Plan, scale: float) -> None:
    found, count = plan.found, plan.found.count
    if count == 1:
        length = max(found.looks[0].size)
        share = 0.2 if 0.2 * length >= 32 and 0.8 * length - 32 >= 32 else 0.0
        why = "strips of the only image" if share else "the only image is too small to part"
        plan.choose("data.split.validation", share, why)
        plan.choose("data.split.test", 0, "the only image")
        return
    alike = found.neighbours_alike
    why = "images that follow each other are alike" if alike else "images do not follow each other"
    plan.choose("data.split.by", "blocks" if alike else "files", why)
    tested = min(50, round(0.2 * count)) if count >= TO_TEST else 0
    why = f"of {count} images" if tested else f"fewer than {TO_TEST} images: all are needed"
    plan.choose("data.split.test", tested, why)
    pixels = float(np.median([math.prod(look.size) for look in found.looks]))
    affordable = max(1, int(2**23 / (pixels * scale**found.dims)))
    validating = max(1, min(round(0.2 * count), 16, affordable))
    plan.choose("data.split.validation", validating, f"of {count} images")


def plan_denoiser(plan: Plan) -> Plan:
    """Choose settings of `train-ddpm` for a folder of images, from scratch or from a denoiser."""
    texture, room = plan.found.texture, plan.found.least_side
    side = (128 if plan.large else 64) if plan.found.dims == 2 else 32
    side = int(plan.values.get("data.size", min(side, max(8, room // 8 * 8))))
    scale, why = 1.0, f"what the images show is {texture:.3g} pixels wide"
    if texture:
        wanted = max(side / 4 / texture, side / room)
        scale = next((s for s in reversed(SCALES) if s >= wanted), 1.0)
        why += f", four of which are to fit in {side}"
    if plan.values.get("data.fit") == "resize":
        scale, why = 1.0, "images are resized to data.size"
    choose_pixels(plan)
    scale = _scale(plan, scale, why)
    side = min(side, max(8, int(room * scale) // 8 * 8))
    why = f"{plan.kind}, and the smallest image is {room} pixels, x {scale:g}"
    _batch(plan, int(plan.choose("data.size", side, why)), 2**20 if plan.large else 2**15)
    if not plan.start.folder:
        _unet(plan)
        plan.choose("diffusion.prediction_type", "v_prediction", "the best in docs/recipes.md")
        plan.choose("diffusion.beta_schedule", "squaredcos_cap_v2", "the best in docs/recipes.md")
    plan.choose("train.lr", 2e-4 if plan.large else 5e-4, "for a network of this kind")
    return plan


def schedule(
    step: float,
    minutes: float,
    *,
    wanted: int | None = None,
    validation: float = 0.0,
    preview: float = 0.0,
    test: float = 0.0,
    spent: float = 0.0,
) -> dict[str, Any]:
    """The fields of `TrainConfig` of a training that ends, with its test, within some minutes.

    A tenth of the time is left over, as machines have other work; validations take a fifth at
    most, and the first preview comes within a minute.

    Args:
        step: Seconds of a step.
        minutes: All there is.
        wanted: More steps are not needed; None takes all that fit.
        validation: Pixels of all images that validate, as a share of those of a step.
        preview: Likewise of the image of a preview.
        test: Likewise of the images kept to test.
        spent: Seconds that are gone already.
    """
    left = 0.9 * 60 * minutes - spent - 1.5 * FORWARD * step * test
    looks = max(1, min(8, int(0.2 * left / max(FORWARD * step * validation, 1e-9))))
    left -= looks * FORWARD * step * validation
    shown = FORWARD * step * preview
    sample_every = max(1, int(max(40.0, 20 * shown) / step))
    steps = int((left - shown) / (step + shown / sample_every))
    steps = max(FEWEST_STEPS, steps) if wanted is None else max(1, min(wanted, steps))
    return of_steps(steps, looks) | {"sample_every": min(sample_every, steps)}


def of_steps(steps: int, looks: int = 8) -> dict[str, Any]:
    """The same for a number of steps, where the time of one is not known."""
    return {
        "steps": steps,
        "warmup_steps": min(500, steps // 10),
        "ema_decay": float(f"{min(0.9995, max(0.9, 1 - 10 / steps)):.4g}"),
        "validate_every": math.ceil(steps / looks),
        "sample_every": math.ceil(steps / 10),
        "checkpoint_every": max(1, min(1000, math.ceil(steps / 8))),
    }

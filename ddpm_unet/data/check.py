"""The check of a labelled set, before training or alone by `ddpm-unet check`.

It reads every image and mask, prints what it found, and stops with one line per fault.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ddpm_unet.config import ExtraPairsConfig, PairDataConfig
from ddpm_unet.config.data import check_data_settings
from ddpm_unet.data.cells import FEW, number_objects
from ddpm_unet.data.masks import MaskCode, color_of, find_code, ignored_value, listed, mask_values
from ddpm_unet.data.pairs import POINTS, Pair, complete_settings, find_pairs
from ddpm_unet.data.pixels import convert_channels, normalised, shown_size, to_unit
from ddpm_unet.data.preprocessing import Targets
from ddpm_unet.data.report import Report
from ddpm_unet.data.volumes import in_mm, spacing_of
from ddpm_unet.errors import UserError

RARE = 1e-4
OBJECTS = "masks number objects, by values that follow each other and differ from mask to mask"
"""What is said where nobody said it."""


@dataclass(frozen=True)
class _Look:
    """What one pair shows before its mask is understood."""

    pair: Pair
    size: tuple[int, ...]
    channels: int
    dtype: np.dtype
    span: tuple[float, float]
    digest: bytes
    content: bytes
    values: np.ndarray
    pixels: np.ndarray
    top: float
    target: Targets | None

    @property
    def kind(self) -> str:
        return f"{self.channels} channel{'s' * (self.channels > 1)} of {self.dtype}"


def check_pairs(config: PairDataConfig, finished: bool = False) -> Report:
    """Look at every image and mask; errors that leave nothing to look at are raised.

    `finished` is of `find_pairs`.
    """
    report = Report(complete_settings(config))
    check_data_settings(report.config)
    pairing = find_pairs(report.config, finished)
    if pairing.objects and report.config.mask_kind == "auto":
        report.config = replace(report.config, mask_kind="instances")
    report.faults += pairing.faults
    looks = [look for pair in pairing.pairs if (look := _look_at(pair, report)) is not None]
    report.lines.append(f"{len(looks)} pairs of {config.images} and {config.masks}")
    report.lines += pairing.notes
    if looks:
        report.pairs = [look.pair for look in looks]
        report.sizes = [look.size for look in looks]
        contents = b"".join(look.content for look in looks)
        report.content = hashlib.blake2b(contents, digest_size=16).hexdigest()
        _judge_images(looks, report)
        if report.config.mask_kind == "images":
            _judge_targets(looks, report)
        else:
            _judge_masks(looks, report)
    elif not report.faults:
        report.faults.append(f"{config.masks}: no mask belongs to an image of {config.images}")
    if config.extra.images or config.extra.masks:
        _check_extra(report)
    return report


def _check_extra(report: Report) -> None:
    """Look at the further pairs, whose masks have the classes of the others."""
    config, extra, code = report.config, report.config.extra, report.code
    if not (extra.images and extra.masks):
        raise UserError("data.extra: give a folder for both, data.extra.images and .masks")
    if config.mask_kind == "images":
        raise UserError("data.extra: is for masks, not for images; set data.extra.images null")
    if code is None:
        return
    place = {"images": extra.images, "masks": extra.masks, "image_name": "{}", "mask_name": "{}"}
    classes = {"num_classes": code.num_classes, "class_names": tuple(code.class_names)}
    values: dict[str, Any] = {"mask_kind": "classes", "mask_values": (), "ignore_value": None}
    values["spacing"] = None
    values |= {**place, **classes, "scale": extra.scale, "extra": ExtraPairsConfig()}
    found = check_pairs(replace(config, **values))
    if found.pairs and found.channels != report.channels:
        found.faults.append(
            f"{extra.images}: images have {found.channels} channels, those of {config.images} "
            f"{report.channels}; set data.channels"
        )
    report.extra = found
    report.lines += ["", f"in training only, {extra.share:.0%} of the windows:", *found.lines]
    report.warnings += found.warnings
    report.faults += found.faults


def _look_at(pair: Pair, report: Report) -> _Look | None:
    """Read a pair; None, and a fault noted, where it cannot be used."""
    config, target, what = report.config, None, "mask"
    try:
        original = normalised(pair.read_image(), config.value_range)
        mask = pair.read_mask()
        image = convert_channels(original, config.channel_count, pair.image_file)
        if image.dtype.kind == "f":
            to_unit(image, config.value_range, pair.image_file)
        if config.mask_kind == "images":
            target, what = Targets.of(mask, config.target_range, pair.mask_file), "target"
            values = np.array([mask.min(), mask.max()])
        else:
            values = mask_values(mask, config.mask_kind == "colors", pair.mask_file)
    except UserError as error:
        report.faults.append(str(error))
        return None
    size, mask_size = image.shape[:-1], mask.shape[:-1]
    if size != mask_size:
        cure = f"save the {what} at the size of the image"
        cure += ", without smoothing" * (what == "mask")
        if sorted(size) == sorted(mask_size):
            cure = "turn one of the two by 90 degrees"
        report.faults.append(
            f"{pair.mask_file}: is {shown_size(mask_size)} but its image is {shown_size(size)} "
            f"({pair.image_file}); {cure}"
        )
        return None
    if original.shape == mask.shape and (original == mask).all():
        report.faults.append(
            f"{pair.mask_file}: is the same image as {pair.image_file}; see data.masks"
        )
        return None
    digest = hashlib.blake2b(f"{image.shape}".encode() + image.tobytes()).digest()
    content = hashlib.blake2b(digest + mask.tobytes()).digest()
    top = 1 if mask.dtype.kind == "f" else np.iinfo(mask.dtype).max
    span, kind = (float(image.min()), float(image.max())), (image.shape[-1], image.dtype)
    held = np.unique(values, return_counts=True)
    return _Look(pair, size, *kind, span, digest, content, *held, top, target)


def _judge_images(looks: Sequence[_Look], report: Report) -> None:
    """Sizes, depth, channels and voxels, and images that look wrong."""
    first, config = looks[0], report.config
    report.channels, report.dtype = first.channels, first.dtype
    for look in looks:
        if look.kind != first.kind:
            report.faults.append(
                f"{look.pair.image_file}: has {look.kind}, but {first.pair.image_file} "
                f"{first.kind}; convert one, or set data.channels"
            )
    if config.augment.color and (first.channels, config.axes) != (3, 2):
        report.faults.append(
            f"data.augment.color {config.augment.color:g}: is for RGB images, but "
            f"{first.pair.image_file} has {first.kind}; set it 0"
        )
    lows, highs = zip(*(look.span for look in looks), strict=True)
    low, high = min(lows), max(highs)
    report.highest = high
    sizes = sorted({look.size for look in looks}, key=math.prod)
    shown = " to ".join(dict.fromkeys(shown_size(size) for size in (sizes[0], sizes[-1])))
    report.lines.append(f"images: {shown} pixels, {first.kind}, values {low:g} to {high:g}")
    if first.dtype == np.uint16 and config.value_range is None and high < 65535 / 8:
        report.warnings.append(
            f"images use {low:g} to {high:g} of 0 to 65535 and look black to the network; set "
            f"data.value_range [{low:g}, {high:g}]"
        )
    window = config.size / config.scale
    small = [look.pair.image_file for look in looks if min(look.size) < window]
    _warn(report, small, f"smaller than the windows of data.size {config.size}, will be mirrored")
    blank = [look.pair.image_file for look in looks if look.span[0] == look.span[1]]
    _warn(report, blank, "a single value everywhere")
    alike = defaultdict(list)
    for look in looks:
        alike[look.digest].append(look.pair.image_file)
    for files in alike.values():
        _warn(report, files[1:], f"the same as {files[0]}")
    _judge_spacing(looks, report)


def _judge_spacing(looks: Sequence[_Look], report: Report) -> None:
    """Voxel sizes, which a network takes for one."""
    spacings, config = [look.pair.spacing for look in looks if look.pair.spacing], report.config
    if not spacings and config.spacing is None:
        return
    if config.masks == POINTS:
        raise UserError("data.spacing: is of images, the points have data.voxel; leave it out")
    report.spacing, shown, same = spacing_of(spacings, config.spacing, config.axes)
    line = f"{'voxels' if config.axes == 3 else 'pixels'} of {shown}"
    target = in_mm(report.spacing or ())
    if not same:
        line += f", resampled to {target} ({'data.spacing' if config.spacing else 'their median'})"
    report.lines.append(line)
    if spacings:
        unsaid = [look.pair.image_file for look in looks if not look.pair.spacing]
        _warn(report, unsaid, f"without a size of pixels, taken to be of {target}")
    for look in looks:
        try:
            report.scales(look.pair)
        except UserError as error:
            report.faults.append(str(error))


def _judge_targets(looks: Sequence[_Look], report: Report) -> None:
    """Channels and depth of images to predict, and those that look wrong."""
    first = looks[0]
    report.faults += [
        f"{look.pair.mask_file}: has {look.target}, but {first.pair.mask_file} {first.target}; "
        "convert one"
        for look in looks
        if look.target != first.target
    ]
    report.targets = first.target
    low, high = np.array([look.values for look in looks]).T
    report.lines.append(f"targets: {first.target}, values {low.min():g} to {high.max():g}")
    blank = [look.pair.mask_file for look in looks if look.values[0] == look.values[1]]
    _warn(report, blank, "a single value everywhere")


def _judge_masks(looks: Sequence[_Look], report: Report) -> None:
    """What the values mean, the classes' shares, and masks that look wrong."""
    config = report.config
    found = np.unique(np.concatenate([look.values for look in looks]))
    rich, ignored = max(looks, key=lambda look: len(look.values)), ignored_value(config)
    file, found = rich.pair.mask_file, found[found != ignored]
    stated = config.mask_values or config.num_classes or config.class_names
    if config.mask_kind == "auto" and not stated and len(found) > FEW:
        values = [look.values[look.values != ignored] for look in looks]
        if number_objects(values, mask_values(rich.pair.read_mask(), False, file), rich.top):
            config = report.config = replace(config, mask_kind="instances")
            report.lines.append(f"{OBJECTS}; if they do not, say data.mask_kind")
    try:
        code = find_code(config, found, _tops(looks, ignored))
    except UserError as error:
        report.faults.append(f"{config.masks}: {error} (most values: {file})")
        return
    report.class_pixels = np.zeros((len(looks), code.num_classes), np.int64)
    unclear = 0
    for look, counts in zip(looks, report.class_pixels, strict=True):
        file = look.pair.mask_file
        try:
            classes, pixels = code.classes(look.values, file), look.pixels
            held = look.values[look.values != code.ignore]
            if code.half is not None and len(held) == 2 and held[0] == 0 and held[1] <= code.half:
                raise UserError(
                    f"{file}: holds 0 and {held[1]:g}, and other masks more than twice that, so "
                    "that data.mask_kind threshold finds nothing in it; save all with one range"
                )
        except UserError as error:
            report.faults.append(str(error))
        else:
            np.add.at(counts, classes[classes >= 0], pixels[classes >= 0])
            if code.nearest:
                unclear += int(pixels[code.unclear(look.values)].sum())
    if report.faults:
        return
    report.code = code
    _tabulate(code, found, report)
    if code.nearest:
        share = unclear / max(1, int(report.class_pixels.sum()))
        report.lines.append(f"  {share:.3%} of the pixels have a colour that is near no class's")
    for number, meaning in ((0, "entirely unlabelled"), (1, "of one class only")):
        several = (report.class_pixels > 0).sum(1) == number
        files = [look.pair.mask_file for look, odd in zip(looks, several, strict=True) if odd]
        _warn(report, files, meaning)


def _tops(looks: Sequence[_Look], ignored: int | None) -> dict[float, float]:
    """The most that each type of mask can hold, and the most that its masks do hold."""
    tops: dict[float, float] = {}
    for look in looks:
        most = float(look.values[look.values != ignored].max(initial=0))
        tops[look.top] = max(tops.get(look.top, 0), most)
    held = {top: most for top, most in tops.items() if most > 0}
    return held or tops


def _tabulate(code: MaskCode, found: np.ndarray, report: Report) -> None:
    totals, within = report.class_pixels.sum(0), (report.class_pixels > 0).sum(0)
    labelled = max(1, int(totals.sum()))
    how = ", as data.mask_kind auto found" if report.config.mask_kind == "auto" else ""
    values = map(color_of, found) if code.kind == "colors" else found
    report.lines.append(f"masks: {listed(values)}: read as {code.kind}{how}")
    report.lines.append(f"  {'class':<20} {'pixels':>13} {'share':>9} {'masks':>6}")
    for number, name in enumerate(code.class_names):
        share = totals[number] / labelled
        report.lines.append(
            f"  {number:<3} {name:<16} {totals[number]:>13,} {share:>9.3%} {within[number]:>6,}"
        )
        if share < RARE:
            report.warnings.append(
                f"class {number} ({name}): too few pixels to learn, or a stray value "
                f"({totals[number]:,}, under {RARE:.2%} of all)"
            )
    unlabelled = sum(map(math.prod, report.sizes)) - int(totals.sum())
    if unlabelled:
        report.lines.append(f"  -   {'unlabelled':<16} {unlabelled:>13,}")


def _warn(report: Report, files: Sequence[str], what: str) -> None:
    if files:
        most = f"{len(files)} files are" if len(files) > 1 else "is"
        report.warnings.append(f"{files[0]}{' and others' * (len(files) > 1)}: {most} {what}")


def print_check(config: PairDataConfig) -> None:
    """Check a set and print what was found; faults are raised, a line each."""
    report = check_pairs(config)
    print(report)
    report.stop_at_faults()
    print("no fault found")

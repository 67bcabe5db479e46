"""A plan of a training: what the images and the machine say of settings that nobody gave.

As nnU-Net does (Isensee 2021), a `Fingerprint` of numbers is taken of the data, and rules make
settings of it, each with its reason. A setting that was given wins, and the rules that depend on
it go by it. Lengths are in pixels of the files, unless `scale` is applied to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import fft, ndimage

from ddpm_unet.config.reading import inline_yaml
from ddpm_unet.data.pixels import PERCENTILES, shown_size
from ddpm_unet.data.volumes import in_mm

MOST_IMAGES, MOST_PIXELS, CUT = 32, 64e6, 2048
"""Images that are looked at, their pixels in all, and the side of what is measured of each."""
OBJECT, SMALL_OBJECT, DETAIL = 24, 8, 3
"""Pixels, after scaling, that are enough of an object, a small one, and the thinnest class."""
SCALES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625)
HALF_OF_A_DISC = 0.404
"""Share of a disc's diameter by which it is shifted to cover half of itself."""
FORWARD = 0.45
"""Time a pixel of a prediction takes, with the overlap of tiles, as a share of one in a step."""
FEWEST_STEPS = 10
"""Of any budget."""
TO_TEST = 10
"""So many labelled images are enough to keep some to test."""


@dataclass(frozen=True)
class Look:
    """What one image shows.

    Args:
        size: (Depth,) height and width.
        channels: Without a constant alpha; 1 of grey that is saved as RGB.
        low, high: 0.5 and 99.5 percentile.
        top: The most that its type can hold; of floats that lie in [0, 1], 1, of others 0.
        brightest: 99.9 percentile.
        texture: See `texture_size`.
        thumbnail: Its grey values in 16 x 16 boxes.
        dtype: Of its pixels.
        spacing: Millimetres from pixel to pixel, where its file says it.
    """

    size: tuple[int, ...]
    channels: int
    low: float
    high: float
    top: float
    brightest: float
    texture: float
    thumbnail: np.ndarray = field(repr=False)
    dtype: str
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Objects:
    """What the masks show: widths of the connected pieces of each class, pixels, by class.

    Args:
        widths: See `widths`; of class 0 too.
        touching: Share of the objects that touch another, where masks number them.
        shares: Of the labelled pixels, by class.
    """

    widths: tuple[tuple[float, ...], ...]
    touching: float | None = None
    shares: tuple[float, ...] = ()

    @property
    def found(self) -> np.ndarray:
        """Widths of the pieces of all classes but 0."""
        return np.array([width for of in self.widths[1:] for width in of])

    @property
    def typical(self) -> float:
        """The median width of an object; 0 without any."""
        return float(np.median(self.found)) if len(self.found) else 0.0

    @property
    def small(self) -> float:
        """The width that 10 % of the objects are below."""
        return float(np.quantile(self.found, 0.1)) if len(self.found) else 0.0

    @property
    def detail(self) -> float:
        """The median width of the thinnest class, background too."""
        return min((float(np.median(of)) for of in self.widths if of), default=0.0)


@dataclass(frozen=True)
class Fingerprint:
    """What the images, and their masks if there are any, have in common."""

    count: int
    looks: tuple[Look, ...]
    objects: Objects | None = None
    dims: int = 2

    def __str__(self) -> str:
        """What was found, in a line or two."""
        sizes = sorted({look.size for look in self.looks}, key=math.prod)
        shown = " to ".join(dict.fromkeys(shown_size(size) for size in (sizes[0], sizes[-1])))
        kinds = sorted({f"{k.channels} channel{'s' * (k.channels > 1)} {k.dtype}"
                        for k in self.looks})  # fmt: skip
        spacing = {look.spacing for look in self.looks if look.spacing}
        said = f"{self.count} images, {shown} pixels, {', '.join(kinds)}"
        said += "".join(f", {in_mm(each)}" for each in sorted(spacing)[:1])
        if self.objects:
            shares = ", ".join(f"{share:.1%}" for share in self.objects.shares)
            said += f"; classes cover {shares}; {len(self.objects.found)} objects of "
            said += f"{self.objects.typical:.3g} pixels (10 % below {self.objects.small:.3g})"
        return said

    def quantile(self, name: str, share: float) -> float:
        """Of a number of `looks`."""
        return float(np.quantile([getattr(look, name) for look in self.looks], share))

    @property
    def least_side(self) -> int:
        """The shortest side of any image."""
        return min(min(look.size) for look in self.looks)

    @property
    def texture(self) -> float:
        """Median `texture_size`, pixels."""
        return self.quantile("texture", 0.5)

    @property
    def pixels(self) -> float:
        """Median pixels of an image."""
        return float(np.median([math.prod(look.size) for look in self.looks]))

    @property
    def neighbours_alike(self) -> bool:
        """Whether images that follow each other are more alike than distant ones, as slices are.

        By the correlation of `thumbnails` of images of one size: of each pair that follow each
        other, on average 0.2 higher than of images half of the set apart.
        """
        flat = [look.thumbnail.ravel() for look in self.looks]
        if len(flat) < 4 or len({look.size for look in self.looks}) > 1:
            return False
        with np.errstate(invalid="ignore"):  # images of one value
            like = np.nan_to_num(np.corrcoef(flat))
        near = [like[i, i + 1] for i in range(0, len(flat) - 1, 2)]
        apart = [like[i, (i + len(flat) // 2) % len(flat)] for i in range(len(flat))]
        return float(np.mean(near) - np.mean(apart)) > 0.2


@dataclass(frozen=True)
class Machine:
    """Where the training will run: "cpu", "cuda", ..., and its CPU cores."""

    device: str
    cores: int

    @property
    def large(self) -> bool:
        """Whether there is an accelerator."""
        return self.device != "cpu"


@dataclass(frozen=True)
class Start:
    """A denoiser to start from, and how its images were prepared; None for `folder`: from scratch.

    Args:
        folder: Of the model.
        why: In words.
        scale, value_range: Of its training on images like these; None where they are others.
    """

    folder: str | None
    why: str
    scale: float | None = None
    value_range: Any = None


class Plan:
    """Settings by dotted name, each with its reason; `given` ones stay as they are."""

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        self.given = dict(given or {})
        self.choices: dict[str, tuple[Any, str]] = {}
        self.notes: list[str] = []
        """Lines on what was found."""

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
        """A YAML file of settings, each with its reason as a comment."""
        lines = []
        rest = {n: (v, "given") for n, v in self.given.items() if n not in self.choices}
        tree: dict[str, Any] = {}
        for name, choice in {**rest, **self.choices}.items():
            *groups, leaf = name.split(".")
            within = tree
            for group in groups:
                within = within.setdefault(group, {})
            within[leaf] = choice

        def write(within: dict[str, Any], indent: str) -> None:
            for key, choice in within.items():
                if isinstance(choice, dict):
                    lines.append(f"{indent}{key}:")
                    write(choice, f"{indent}  ")
                    continue
                value, reason = choice
                lines.append(f"{indent}{key}: {inline_yaml(value)}".ljust(40) + f"  # {reason}")

        write(tree, "")
        return "\n".join([*(f"# {note}" for note in self.notes), *lines, ""])


def chosen_images(count: int) -> list[int]:
    """Numbers of the images to look at: pairs that follow each other, spread over the set."""
    if count <= MOST_IMAGES:
        return list(range(count))
    starts = np.linspace(0, count - 2, MOST_IMAGES // 2).round().astype(int)
    return sorted({int(number) for start in starts for number in (start, start + 1)})


def look_at(image: np.ndarray, dims: int = 2, spacing: tuple[float, ...] | None = None) -> Look:
    """What an image `[(D,) H, W, C]` of a file shows."""
    size, dtype = image.shape[:-1], image.dtype
    if image.shape[-1] in (2, 4) and np.ptp(image[..., -1]) == 0:
        image = image[..., :-1]
    if image.shape[-1] == 3 and dims == 2:
        part = image[::4, ::4].astype(np.float32)
        colour = np.abs(part - part.mean(axis=-1, keepdims=True)).mean()
        image = image if colour > 0.01 * max(float(np.ptp(part)), 1e-6) else image[..., :1]
    channels = image.shape[-1]
    middle = _middle(image, dims)
    grey = middle.mean(axis=-1, dtype=np.float32)
    values = grey if channels in (1, 3) else middle  # of what are no colours, a mean is nothing
    low, high, brightest = np.percentile(values, [*PERCENTILES, 99.9]).tolist()
    top = 0.0
    if dtype.kind == "u":
        top = float(np.iinfo(dtype).max)
    elif image.min() >= 0 and image.max() <= 1:
        top = 1.0
    plane = grey[len(grey) // 2] if dims == 3 else grey
    return Look(
        size, channels, low, high, top, brightest, texture_size(plane), _thumbnail(plane),
        dtype.name, spacing,
    )  # fmt: skip


def _thumbnail(plane: np.ndarray) -> np.ndarray:
    """The means of 16 x 16 boxes of an image `[H, W]`, or of as many pixels."""
    for axis, length in enumerate(plane.shape):
        starts = np.linspace(0, length, 17)[:-1].astype(int)
        ends = np.maximum(np.append(starts[1:], length), starts + 1)
        sums = np.cumsum(np.insert(plane, 0, 0, axis=axis), axis=axis, dtype=np.float64)
        picked = sums.take(ends, axis=axis) - sums.take(starts, axis=axis)
        plane = picked / np.expand_dims(ends - starts, 1 - axis)
    return plane


def _middle(array: np.ndarray, dims: int) -> np.ndarray:
    """What is measured of a large image."""
    cut = [slice((n - min(n, CUT)) // 2, (n + min(n, CUT)) // 2) for n in array.shape[:dims]]
    return array[tuple(cut)]


def texture_size(grey: np.ndarray) -> float:
    """The diameter of discs of whose images the autocorrelation falls to half at the same shift.

    Of an image `[H, W]`; white noise, which the autocorrelation has at no shift alone, does not
    count. 0 for an image of one value.
    """
    grey = grey[: 2 * (len(grey) // 2)]
    centred = grey - grey.mean()
    size = [2 * n for n in centred.shape]
    power = np.abs(fft.rfft2(centred, size)) ** 2
    found = fft.irfft2(power, size)[: len(centred), : centred.shape[1]]
    counts = np.outer(*(np.arange(n, 0, -1) for n in centred.shape))
    reach = max(2, min(centred.shape) // 2)
    along = (found[:reach, 0] / counts[:reach, 0] + found[0, :reach] / counts[0, :reach]) / 2
    if len(along) < 3 or along[1] <= 0:
        return 0.0
    along[0] = max(2 * along[1] - along[2], along[1])
    below = np.flatnonzero(along < along[0] / 2)
    if not len(below):
        return reach / HALF_OF_A_DISC
    after = int(below[0])
    before = along[after - 1]
    shift = after - 1 + (before - along[0] / 2) / (before - along[after])
    return float(shift / HALF_OF_A_DISC)


def widths(cells: np.ndarray) -> list[float]:
    """The width of each numbered piece, pixels: the diameter of the largest disc that it holds.

    Of a strip it is its breadth. Pieces that the image's end cuts count as far as they are seen.
    `cells` are numbers `int [*space]`, 0 for none.
    """
    found = []
    for number, box in enumerate(ndimage.find_objects(cells), start=1):
        if box is not None:
            inside = np.pad(cells[box] == number, 1)
            found.append(2 * float(ndimage.distance_transform_edt(inside).max()) - 1)
    return found


def measure(
    masks: Iterable[tuple[np.ndarray, np.ndarray | None]], num_classes: int, dims: int = 2
) -> Objects:
    """The objects of masks: classes `int [(D,) H, W]` and, if they are numbered, their numbers."""
    every: list[list[float]] = [[] for _ in range(num_classes)]
    counts, touch = np.zeros(num_classes), []
    for classes, cells in masks:
        classes = _middle(classes, dims)
        counts += np.bincount(classes[classes >= 0].ravel(), minlength=num_classes)
        for number in range(num_classes):
            if number == 1 and cells is not None:
                pieces = _middle(cells, dims)
                nearest = ndimage.minimum_filter(np.where(pieces > 0, pieces, pieces.max()), 3)
                other = (ndimage.maximum_filter(pieces, 3) != pieces) | (nearest != pieces)
                present = np.unique(pieces[pieces > 0])
                touch += np.isin(present, pieces[other]).tolist()
                every[number] += widths(np.unique(pieces, return_inverse=True)[1].reshape(
                    pieces.shape
                ))  # fmt: skip
            elif (classes == number).any():
                every[number] += widths(ndimage.label(classes == number)[0])
    shares = tuple((counts / max(1, counts.sum())).tolist())
    touching = float(np.mean(touch)) if touch else None
    return Objects(tuple(map(tuple, every)), touching, shares)


def _data(plan: Plan, found: Fingerprint, known: Start | None, wanted: float, why: str) -> float:
    """Channels, range and scale; `known` is the denoiser to start from."""
    looks = found.looks
    channels = sorted({look.channels for look in looks})
    if len(channels) > 1 and set(channels) <= {1, 3}:
        plan.choose("data.channels", 3, "some images are grey, some in colour")
    elif channels[0] == 1:
        plan.choose("data.channels", 1, "the images are grey")
    else:
        plan.choose("data.channels", None, f"as the images have them: {channels[0]}")
    if known and known.scale is not None:
        plan.choose("data.value_range", known.value_range, "as the denoiser saw its images")
    else:
        plan.choose("data.value_range", *_value_range(found))
    scale = next((s for s in SCALES if s <= max(wanted, SCALES[-1])), 1.0)
    if known and known.scale is not None:
        scale, why = known.scale, "as the denoiser saw its images"
    return float(plan.choose("data.scale", scale, why))


def _value_range(found: Fingerprint) -> tuple[Any, str]:
    """What is black and white: the type's range where it is used, else what the images hold."""
    tops = {look.top for look in found.looks}
    low, high = found.quantile("low", 0.5), found.quantile("high", 0.5)
    spans = [look.high - look.low for look in found.looks]
    top = max(tops)
    used = f"pixels from {low:.4g} to {high:.4g} (0.5 and 99.5 %)"
    if len(tops) == 1 and top and np.quantile(spans, 0.1) >= 0.4 * top:
        return None, f"{used} use the range of the files' type"
    if np.quantile(spans, 0.9) < 2 * max(np.quantile(spans, 0.1), 1e-12):
        ends = min(look.low for look in found.looks), max(look.brightest for look in found.looks)
        low, high = (float(f"{end:.4g}") for end in ends)
        if low < high:
            return [low, high], f"{used} use a part of the files' type"
    return "percentiles", f"{used}, and images differ in it"


def _window(plan: Plan, found: Fingerprint, scale: float, least: float, large: bool) -> int:
    """Side of the training windows, at `scale`."""
    room = max(8, int(found.least_side * scale) // 8 * 8)
    sizes = (40, 64) if found.dims == 3 else (64, 96, 128, 192, 256)
    most = sizes[-1] if large else sizes[len(sizes) // 2 - (found.dims == 3)]
    size = next((side for side in sizes if side >= min(least, most)), most)
    said = f"{least:.0f} pixels hold four objects"
    if room < size:
        size, said = room, f"the smallest image is {found.least_side} pixels, x {scale:g}"
    return int(plan.choose("data.size", size, said))


def _batch(plan: Plan, dims: int, size: int, pixels: int) -> None:
    """Windows a step: so many pixels in all."""
    batch = min(max(16, pixels // 2**14), max(2, round(pixels / size**dims)))
    plan.choose("train.batch_size", batch, f"{batch * size**dims:,} pixels a step")


def plan_segmentation(
    found: Fingerprint,
    machine: Machine,
    start: Start,
    given: Mapping[str, Any] | None = None,
    transfer: str = "finetune",
) -> Plan:
    """Settings of `train-seg` for labelled images, or for pairs of images (no `objects`).

    Args:
        found: Of the images.
        machine: Where it will run.
        start: The denoiser.
        given: Settings that somebody gave, by dotted name.
        transfer: How a denoiser's weights transfer.
    """
    plan, objects, dims = Plan(given), found.objects, found.dims
    plan.notes += [f"found: {found}", f"on: {machine.device}, {machine.cores} cores"]
    many = f"{len(found.looks)} of {found.count} images"
    if dims == 3:
        plan.choose("data.dims", 3, "the files are volumes")
    wanted, why, width = 1.0, "the images as they are", found.texture
    split_apart = False
    if objects and objects.typical:
        width, small, detail = objects.typical, objects.small, objects.detail
        if objects.touching is not None:
            said = f"masks number objects, {objects.touching:.0%} of which touch another"
            split_apart = bool(plan.choose("objects", objects.touching > 0.02, said))
        wanted = OBJECT / width
        why = f"objects are {width:.3g} pixels wide (median of {len(objects.found)} in {many})"
        for length, enough, name in (
            (small, SMALL_OBJECT * (1 + split_apart), f"small ones {small:.3g}"),
            (detail, DETAIL, f"the thinnest class {detail:.3g}"),
        ):
            if length and enough / length > wanted:
                wanted, why = enough / length, f"{why}, {name}"
    init = plan.given.get("init", start.folder)
    like = start if init == start.folder and found.dims == dims else None
    scale = _data(plan, found, like, wanted, why)
    size = _window(plan, found, scale, 4 * width * scale, machine.large)
    scratch = init in (None, "scratch")
    plan.choose("init", "scratch" if scratch else init, start.why)
    network = plan.choose(
        "architecture", "classic" if start.folder is None and scratch else "unet",
        "2015's network learns fastest from scratch" if scratch else "the denoiser's",
    )  # fmt: skip
    if network == "classic":
        _classic(plan, dims, size, machine.large)
    elif scratch:
        _unet(plan, dims, machine.large)
    else:
        plan.choose("head.transfer", transfer, "the default way to use a denoiser")
    _batch(plan, dims, size, 2**20 if machine.large else 2 ** (17 if network == "classic" else 16))
    _augment(plan, found, size, split_apart)
    _split(plan, found, scale)
    rate = 2e-3 if network == "classic" else 5e-4
    plan.choose("train.lr", rate, "for a network of this kind")
    return plan


def _classic(plan: Plan, dims: int, size: int, large: bool) -> None:
    depth = 3 if size < 32 else 4
    plan.choose("classic.depth", depth, f"its coarsest level sees {size // 2 ** (depth - 1)} of "
                f"the window's {size} pixels a side")  # fmt: skip
    width = (32 if large else 16) // (dims - 1)
    plan.choose("classic.base_width", width, f"of {'an accelerator' if large else 'a CPU'}")
    plan.choose("classic.padding", "same", "windows and images of any size")
    plan.choose("classic.norm", "batch", "learns faster")
    plan.choose("classic.dropout", 0.0, "augmentation is enough")


def _unet(plan: Plan, dims: int, large: bool) -> None:
    """The network of a denoiser."""
    widths = [64, 128, 192, 256] if large else [32, 48, 96, 128]
    if dims == 3:
        widths = [width // 2 for width in widths[:3]]
    widths = plan.choose(
        "model.block_out_channels", widths, f"of {'an accelerator' if large else 'a CPU'}"
    )
    levels = len(widths)
    attention = "attention at the coarsest level"
    down = ["DownBlock2D"] * (levels - 1) + ["AttnDownBlock2D"]
    plan.choose("model.down_block_types", down, attention)
    up = ["AttnUpBlock2D"] + ["UpBlock2D"] * (levels - 1)
    plan.choose("model.up_block_types", up, attention)
    plan.choose("model.layers_per_block", 2 if large else 1, "as wide")
    plan.choose("model.norm_num_groups", math.gcd(8, *widths), "divides the widths")
    plan.choose("model.attention_head_dim", math.gcd(32, widths[-1]), "divides the widths")


def _augment(plan: Plan, found: Fingerprint, size: int, split_apart: bool) -> None:
    """Random changes."""
    flat = found.dims == 2
    for name in ("flips", "rot90"):
        why = "micrographs have no up" if flat else "anatomy has sides"
        plan.choose(f"data.augment.{name}", flat, f"{why}; set it false for scenes" * flat or why)
    sigma = 0.0 if split_apart else float(min(10, round(size / 20)))
    why = "rims between objects do not survive it" if split_apart else f"a twentieth of {size}"
    plan.choose("data.augment.elastic_sigma", sigma, why)
    if found.objects is None:
        return
    channels = plan.values.get("data.channels") or found.looks[0].channels
    if channels == 3 and flat:
        plan.choose("data.augment.color", 0.1, "stains and lamps differ")


def _split(plan: Plan, found: Fingerprint, scale: float) -> None:
    """What validates and what is kept to test."""
    count = found.count
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
    affordable = max(1, int(2**23 / (found.pixels * scale**found.dims)))
    validating = max(1, min(round(0.2 * count), 16, affordable))
    plan.choose("data.split.validation", validating, f"of {count} images")


def plan_denoiser(
    found: Fingerprint,
    machine: Machine,
    given: Mapping[str, Any] | None = None,
    start: Start | None = None,
) -> Plan:
    """Settings of `train-ddpm` for a folder of images, from scratch or from a denoiser."""
    plan, large = Plan(given), machine.large
    plan.notes += [f"found: {found}", f"on: {machine.device}, {machine.cores} cores"]
    if found.dims == 3:
        plan.choose("data.dims", 3, "the files are volumes")
    texture, room = found.texture, found.least_side
    side = (128 if large else 64) if found.dims == 2 else 32
    side = int(plan.given.get("data.size", min(side, max(8, room // 8 * 8))))
    wanted, why = 1.0, f"what the images show is {texture:.3g} pixels wide"
    if texture:
        wanted = max(side / 4 / texture, side / room)
        wanted = next((s for s in reversed(SCALES) if s >= min(wanted, 1)), 1.0)
        why += f", four of which are to fit in {side}"
    if plan.given.get("data.fit") == "resize":
        wanted, why = 1.0, "images are resized to data.size"
    scale = _data(plan, found, start, wanted, why)
    size = int(plan.choose("data.size", side, f"of {'an accelerator' if large else 'a CPU'}, and "
                           f"the smallest image is {room} pixels, x {scale:g}"))  # fmt: skip
    _batch(plan, found.dims, size, 2**20 if large else 2**15)
    if not plan.given.get("init"):
        _unet(plan, found.dims, large)
        plan.choose("diffusion.prediction_type", "v_prediction", "the best in docs/recipes.md")
        plan.choose("diffusion.beta_schedule", "squaredcos_cap_v2", "the best in docs/recipes.md")
    plan.choose("train.lr", 5e-4 if not large else 2e-4, "for a network of this kind")
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

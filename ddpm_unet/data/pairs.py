"""Which mask belongs to which image: by name in folders, page by page in stacks, or built in."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ddpm_unet.config import PairDataConfig
from ddpm_unet.data import histology, points
from ddpm_unet.data.folder import list_images, natural, with_dims
from ddpm_unet.data.images import ImageInfo
from ddpm_unet.data.masks import half_of, mask_values
from ddpm_unet.data.pixels import check_channels
from ddpm_unet.data.reading import TIFF_EXTENSIONS, Reading, check_together, is_bio, split_ending
from ddpm_unet.errors import UserError, refuse

POINTS = "points"
MODALITY = re.compile(r"(.+)_(\d{4})")
"""Files of one image each of a channel, as nnU-Net names them: case_0000, case_0001."""


@dataclass(frozen=True)
class Pair:
    """An image and its mask, not read yet, by what they share of their names.

    `read_image` and `read_mask` decode `[(D,) H, W, C]`, uint8, uint16 or float32; messages say
    `image_file` and `mask_file`; `spacing` is in millimetres along (depth,) height and width.
    """

    name: str
    image_file: str
    mask_file: str
    read_image: Callable[[], np.ndarray]
    read_mask: Callable[[], np.ndarray]
    spacing: tuple[float, ...] | None = None


@dataclass
class Pairing:
    """The pairs in natural order of their names, notes to the user, and faults, a line each."""

    pairs: list[Pair]
    notes: list[str]
    faults: list[str]
    objects: bool = False
    """Each mask file holds one object of an image."""


def complete_settings(config: PairDataConfig) -> PairDataConfig:
    """The settings with what files, built-in masks and labelled points say about themselves."""
    config = with_dims(config, config.images)
    images, masks, builtin = config.images, config.masks, config.images in histology.SOURCES
    pointed, labelled = masks == POINTS, masks in histology.MASKS
    known = {"images": histology.SOURCES, "masks": histology.MASKS}
    refuse({
        f"masks {masks}: are masks, not images to predict; set data.images and data.masks to "
        "folders of images": config.mask_kind == "images" and (labelled or pointed),
        "channels: can be chosen of files only; give a number or null": (
            config.channel_names and (builtin or pointed)
        ),
        f"dims {config.axes}, data.scale {config.scale:g}: points become volumes of cells of "
        "data.voxel; set data.dims 3 and data.scale 1": (
            pointed and (config.axes, config.scale) != (3, 1)
        ),
        **{
            f"{setting} {name}: there is only {' and '.join(names)}": (
                name.startswith("builtin:") and name not in names
            )
            for (setting, names), name in zip(known.items(), (images, masks), strict=True)
        },
        f"images {images} and data.masks {masks} do not go together: give your own folders for "
        f"both, or {histology.SOURCE} with {' or '.join(histology.MASKS)}": builtin != labelled,
        f"dims {config.axes}: {images} is an image; set data.dims 2": labelled and config.axes != 2,
    }, "data.")  # fmt: skip
    if pointed:
        return replace(config, mask_kind="classes", ignore_value=points.EMPTY)
    if not labelled:
        return config
    if masks == histology.TYPE_MASKS:
        return replace(config, mask_kind="classes", class_names=histology.CLASS_NAMES)
    return replace(config, mask_kind="instances", class_names=("background", "nucleus"))


Files = dict[str, tuple[str, ...]]
"""The files of each image, or of each mask, by the part of their names that both share."""


@dataclass(frozen=True)
class FilenamePattern:
    """A folder and how the images, or volumes, in it are named."""

    root: str
    pattern: str
    dims: int = 2

    def shared(self, path: str) -> str | None:
        """What a file's name shares with its partner's; None if it does not fit the pattern."""
        before, after = self.pattern.split("{}")
        stem = Path(split_ending(path)[0]).name
        fits = stem.startswith(before) and stem.endswith(after)
        middle = stem[len(before) : len(stem) - len(after)]
        return os.path.join(os.path.dirname(path), middle) if fits and middle else None

    def files(self, what: str, other: FilenamePattern) -> tuple[Files, list[str], list[str]]:
        """Files by the shared part of their names, notes and faults.

        Where one folder is inside the other, what is inside belongs to the inner one; in one
        folder, a name that fits both patterns belongs to the longer.
        """
        if self.pattern.count("{}") != 1:
            raise UserError(
                f"data.{what}_name is {self.pattern!r}: write {{}} once, for instance '{{}}_{what}'"
            )
        files: Files = {}
        unfit, faults = [], []
        for path in list_images(Path(self.root), self.dims)[0]:
            full, name = os.path.join(self.root, path), self.shared(path)
            if self._belongs_to(other, full, path):
                continue
            if name is None:
                unfit.append(full)
            elif name in files:
                faults.append(f"{full}: has the name of {files[name][0]}; keep one of the two")
            else:
                files[name] = (full,)
        fit = "file does" if len(unfit) == 1 else "files do"
        notes = [f"{len(unfit)} {fit} not fit data.{what}_name, such as {path}" for path in unfit]
        return files, notes[:1], faults

    def _belongs_to(self, other: FilenamePattern, full: str, path: str) -> bool:
        mine, others = Path(self.root).resolve(), Path(other.root).resolve()
        if mine == others:
            return len(other.pattern) > len(self.pattern) and other.shared(path) is not None
        return others.is_relative_to(mine) and Path(full).resolve().is_relative_to(others)


def find_pairs(config: PairDataConfig, finished: bool = False) -> Pairing:
    """Pair images and masks; a UserError if there is nothing to pair at all.

    With `finished` the images are masks too, predicted ones: of palettes the indices are read, and
    of masks without an image there is a note, no fault.
    """
    if config.images in histology.SOURCES:
        return Pairing([_builtin_pair(config)], [], [])
    if config.masks == POINTS:
        return _point_sets(config)
    if all(Path(p).is_file() or is_bio(p) for p in (config.images, config.masks)):
        name = Path(split_ending(config.images)[0]).name
        pairing = Pairing([], [], [])
        _add_pairs(pairing, {name: (config.images,)}, {name: (config.masks,)}, config, finished)
        return pairing
    if Path(config.images).resolve() == Path(config.masks).resolve() and (
        config.image_name == config.mask_name
    ):
        raise UserError(
            f"{config.masks}: is the folder of the images too; set data.mask_name, such as "
            "'{}_mask', to tell the masks from them"
        )
    what = "target" if config.mask_kind == "images" else "mask"
    here = FilenamePattern(config.images, config.image_name, config.axes)
    there = FilenamePattern(config.masks, config.mask_name, config.axes)
    images, notes, faults = here.files("image", other=there)
    masks, mask_notes, mask_faults = there.files("mask", other=here)
    pairing = Pairing([], notes + mask_notes, faults + mask_faults)
    if not images.keys() & masks.keys():
        images = _modalities(images, masks, pairing)
        if objects := _objects(images, masks, config):
            pairing.objects, masks = True, objects
            pairing.notes.append(
                "mask files in a folder named as an image are its objects; where they overlap, the "
                "last one counts"
            )
    if images and masks and not images.keys() & masks.keys():
        (image, *_), (mask, *_) = next(iter(images.values())), next(iter(masks.values()))
        cure = _naming_hint(images, masks) or f"give each {what} the name of its image"
        pairing.faults.append(f"{mask}: no {what} is named as an image, such as {image}; {cure}")
        return pairing
    lonely = [images[name][0] for name in images if name not in masks]
    if config.skip_unlabelled:
        pairing.notes += [f"{len(lonely)} images without a {what} are left out"] * bool(lonely)
    else:
        cure = f"add its {what}, move it away, or set data.skip_unlabelled true"
        pairing.faults += [f"{path}: has no {what} in {config.masks}; {cure}" for path in lonely]
    lonely = [masks[name][0] for name in masks if name not in images]
    if finished:
        pairing.notes += [f"{len(lonely)} masks without a prediction are left out"] * bool(lonely)
    else:
        cure = "add its image or move it away"
        pairing.faults += [f"{path}: has no image in {config.images}; {cure}" for path in lonely]
    _add_pairs(pairing, images, masks, config, finished)
    return pairing


def _modalities(images: Files, masks: Files, pairing: Pairing) -> Files:
    """Images case_0000, case_0001 of a mask `case` as the channels of one image `case`."""
    found: dict[str, dict[str, str]] = {}
    for name, (path,) in images.items():
        parts = MODALITY.fullmatch(name)
        if not parts:
            return images
        found.setdefault(parts[1], {})[parts[2]] = path
    if not found.keys() & masks.keys():
        return images
    wanted = sorted(set().union(*found.values()))
    pairing.notes.append(f"images of {len(wanted)} channels, in files _{', _'.join(wanted)}")
    pairing.faults += [
        f"{next(iter(files.values()))}: the file _{number} of this image is missing; add it"
        for files in found.values()
        for number in wanted
        if number not in files
    ]
    joined: Files = {}
    for name, files in found.items():
        number, path = next(iter(files.items()))
        before, _, after = path.rpartition(f"_{number}")
        joined[name] = (f"{before}_{{{','.join(wanted)}}}{after}",)
    return joined


def _objects(images: Files, masks: Files, config: PairDataConfig) -> Files:
    """Masks img0/a, img0/b of an image img0 as the objects of one mask; empty if there are none."""
    found: dict[str, list[str]] = {}
    for name, (path,) in masks.items():
        found.setdefault(os.path.dirname(name), []).append(path)
    if not found.keys() & images.keys():
        return {}
    if config.mask_kind not in ("auto", "instances"):
        raise UserError(
            f"data.mask_kind {config.mask_kind}: {config.masks} has a file per object; set "
            "data.mask_kind instances"
        )
    return {name: tuple(paths) for name, paths in found.items()}


def _naming_hint(images: Files, masks: Files) -> str:
    """Where no name fits: the pattern that would give every image its mask, if there is one."""
    for setting, names, longer in (("mask_name", images, masks), ("image_name", masks, images)):
        first = next(iter(names), "")
        for other in longer:
            before, found, after = other.partition(first)
            if found and all(f"{before}{name}{after}" in longer for name in names):
                return f"set data.{setting} '{before}{{}}{after}'"
    return ""


def _add_pairs(
    pairing: Pairing, images: Files, masks: Files, config: PairDataConfig, finished: bool
) -> None:
    """A pair of each image and mask of one name, or of each page of theirs."""
    own = Reading(config.axes, config.max_pixels, config.channel_names, keep_palette=finished)
    values = config.mask_kind not in ("colors", "images")
    masking, stacks = Reading(config.axes, config.max_pixels, keep_palette=values), 0
    for name in sorted(images.keys() & masks.keys(), key=natural):
        (image,), (mask, *_) = images[name], masks[name]
        try:
            info, pages = _info(image, own)
            check_channels(info, config.channel_count, image)
            if config.axes == 3:
                check_together((image, *masks[name]))
                _check_turns(info.along(3), image, config)
            elif pages != (mask_pages := _info(mask, masking)[1]):
                raise UserError(
                    f"{mask}: has {mask_pages} pages, {image} {pages}; make them the same"
                )
        except UserError as error:
            pairing.faults.append(str(error))
            continue
        stacks += pages > 1
        for page in [None] if pages == 1 else range(pages):
            number = "" if page is None else f"{page:0{len(str(pages - 1))}}"
            full, at = (f"{name}/{number}", f" page {number}") if number else (name, "")
            read_image = partial(_read, own, page, image)
            read_mask = partial(_read, masking, page, mask)
            if pairing.objects:
                read_mask = partial(_read_objects, masking, page, masks[name])
            spacing = info.along(config.axes)
            pairing.pairs.append(Pair(full, image + at, mask + at, read_image, read_mask, spacing))
    if stacks:
        pairing.notes.append(
            "the pages of a stack are images of their own; of volumes set data.dims 3"
        )


def _check_turns(spacing: tuple[float, ...] | None, image: str, config: PairDataConfig) -> None:
    """Refuse quarter turns of voxels that are no squares."""
    if spacing is None:
        return
    _, y, x = spacing
    if config.augment.rot90 and abs(y - x) > 0.01 * min(y, x):
        raise UserError(
            f"{image}: quarter turns would distort slices of {x:.3g} x {y:.3g} mm voxels; "
            "set data.augment.rot90 false"
        )


def _info(path: str, reading: Reading) -> tuple[ImageInfo, int]:
    """What a header says, and how many images there are: the pages of a stack, or one."""
    stack = path.lower().endswith(TIFF_EXTENSIONS) or is_bio(path)
    info = (replace(reading, dims=3) if stack else reading).info(path)
    return info, info.size[0] if len(info.size) > reading.dims else 1


def _read_objects(reading: Reading, page: int | None, files: Sequence[str]) -> np.ndarray:
    """The objects of an image, numbered; where several lie, the last counts."""
    masks = [mask_values(_read(reading, page, file), False, file) for file in files]
    numbered = np.zeros(masks[0].shape, np.uint16)
    for number, (file, values) in enumerate(zip(files, masks, strict=True), start=1):
        if values.shape != numbered.shape:
            raise UserError(f"{file}: has not the size of {files[0]}; save it at the image's size")
        numbered[values > half_of(values)] = number
    return numbered[..., None]


def _read(reading: Reading, page: int | None, path: str) -> np.ndarray:
    if page is None:
        return reading.read(path)
    return _stack(replace(reading, dims=3), path)[page]


@lru_cache(maxsize=2)
def _stack(reading: Reading, path: str) -> np.ndarray:
    """The image's and the mask's stack stay in memory while their pages are read in turn."""
    return reading.read(path)


def _point_sets(config: PairDataConfig) -> Pairing:
    """Files that are images and masks in one."""
    pairs, settings = [], (config.voxel, config.max_pixels)
    for path in points.list_points(config.images):
        file = os.path.join(config.images, path)
        image = partial(points.read_grid, file, *settings)
        mask = partial(points.read_labels, file, *settings)
        pairs.append(Pair(split_ending(path)[0], file, f"{file} (labels)", image, mask))
    return Pairing(pairs, [], [])


def _builtin_pair(config: PairDataConfig) -> Pair:
    part: histology.Part = "all" if config.include_held_out else "train"
    if config.images == histology.HELD_OUT:
        part = "held_out"
    what: histology.What = "types" if config.masks == histology.TYPE_MASKS else "instances"
    image, mask = (partial(histology.micrograph, part, kind) for kind in ("image", what))
    return Pair(histology.NEST, histology.NEST, f"{histology.NEST} ({config.masks})", image, mask)

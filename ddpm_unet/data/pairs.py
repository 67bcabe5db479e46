"""Which mask belongs to which image: by name in folders, page by page in stacks, or built in."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ddpm_unet.config import PairDataConfig
from ddpm_unet.data import histology, points
from ddpm_unet.data.folder import natural, split_ending
from ddpm_unet.data.images import read_image, read_stack
from ddpm_unet.data.naming import Place, naming_hint
from ddpm_unet.data.pixels import normalised
from ddpm_unet.data.volumes import Space, read_volume, volume_space
from ddpm_unet.errors import UserError

BUILTIN_IMAGES = "builtin:histology"
BUILTIN_HELD_OUT = "builtin:histology/held-out"
BUILTIN_MASKS = ("builtin:nucleus", "builtin:nucleus-type")
POINTS = "points"
TIFF_ENDINGS = (".tif", ".tiff")
COLOURED = ("colors", "pictures")


@dataclass(frozen=True)
class Pair:
    """An image and its mask, not read yet.

    Attributes:
        name: What they share of their names; pages of a stack are numbered.
        image_file, mask_file: What messages call them.
        read_image, read_mask: Decode, `[H, W, C]` (volumes `[D, H, W, C]`), uint8, uint16 or
            float32. The image is `normalised`.
    """

    name: str
    image_file: str
    mask_file: str
    read_image: Callable[[], np.ndarray]
    read_mask: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Pairing:
    """What was found.

    Attributes:
        pairs: In natural order of their names.
        notes: What the user should know.
        faults: One line each that names a file and the cure.
    """

    pairs: list[Pair]
    notes: list[str]
    faults: list[str]


def complete_settings(config: PairDataConfig) -> PairDataConfig:
    """The settings with what the built-in masks, and labelled points, say about themselves.

    Raises:
        UserError: Built-in images with other masks or the reverse; points that are no volumes.
    """
    if config.mask_kind == "pictures" and config.masks in (*BUILTIN_MASKS, POINTS):
        raise UserError(
            f"data.masks {config.masks}: are masks, not pictures to predict; set data.images and "
            "data.masks to folders of pictures"
        )
    if config.masks == POINTS:
        if config.dims != 3 or config.scale != 1:
            raise UserError(
                f"data.dims {config.dims}, data.scale {config.scale:g}: points become volumes of "
                "cells of data.voxel; set data.dims 3 and data.scale 1"
            )
        return replace(config, mask_kind="classes", ignore_value=points.EMPTY)
    for setting, name, known in (
        ("images", config.images, (BUILTIN_IMAGES, BUILTIN_HELD_OUT)),
        ("masks", config.masks, BUILTIN_MASKS),
    ):
        if name.startswith("builtin:") and name not in known:
            raise UserError(f"data.{setting} {name}: there is only {' and '.join(known)}")
    if _is_builtin(config) != (config.masks in BUILTIN_MASKS):
        raise UserError(
            f"data.images {config.images} and data.masks {config.masks} do not go together: give "
            f"your own folders for both, or {BUILTIN_IMAGES} with {' or '.join(BUILTIN_MASKS)}"
        )
    if config.masks not in BUILTIN_MASKS:
        return config
    if config.dims != 2:
        raise UserError(f"data.dims {config.dims}: {config.images} is a picture; set data.dims 2")
    if config.masks == "builtin:nucleus-type":
        return replace(config, mask_kind="classes", class_names=histology.CLASS_NAMES)
    if config.mask_kind == "boundaries":
        return replace(config, class_names=("background", "nucleus", "outline"))
    return replace(config, mask_kind="instances", class_names=("background", "nucleus"))


def find_pairs(config: PairDataConfig) -> Pairing:
    """Pair images and masks.

    Raises:
        UserError: Nothing to pair at all: no such folder, an empty one, or one for both without
            names to tell images from masks.
    """
    pairing = _find(config)
    pairs = [replace(p, read_image=partial(_read_normalised, p, config)) for p in pairing.pairs]
    return replace(pairing, pairs=pairs)


def _read_normalised(pair: Pair, config: PairDataConfig) -> np.ndarray:
    return normalised(pair.read_image(), config.value_range)


def _find(config: PairDataConfig) -> Pairing:
    if _is_builtin(config):
        return Pairing([_builtin_pair(config)], [], [])
    if config.masks == POINTS:
        return _point_sets(config)
    expand = _volumes if config.dims == 3 else _expand_stacks
    if Path(config.images).is_file() and Path(config.masks).is_file():
        name = Path(split_ending(config.images)[0]).name
        return expand({name: (config.images, config.masks)}, config, [], [])
    if Path(config.images).resolve() == Path(config.masks).resolve() and (
        config.image_name == config.mask_name
    ):
        raise UserError(
            f"{config.masks}: is the folder of the images too; set data.mask_name, such as "
            "'{}_mask', to tell the masks from them"
        )
    what = "target" if config.mask_kind == "pictures" else "mask"
    here = Place(config.images, config.image_name, config.dims)
    there = Place(config.masks, config.mask_name, config.dims)
    images, notes, faults = here.files("image", other=there)
    masks, mask_notes, mask_faults = there.files("mask", other=here)
    notes, faults = notes + mask_notes, faults + mask_faults
    both = {name: (images[name], masks[name]) for name in images if name in masks}
    if images and masks and not both:
        (image, *_), (mask, *_) = images.values(), masks.values()
        cure = naming_hint(images, masks) or f"give each {what} the name of its image"
        faults.append(f"{mask}: no {what} is named as an image, such as {image}; {cure}")
        return Pairing([], notes, faults)
    lonely = [images[name] for name in images if name not in masks]
    if config.skip_unlabelled:
        notes += [f"{len(lonely)} images without a {what} are left out"] * bool(lonely)
    else:
        cure = f"add its {what}, move it away, or set data.skip_unlabelled true"
        faults += [f"{path}: has no {what} in {config.masks}; {cure}" for path in lonely]
    lonely = [masks[name] for name in masks if name not in images]
    cure = "add its image or move it away"
    faults += [f"{path}: has no image in {config.images}; {cure}" for path in lonely]
    return expand(both, config, notes, faults)


def _expand_stacks(
    files: dict[str, tuple[str, str]], config: PairDataConfig, notes: list[str], faults: list[str]
) -> Pairing:
    """A pair of each page of each pair of files."""
    pairs: list[Pair] = []
    indices = config.mask_kind not in COLOURED
    for name in sorted(files, key=natural):
        image, mask = files[name]
        try:
            pages, mask_pages = _pages(image, config.max_pixels), _pages(mask, config.max_pixels)
        except UserError as error:
            faults.append(str(error))
            continue
        if pages != mask_pages:
            faults.append(f"{mask}: has {mask_pages} pages, {image} {pages}; make them the same")
            continue
        for page in [None] if pages == 1 else range(pages):
            number = "" if page is None else f"{page:0{len(str(pages - 1))}}"
            pairs.append(
                Pair(
                    f"{name}/{number}" if number else name,
                    f"{image} page {number}" if number else image,
                    f"{mask} page {number}" if number else mask,
                    partial(_read, image, page, config.max_pixels, keep_palette=False),
                    partial(_read, mask, page, config.max_pixels, keep_palette=indices),
                )
            )
    return Pairing(pairs, notes, faults)


def _volumes(
    files: dict[str, tuple[str, str]], config: PairDataConfig, notes: list[str], faults: list[str]
) -> Pairing:
    """A pair of each two files; in NIfTI, whose voxels lie at the same places."""
    pairs, spacings = [], set()
    indices = config.mask_kind not in COLOURED
    for name in sorted(files, key=natural):
        image, mask = files[name]
        try:
            space, mask_space = volume_space(image), volume_space(mask)
        except UserError as error:
            faults.append(str(error))
            continue
        if space and (fault := _space_fault(space, mask_space, config)):
            faults.append(f"{mask} ({image}): {fault}")
            continue
        if space:
            spacings.add(" x ".join(f"{mm:.3g}" for mm in reversed(space.spacing)))
        read_image = partial(read_volume, image, config.max_pixels)
        read_mask = partial(read_volume, mask, config.max_pixels, keep_palette=indices)
        pairs.append(Pair(name, image, mask, read_image, read_mask))
    notes += [f"voxels of {' and '.join(sorted(spacings)[:4])} mm"] * bool(spacings)
    return Pairing(pairs, notes, faults)


def _space_fault(space: Space, mask: Space | None, config: PairDataConfig) -> str:
    """Why a mask does not lie on its image, or the image cannot be augmented as said."""
    if mask and mask.size == space.size and not space.agrees(mask):
        return "its voxels lie elsewhere than its image's (the affines differ); resample the mask"
    _, y, x = space.spacing
    if config.augment.rot90 and abs(y - x) > 0.01 * min(y, x):
        return (
            f"quarter turns would distort slices of {x:.3g} x {y:.3g} mm voxels; "
            "set data.augment.rot90 false"
        )
    return ""


def _point_sets(config: PairDataConfig) -> Pairing:
    """Files that are images and masks in one."""
    pairs = []
    for path in points.list_points(config.images):
        file, settings = os.path.join(config.images, path), (config.voxel, config.max_pixels)
        pairs.append(
            Pair(
                split_ending(path)[0],
                file,
                f"{file} (labels)",
                partial(points.read_grid, file, *settings),
                partial(points.read_labels, file, *settings),
            )
        )
    return Pairing(pairs, [], [])


def _pages(path: str, max_pixels: float) -> int:
    return len(_stack(path, max_pixels)) if path.lower().endswith(TIFF_ENDINGS) else 1


def _read(path: str, page: int | None, max_pixels: float, keep_palette: bool) -> np.ndarray:
    if page is None:
        return read_image(path, max_pixels, keep_palette)
    return _stack(path, max_pixels)[page]


@lru_cache(maxsize=2)
def _stack(path: str, max_pixels: float) -> np.ndarray:
    """The image's and the mask's stack stay in memory while their pages are read in turn."""
    return read_stack(path, max_pixels)


def _is_builtin(config: PairDataConfig) -> bool:
    return config.images in (BUILTIN_IMAGES, BUILTIN_HELD_OUT)


def _builtin_pair(config: PairDataConfig) -> Pair:
    part: histology.Part = "all" if config.include_held_out else "train"
    if config.images == BUILTIN_HELD_OUT:
        part = "held_out"
    field = "types" if config.masks == "builtin:nucleus-type" else "instances"
    return Pair(
        histology.NEST,
        histology.NEST,
        f"{histology.NEST} ({config.masks})",
        partial(_builtin_array, part, "picture"),
        partial(_builtin_array, part, field),
    )


def _builtin_array(part: histology.Part, field: str) -> np.ndarray:
    array: np.ndarray = getattr(histology.labelled(part), field)
    return array if array.ndim == 3 else array.astype(np.uint16)[..., None]

"""From `data.source` to the images to train on, and those kept for validation.

What a source holds out, and no training sees unless `data.include_held_out` says so:
    builtin:histology      the right third of the labelled micrograph
    builtin:fashion-mnist  the test split
    torchvision, huggingface  the test split, else the validation split, else as a folder
    a folder               one picture in twenty, chosen by a hash of its name, so that new files
                           move no old one; nothing of a folder of fewer than twenty
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data import fashion_mnist, histology
from ddpm_unet.data.beside import ConditionPictures, condition_settings, open_context
from ddpm_unet.data.collection import ArrayCollection, Collection, Joined, Part
from ddpm_unet.data.folder import Folder
from ddpm_unet.data.image_set import ImageSet, open_collection
from ddpm_unet.data.named_sets import huggingface_set, torchvision_set
from ddpm_unet.data.pairs import BUILTIN_MASKS
from ddpm_unet.data.settings import check_data_settings
from ddpm_unet.data.stream import Grid
from ddpm_unet.errors import UserError

CACHE = Path.home() / ".cache" / "ddpm_unet"
Share = Literal["train", "held out", "all"]
ONE_IN = 20  # pictures of a source without splits held out


def open_images(config: ImageDataConfig) -> ImageSet:
    """The images to train on.

    Raises:
        UserError: A setting, a folder or a picture at fault; one line with the cure.
    """
    check_settings(config)
    collection = _collection(config, "all" if config.include_held_out else "train")
    assert collection is not None, "only held-out parts can be missing"
    return _open(collection, config)


def held_out(config: ImageDataConfig) -> Grid | None:
    """The windows kept for validation, or None where the source keeps nothing (see above) or,
    in builtin:histology, windows are larger than what is kept. Errors as `open_images`.
    """
    check_settings(config)
    collection = _collection(config, "held out")
    return Grid(_open(collection, config), config) if collection else None


def check_settings(config: ImageDataConfig) -> None:
    """Refuse settings that no image set could satisfy.

    Raises:
        UserError: Names the setting.
    """
    check_data_settings(config)
    faults = {
        "source: is empty; give a built-in set, a folder or a data set's name": not config.source,
        f"scale {config.scale:g}: has no effect with fit resize; remove it": (
            config.fit == "resize" and config.scale != 1
        ),
        f"dims 3: {config.source} holds pictures; volumes come from folders, or set dims 2": (
            config.dims == 3
            and config.source.startswith(("builtin:", "torchvision:", "huggingface:"))
        ),
        f"channels {config.channels}: must be 1, 3, 4 or null": (
            config.channels not in (None, 1, 3, 4)
        ),
        **_condition_faults(config),
    }
    for fault, present in faults.items():
        if present:
            raise UserError(f"data.{fault}")


def _condition_faults(config: ImageDataConfig) -> dict[str, bool]:
    condition, classes = config.condition, config.condition_classes
    kind, _, factor = (condition or "").partition(":")
    builtin = config.source == "builtin:histology"
    files = condition is not None and kind not in ("builtin", "lower", "hole")
    named = config.source.startswith(("builtin:", "torchvision:", "huggingface:"))
    return {
        f"condition {condition}: builtin:histology has "
        f"{' and '.join(BUILTIN_MASKS)}, other pictures a folder of their own": (
            kind == "builtin" and not (builtin and condition in BUILTIN_MASKS)
        ),
        f"condition {condition}: give a whole number above 1 that divides size {config.size}": (
            kind == "lower"
            and not (factor.isdecimal() and int(factor) > 1 and config.size % int(factor) == 0)
        ),
        f"condition {condition}: files are found by name for pictures of a folder only": (
            files and named
        ),
        f"condition_classes {classes}: is for masks; set data.condition to theirs": (
            classes is not None and not files and kind != "builtin"
        ),
        f"condition_classes null: {condition} is a mask; give the number of its classes": (
            classes is None and kind == "builtin"
        ),
        f"context {config.context}: files are found by name for pictures of a folder only": (
            config.context is not None and named
        ),
        "joint_masks: there are no masks to denoise; set data.condition to their folder and "
        "data.condition_classes": config.joint_masks and classes is None,
        "joint_masks: is for pictures; set data.dims 2": config.joint_masks and config.dims == 3,
        "text_encoder: reads captions; set data.context to their folder": (
            config.text_encoder is not None and config.context is None
        ),
    }


def _open(pictures: Collection, config: ImageDataConfig) -> ImageSet:
    """The pictures with their conditions."""
    images = open_collection(pictures, config)
    condition = config.condition or ""
    if condition in BUILTIN_MASKS:
        types = condition == "builtin:nucleus-type"
        masks = [histology.mask_of(pictures.name(i), types) for i in range(len(pictures))]
        beside: Collection = ArrayCollection(masks, condition)
        images.condition = open_collection(beside, condition_settings(config))
    elif condition and condition.partition(":")[0] not in ("lower", "hole"):
        beside = ConditionPictures(pictures, config)
        images.condition = open_collection(beside, condition_settings(config))
    images.context = open_context(pictures, config)
    return images


def _collection(config: ImageDataConfig, part: Share) -> Collection | None:
    """A part of the source, None where it holds nothing out."""
    kind, _, name = config.source.partition(":")
    if kind not in ("builtin", "torchvision", "huggingface"):
        folder = Folder(config.source, config.max_pixels, config.class_labels, config.dims)
        return _hashed_part(folder, part)
    if part == "all":
        parts = [_collection(config, "train"), _collection(config, "held out")]
        return Joined([found for found in parts if found])
    if config.source == "builtin:histology":
        return _histology(config, part == "held out")
    if config.source == "builtin:fashion-mnist":
        pictures, labels = fashion_mnist.load(config.root, part == "train", CACHE)
        if not config.class_labels:
            return ArrayCollection(pictures, config.source)
        return ArrayCollection(pictures, config.source, labels, fashion_mnist.CLASS_NAMES)
    if kind == "builtin":
        raise UserError(
            f"data.source {config.source}: the built-in sets are builtin:histology and "
            "builtin:fashion-mnist"
        )
    if kind == "torchvision":
        root = Path(config.root) if config.root else CACHE
        split = partial(torchvision_set, name, root, class_labels=config.class_labels)
    else:
        split = partial(huggingface_set, name, config.root, class_labels=config.class_labels)
    own = split(held_out=True)
    if part == "held out" and own:
        return own
    whole = split(held_out=False)
    assert whole is not None, "only held-out parts can be missing"
    return whole if own else _hashed_part(whole, part)


def _histology(config: ImageDataConfig, held_out: bool) -> Collection | None:
    if config.class_labels:
        raise UserError(
            "data.source builtin:histology: has no class for each image; "
            "set data.class_labels false"
        )
    pictures = histology.pictures("held_out" if held_out else "train")
    if config.condition in BUILTIN_MASKS:
        pictures.pop(histology.STROMA, None)
    narrowest = min(picture.shape[1] for picture in pictures.values())
    if held_out and config.fit == "crop" and round(narrowest * config.scale) < config.size:
        return None
    return ArrayCollection(list(pictures.values()), list(pictures))


def _hashed_part(whole: Collection, part: Share) -> Collection | None:
    """One in twenty by a hash of the picture's key, or the rest, or the rest and then that one."""
    keys = [whole.key(i).encode("utf-8", "surrogateescape") for i in range(len(whole))]
    digests = [hashlib.blake2b(key, digest_size=8).digest() for key in keys]
    chosen = np.array([int.from_bytes(d, "big") % ONE_IN == 0 for d in digests])
    if len(whole) < ONE_IN or not chosen.any():
        return None if part == "held out" else whole
    if part == "all":
        return Part(whole, np.argsort(chosen, kind="stable"))
    return Part(whole, np.flatnonzero(chosen == (part == "held out")))

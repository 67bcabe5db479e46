"""From the data settings to objects: the images to train on, and those kept for validation.

What a source holds out, and no training sees unless `data.include_held_out` says so:
    builtin:histology      the right third of the labelled micrograph
    builtin:fashion-mnist  the test split
    torchvision, huggingface  the test split, else the validation split, else as a folder
    a folder               one image in twenty, chosen by a hash of its name, so that new files
                           move no old one; nothing of a folder of fewer than twenty
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.config.data import check_data_settings
from ddpm_unet.data import histology
from ddpm_unet.data.collection import CACHE, ArrayCollection, Collection, Selection
from ddpm_unet.data.conditioning import ConcatCondition, ConditionImages, Sequences
from ddpm_unet.data.folder import Folder, Shards, shard_paths, with_dims
from ddpm_unet.data.image_set import ImageSet, open_collection
from ddpm_unet.data.named_sets import FASHION, fashion_mnist, huggingface_set, torchvision_set
from ddpm_unet.data.pixels import Fit
from ddpm_unet.data.reading import Reading
from ddpm_unet.data.stream import Grid, Stream
from ddpm_unet.errors import UserError, refuse

Share = Literal["train", "held out", "all"]
ONE_IN = 20  # images of a source without splits held out
NAMED = ("builtin:", "torchvision:", "huggingface:")


def open_images(config: ImageDataConfig) -> ImageSet:
    """The images to train on; a setting, a folder or an image at fault is a UserError."""
    config = settled(config)
    return _open(source_images(config), config)


def source_images(config: ImageDataConfig) -> Collection:
    """All images of a source that are trained on, as they are there."""
    found = _collection(config, "all" if config.include_held_out else "train")
    assert found is not None, "only held-out parts can be missing"
    return found


def open_stream(config: ImageDataConfig, seed: int, images: ImageSet | None = None) -> Stream:
    """The training stream of the images, which are opened unless they are given.

    Null flips and rot90 are on for folders and builtin:histology (tissue has no up), and off for
    the other sets, of things and digits.
    """
    tissue = not config.source.startswith(NAMED) or config.source == histology.SOURCE
    flips, rot90 = (tissue if given is None else given for given in (config.flips, config.rot90))
    return Stream(images or open_images(config), flips=flips, rot90=rot90, seed=seed)


def held_out(config: ImageDataConfig) -> Grid | None:
    """The windows kept for validation, or None where the source keeps nothing (see above) or,
    in builtin:histology, windows are larger than what is kept.
    """
    config = settled(config)
    collection = _collection(config, "held out")
    return Grid(_open(collection, config)) if collection else None


def concat_condition(config: ImageDataConfig, images: ImageSet) -> ConcatCondition | None:
    """The image that is concatenated to the noisy one, as the settings ask for it; None for none.

    Masks to be denoised with the images (`joint_masks`) are no condition.
    """
    kind, _, factor = (config.condition or "").partition(":")
    channels = images.layout.channels
    if kind == "lower":
        return ConcatCondition("lower", channels, int(factor))
    if kind == "hole":
        return ConcatCondition("hole", channels + 1)
    if images.condition is None or config.joint_masks:
        return None
    if config.condition_classes:
        return ConcatCondition("classes", config.condition_classes)
    return ConcatCondition("image", images.condition.layout.channels)


def settled(config: ImageDataConfig) -> ImageDataConfig:
    """The settings with the dims of their files; those that no set could satisfy are refused."""
    config = with_dims(config, config.source)
    check_data_settings(config)
    condition, classes = config.condition, config.condition_classes
    kind, _, factor = (condition or "").partition(":")
    files = condition is not None and kind not in ("builtin", "lower", "hole")
    named = config.source.startswith(NAMED)
    masks = condition in histology.MASKS and config.source == histology.SOURCE
    divides = factor.isdecimal() and int(factor) > 1 and config.size % int(factor) == 0
    refuse({
        "source: is empty; give a built-in set, a folder or a data set's name": not config.source,
        f"scale {config.scale:g}: has no effect with fit resize; remove it": (
            config.fit == "resize" and config.scale != 1
        ),
        "spacing: has no meaning with fit resize; remove it": (
            config.fit == "resize" and config.spacing is not None
        ),
        f"dims 3: {config.source} holds images; volumes come from folders, or set dims 2": (
            config.axes == 3 and named
        ),
        f"level {config.level}: is of files of a folder; set it to 0": (config.level > 0 and named),
        f"channels {config.channels}: must be 1, 3, 4, a list of some, or null": (
            config.channel_count not in (None, 1, 3, 4)
        ),
        "channels: can be chosen of the files of a folder only; give 1, 3, 4 or null": (
            bool(config.channel_names) and named
        ),
        f"condition {condition}: {histology.SOURCE} has {' and '.join(histology.MASKS)}, other "
        "images a folder of their own": kind == "builtin" and not masks,
        f"condition {condition}: give a whole number above 1 that divides size {config.size}": (
            kind == "lower" and not divides
        ),
        f"condition {condition}: files are found by name for images of a folder only": (
            files and named
        ),
        f"condition_classes {classes}: is for masks; set data.condition to theirs": (
            classes is not None and not files and kind != "builtin"
        ),
        f"condition_classes null: {condition} is a mask; give the number of its classes": (
            classes is None and kind == "builtin"
        ),
        f"context {config.context}: files are found by name for images of a folder only": (
            config.context is not None and named
        ),
        "joint_masks: there are no masks to denoise; set data.condition to their folder and "
        "data.condition_classes": config.joint_masks and classes is None,
        "joint_masks: is for images; set data.dims 2": config.joint_masks and config.axes == 3,
        "text_encoder: reads captions; set data.context to their folder": (
            config.text_encoder is not None and config.context is None
        ),
    }, "data.")  # fmt: skip
    return config


def _open(collection: Collection, config: ImageDataConfig) -> ImageSet:
    """The images with their conditions."""
    channels, value_range, most = config.channel_count, config.value_range, config.max_pixels
    fit = Fit(config.size, config.fit, config.scale, channels, value_range, most)
    limits = config.memory_limit, config.disk_limit
    images = open_collection(collection, fit, *limits)
    condition = config.condition or ""
    found: Collection | None = None
    if condition in histology.MASKS:
        types = condition == histology.TYPE_MASKS
        masks = [histology.mask_of(collection.name(i), types) for i in range(len(collection))]
        found = ArrayCollection(masks, condition)
    elif condition and condition.partition(":")[0] not in ("lower", "hole"):
        classes = config.condition_classes
        found = ConditionImages(collection, condition, config.axes, classes, most)
    if found is not None:
        images.condition = open_collection(
            found, replace(fit, channels=None, value_range=None), *limits
        )
    if config.context is not None:
        images.context = Sequences.of_images(collection, config.context, config.text_encoder)
    return images


def _collection(config: ImageDataConfig, part: Share) -> Collection | None:
    """A part of the source, None where it holds nothing out; its note says what is held out."""
    kind, _, name = config.source.partition(":")
    if f"{kind}:" not in NAMED:
        opened: type[Folder] = Folder
        if shard_paths(config.source):
            if config.axes == 3 or config.level or config.channel_names:
                raise UserError(
                    f"{config.source}: tar files have images; set data.dims 2 and level 0, and "
                    "choose no channels"
                )
            opened = Shards
        reading = Reading(config.axes, config.max_pixels, config.channel_names, config.level)
        return _hashed_part(opened(config.source, reading, config.class_labels), part)
    if part == "all":
        parts = [_collection(config, "train"), _collection(config, "held out")]
        both = Selection(*((found, None) for found in parts if found))
        both.note = ""
        return both
    if config.source == histology.SOURCE:
        return _histology(config, part == "held out")
    labels, split = {"class_labels": config.class_labels}, {"held_out": part == "held out"}
    if config.source == FASHION:
        return fashion_mnist(config.root, CACHE, **split, **labels)
    if kind == "builtin":
        raise UserError(
            f"data.source {config.source}: the built-in sets are {histology.SOURCE} and {FASHION}"
        )
    if kind == "torchvision":
        open_split = partial(torchvision_set, name, Path(config.root or CACHE), **labels)
    else:
        open_split = partial(huggingface_set, name, config.root, **labels)
    kept = open_split(held_out=True)
    if part == "held out" and kept:
        return kept
    whole = open_split(held_out=False)
    assert whole is not None, "only held-out parts can be missing"
    if kept is None:
        return _hashed_part(whole, part)
    whole.note = f"{len(kept):,} more held out for validation"
    return whole


def _histology(config: ImageDataConfig, held_out: bool) -> Collection | None:
    if config.class_labels:
        raise UserError(
            f"data.source {histology.SOURCE}: has no class for each image; set data.class_labels "
            "false"
        )
    images = histology.images("held_out" if held_out else "train")
    if config.condition in histology.MASKS:
        images.pop(histology.STROMA, None)
    narrowest = min(image.shape[1] for image in images.values())
    if held_out and config.fit == "crop" and round(narrowest * config.scale) < config.size:
        return None
    collection = ArrayCollection(list(images.values()), list(images))
    held = "a third of the labelled micrograph held out for validation"
    collection.note = "" if held_out else held
    return collection


def _hashed_part(whole: Collection, part: Share) -> Collection | None:
    """One in twenty by a hash of the image's key, or the rest, or the rest and then that one."""
    rest = [whole.note] if whole.note else []
    if len(whole) < ONE_IN:
        nothing = f"nothing held out for validation (fewer than {ONE_IN} images)"
        whole.note = ", ".join([nothing, *rest])
        return None if part == "held out" else whole
    digests = (hashlib.blake2b(key, digest_size=8).digest() for key in whole.encoded_keys())
    numbers = np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)
    chosen = numbers % np.uint64(ONE_IN) == 0
    if not chosen.any():
        chosen[numbers.argmin()] = True
    if part == "all":
        return Selection((whole, np.argsort(chosen, kind="stable")))
    selection = Selection((whole, np.flatnonzero(chosen == (part == "held out"))))
    if part == "train":
        selection.note = ", ".join([f"{chosen.sum():,} more held out for validation", *rest])
    return selection

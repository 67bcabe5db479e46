"""Which labelled images, or parts of one, train, validate and test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict, cast

import numpy as np

from ddpm_unet.config import SplitConfig
from ddpm_unet.errors import UserError
from ddpm_unet.randomness import bits

SMALLEST_STRIP = 16
AXES: tuple[Literal["planes", "rows", "columns"], ...] = ("planes", "rows", "columns")


class Part(TypedDict, total=False):
    """An image, by name, or the window [first, end) of its planes, rows or columns."""

    name: str
    planes: list[int]
    rows: list[int]
    columns: list[int]


class Split(TypedDict):
    """Parts of images for each purpose, and how they came about in one sentence."""

    how: str
    train: list[Part]
    validation: list[Part]
    test: list[Part]


PURPOSES = ("train", "validation", "test")


def split_images(
    names: Sequence[str], sizes: Sequence[tuple[int, ...]], config: SplitConfig
) -> Split:
    """Divide images among training, validation and test."""
    for setting, share in (("validation", config.validation), ("test", config.test)):
        if share < 0 or (share >= 1 and share != int(share)):
            raise UserError(
                f"data.split.{setting} is {share:g}: give a share from 0 to 1, or a whole number"
            )
    if len(names) == 1:
        return _strips(names[0], sizes[0], config)
    total = len(names)
    order = np.arange(total)
    if config.by == "files":
        order = np.argsort(bits(config.seed, "split", order), kind="stable")
    test = _count(config.test, total)
    rest, test_part = order[: total - test], order[total - test :]
    if config.folds:
        if not 2 <= config.folds <= len(rest):
            raise UserError(f"data.split.folds is {config.folds}: give 2 to {len(rest)}, or 0")
        if not 0 <= config.fold < config.folds:
            raise UserError(f"data.split.fold is {config.fold}: give 0 to {config.folds - 1}")
        validation_part = np.array_split(rest, config.folds)[config.fold]
        train_part = rest[~np.isin(rest, validation_part)]
    else:
        kept = len(rest) - _count(config.validation, total)
        train_part, validation_part = rest[: max(kept, 0)], rest[max(kept, 0) :]
    if not len(train_part):
        raise UserError(
            f"no image of {total} is left to train on: lower data.split.validation and .test"
        )
    chosen = (train_part[_spread(len(train_part), config.limit)], validation_part, test_part)
    manner = "in blocks" if config.by == "blocks" else f"shuffled with seed {config.seed}"
    manner += f", fold {config.fold} of {config.folds}" if config.folds else ""
    manner += "" if config.limit is None else f", training limited to {config.limit}"
    train, validation, tested = map(len, chosen)
    how = f"{train} images train, {validation} validate, {tested} test ({manner})"
    parts = [[{"name": names[i]} for i in sorted(numbers)] for numbers in chosen]
    return cast(Split, {"how": how, **dict(zip(PURPOSES, parts, strict=True))})


def _count(share: float, total: int) -> int:
    """Images in a share (below 1, and then at least one) or a number (1 and more)."""
    return int(share) if share >= 1 or share == 0 else max(1, round(share * total))


def _spread(total: int, limit: int | None) -> np.ndarray:
    """Indices of `limit` of `total` images, in the middles of as many equal stretches."""
    if limit is None:
        return np.arange(total)
    if not 1 <= limit <= total:
        raise UserError(f"data.split.limit is {limit}: give 1 to {total} training images")
    return (2 * np.arange(limit) + 1) * total // (2 * limit)


def _strips(name: str, size: tuple[int, ...], config: SplitConfig) -> Split:
    """Strips of one image along its longer side: training, gap, validation, gap, test."""
    if config.folds or config.limit not in (None, 1) or max(config.validation, config.test) >= 1:
        raise UserError(
            f"{name} is the only labelled image: data.split takes shares below 1, no folds"
        )
    if config.validation == config.test == 0:
        how = f"{name}, the only labelled image, trains; nothing validates or tests"
        return {"how": how, "train": [{"name": name}], "validation": [], "test": []}
    along = max(zip(size, range(len(size)), AXES[-len(size) :], strict=True))[2]
    length = end = max(size)
    bounds: dict[str, list[tuple[int, int]]] = {purpose: [] for purpose in PURPOSES}
    for purpose, share in (("test", config.test), ("validation", config.validation)):
        if share > 0:
            start = end - round(share * length)
            bounds[purpose] = [(start, end)]
            end = start - config.gap
    bounds["train"] = [(0, end)]
    if any(end - start < SMALLEST_STRIP for strip in bounds.values() for start, end in strip):
        raise UserError(
            f"{name} ({' x '.join(map(str, size))} pixels) is too small to hold parts of it out: "
            "label another image, lower data.split.gap, or set data.split.validation 0"
        )
    held = [
        f"its {along} {start} to {end - 1} {verb}"
        for purpose, verb in zip(PURPOSES, ("train", "validate", "test"), strict=True)
        for start, end in bounds[purpose]
    ]
    how = f"{name} is the only labelled image, parts of it are held out: {', '.join(held)}"
    parts = {n: [{"name": name, along: [*ends]} for ends in found] for n, found in bounds.items()}
    return cast(Split, {"how": how, **parts})

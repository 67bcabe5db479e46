"""Virtual staining: how much haematoxylin a pixel of an H&E micrograph has taken up.

Ruifrok, Johnston, "Quantification of histochemical staining by color deconvolution", 2001.
"""

from __future__ import annotations

import numpy as np

STAINS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105))
"""Absorption of red, green and blue by haematoxylin and eosin (their table)."""


def haematoxylin(image: np.ndarray) -> np.ndarray:
    """The haematoxylin of an H&E image as an image of its own.

    The optical density of each pixel is divided among haematoxylin, eosin and what neither
    absorbs (their cross product). The amount of haematoxylin is shown as what light it alone
    would let through where it absorbs the most, so that nuclei are dark.

    Args:
        image: `uint8 [H, W, 3]`.

    Returns:
        `uint8 [H, W, 1]`, 255 for none.
    """
    stains = np.array(STAINS) / np.linalg.norm(STAINS, axis=1, keepdims=True)
    rest = np.cross(*stains)
    every = np.stack([*stains, rest / np.linalg.norm(rest)])
    density = -np.log((image.astype(np.float64) + 1) / 256)
    amount = (density @ np.linalg.inv(every))[..., :1]
    light = 256 * np.exp(-amount.clip(min=0) * stains[0].max()) - 1
    return light.round().clip(0, 255).astype(np.uint8)


def linear_map(images: list[np.ndarray], targets: list[np.ndarray]) -> np.ndarray:
    """Weights of the channels and a constant, `[C + 1, K]`, by least squares over all pixels.

    Args:
        images: `[H, W, C]` each.
        targets: `[H, W, K]` each.
    """
    known = np.concatenate([_with_constant(image) for image in images])
    wanted = np.concatenate([target.reshape(-1, target.shape[-1]) for target in targets])
    return np.linalg.lstsq(known, wanted.astype(np.float64), rcond=None)[0]


def mapped(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What a linear map makes of an image, `uint8 [H, W, K]`."""
    values = _with_constant(image) @ weights
    return values.round().clip(0, 255).astype(np.uint8).reshape(*image.shape[:-1], -1)


def grey_curve(images: list[np.ndarray], targets: list[np.ndarray]) -> np.ndarray:
    """The mean target of the pixels of each grey value, `[256]`: the most that one pixel tells.

    Args:
        images: `uint8 [H, W, 1]` each.
        targets: `[H, W, 1]` each.
    """
    values, wanted = (np.concatenate([a.ravel() for a in part]) for part in (images, targets))
    counts = np.bincount(values, minlength=256)
    sums = np.bincount(values, wanted, minlength=256)
    seen = np.flatnonzero(counts)
    return np.interp(np.arange(256), seen, sums[seen] / counts[seen])


def _with_constant(image: np.ndarray) -> np.ndarray:
    flat = image.reshape(-1, image.shape[-1]).astype(np.float64)
    return np.concatenate([flat, np.ones((len(flat), 1))], axis=1)

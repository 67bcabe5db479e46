"""Pan-sharpening by the protocol of Wald 1997: pairs from any color image, and baselines.

The image itself is the truth. Its colours are blurred and reduced, as a coarse sensor would see
them, and its grey values keep their resolution, as a panchromatic one would. What is made of the
two can then be held against the truth.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

GREY = (0.299, 0.587, 0.114)
"""Of red, green and blue in the panchromatic image: ITU-R 601 luma."""


def reduced(image: np.ndarray, ratio: int) -> np.ndarray:
    """A coarse sensor's image, `[H / ratio, W / ratio, C]`: blurred, then one pixel in ratio.

    Args:
        image: `[H, W, C]` float, sides that are multiples of ratio.
        ratio: Pixels that become one, along each side. The blur has a standard deviation of half
            of it, so that the gain at the highest frequency left is between 0.2 and 0.3, as that
            of sensors is (Aiazzi 2006).
    """
    blurred = ndimage.gaussian_filter(image, (ratio / 2, ratio / 2, 0), mode="mirror")
    places = [np.arange(length // ratio) * ratio + (ratio - 1) / 2 for length in image.shape[:2]]
    return _sampled(blurred, places, order=1)


def enlarged(coarse: np.ndarray, ratio: int) -> np.ndarray:
    """Cubic interpolation of what `reduced` gives, `[H, W, C]`."""
    places = [(np.arange(length * ratio) + 0.5) / ratio - 0.5 for length in coarse.shape[:2]]
    return _sampled(coarse, places, order=3)


def wald_pair(image: np.ndarray, ratio: int) -> tuple[np.ndarray, np.ndarray]:
    """An input of pan-sharpening and the truth.

    Args:
        image: `uint8 [H, W, 3]`; rows and columns beyond a multiple of ratio are cut off.
        ratio: How many times coarser the colours are.

    Returns:
        The enlarged coarse colours and the grey at full resolution, `uint8 [H', W', 4]`; and the
        true colours, `uint8 [H', W', 3]`.
    """
    height, width = (length // ratio * ratio for length in image.shape[:2])
    truth = image[:height, :width]
    colours = enlarged(reduced(truth.astype(np.float64), ratio), ratio)
    return to_uint8(np.concatenate([colours, grey(truth)], axis=-1)), truth


def grey(colours: np.ndarray) -> np.ndarray:
    """`[H, W, 1]` of `[H, W, 3]`."""
    return (colours @ np.array(GREY))[..., None]


def bicubic(image: np.ndarray) -> np.ndarray:
    """Baseline: the enlarged colours alone, `uint8 [H, W, 3]` of an input `uint8 [H, W, 4]`."""
    return image[..., :3]


def brovey(image: np.ndarray) -> np.ndarray:
    """Baseline: the enlarged colours times grey over their own grey (Gillespie 1987).

    Args:
        image: An input, `uint8 [H, W, 4]`.

    Returns:
        `uint8 [H, W, 3]`.
    """
    colours, fine = image[..., :3].astype(np.float64), image[..., 3:].astype(np.float64)
    return to_uint8(colours * fine / np.maximum(grey(colours), 1e-6))


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Rounded and clipped."""
    return values.round().clip(0, 255).astype(np.uint8)


def _sampled(image: np.ndarray, places: list[np.ndarray], order: int) -> np.ndarray:
    """Spline interpolation of each channel at rows and columns."""
    grid = np.meshgrid(*places, indexing="ij")
    channels = [
        ndimage.map_coordinates(image[..., c], grid, order=order, mode="mirror")
        for c in range(image.shape[-1])
    ]
    return np.stack(channels, axis=-1)

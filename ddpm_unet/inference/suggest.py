"""Which of many images to label first: a few that lie close to all the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_unet.data.dataset import as_dataset
from ddpm_unet.data.stream import to_model_range
from ddpm_unet.errors import UserError
from ddpm_unet.models.segmenter import Segmenter

WINDOW = 256
"""Pixels of a window's side in which larger images are read."""


def suggest(
    denoiser: Any,
    dataset: Any,
    count: int | None = None,
    *,
    timestep: int = 150,
    device: torch.device | str | None = None,
    **settings: Any,
) -> list[int]:
    """Rank unlabelled images by how well the first of them stand for all.

    Every image is described by `describe`, and `greedy_medoids` puts next the image that brings
    all images closest to one that was put before.

    Args:
        denoiser: As `Segmenter.from_denoiser` takes it, with its noise schedule.
        dataset: Images, whatever `ddpm_unet.data.dataset.as_dataset` takes.
        count: How many are wanted; None for all.
        timestep: Noise level at which the denoiser's activations are read (Baranchuk 2022).
        device: Where; None for the denoiser's own.
        settings: Further settings of `HeadConfig`, such as `class_label` or `repeat_grey`.

    Returns:
        Indices of the images, the one to label first at the head.

    Raises:
        UserError: The denoiser does not take such images, or there are fewer than `count`.

    Example:
        >>> import torch
        >>> from ddpm_unet import Denoiser, GaussianDiffusion, UNet
        >>> unet = UNet(in_channels=1, out_channels=1, block_out_channels=(32, 64))
        >>> dark, light = 0.2 * torch.rand(2, 1, 16, 16), 0.8 + 0.2 * torch.rand(2, 1, 16, 16)
        >>> first, second = suggest(Denoiser(unet, GaussianDiffusion()), [*dark, *light], 2)
        >>> {first < 2, second < 2} == {True, False}
        True
    """
    data = as_dataset(dataset)
    if count is not None and not 1 <= count <= len(data):
        raise UserError(f"count {count}: there are {len(data)} images; give 1 to {len(data)}")
    network = Segmenter.from_denoiser(
        denoiser,
        in_channels=data.channels,
        **{"transfer": "features", "feature_timesteps": (timestep,), **settings},
    ).eval()
    network = network.to(device or next(network.parameters()).device)
    found = [describe(network, to_model_range(data[i]["image"])) for i in range(len(data))]
    return greedy_medoids(np.stack(found), len(data) if count is None else count)


@torch.inference_mode()
def describe(network: Segmenter, image: Tensor) -> np.ndarray:
    """Mean and standard deviation of every channel of every decoder layer, `float64 [F]`.

    Args:
        network: A segmenter of transfer "features".
        image: `float32 [C, *space]` in [-1, 1]; large ones are read window by window.
    """
    device = next(network.parameters()).device
    sums: Tensor | None = None
    for window in windows(image):
        layers = [a[0].flatten(1).double() for a in network.activations(window[None].to(device))]
        weight = window[0].numel()
        moments = [torch.stack([a.mean(1), a.square().mean(1)]) for a in layers]
        part = torch.cat(moments, dim=1) * weight
        sums = part if sums is None else sums + part
    assert sums is not None, "an image has a window"
    mean, square = sums / image[0].numel()
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    return torch.cat([mean, deviation]).cpu().numpy()


def windows(image: Tensor) -> list[Tensor]:
    """Parts of an image `[C, *space]` of at most `WINDOW` pixels a side, as even as can be."""
    parts = [image]
    for axis in range(1, image.ndim):
        number = -(-image.shape[axis] // WINDOW)
        parts = [cut for part in parts for cut in part.tensor_split(number, axis)]
    return parts


def greedy_medoids(features: np.ndarray, count: int) -> list[int]:
    """The first `count` rows of `[N, F]`, each chosen to lower most what the others are away.

    That is the sum over all rows of the distance to the nearest chosen one (Euclidean, every
    column divided by its standard deviation): k-medoids chosen one after the other, which comes
    within 1 - 1/e of the best saving (Nemhauser 1978). The first is the medoid.
    """
    from scipy.spatial.distance import cdist

    spread = features.std(axis=0)
    scaled = (features / np.where(spread > 0, spread, 1)).astype(np.float32)
    distances = cdist(scaled, scaled)
    nearest = np.full(len(features), np.inf)
    chosen: list[int] = []
    for _ in range(count):
        totals = np.minimum(distances, nearest[:, None]).sum(axis=0)
        totals[chosen] = np.inf
        chosen.append(int(totals.argmin()))
        nearest = np.minimum(nearest, distances[:, chosen[-1]])
    return chosen

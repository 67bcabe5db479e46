"""Jobs of many images, in batches, over any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm_unet.diffusion.sampling import Moment, sample
from ddpm_unet.errors import UserError

Conditions = Callable[[Sequence[int]], dict[str, Tensor]]
"""From numbers of images to what else the denoiser is told of them, by argument."""


def unconditional(indices: Sequence[int]) -> dict[str, Tensor]:
    """Nothing."""
    return {}


def of_class(chosen: int | None, num_classes: int | None, device: torch.device) -> Conditions:
    """Class labels `int64 [B]`: one class for all images, or all classes in turn (None).

    A denoiser without classes (`num_classes` None) is told nothing.

    Raises:
        UserError: There is no such class.
    """
    if num_classes is None:
        return unconditional
    if chosen is not None and not 0 <= chosen < num_classes:
        raise UserError(f"class {chosen}: the model has classes 0 to {num_classes - 1}")

    def conditions(indices: Sequence[int]) -> dict[str, Tensor]:
        labels = [i % num_classes if chosen is None else chosen for i in indices]
        return {"class_labels": torch.tensor(labels, device=device)}

    return conditions


def generate(
    denoiser: Callable[..., Tensor],
    scheduler: Any,
    shape: Sequence[int],
    num_images: int,
    *,
    seed: int,
    steps: int,
    batch_size: int,
    accelerator: Accelerator,
    conditions: Conditions = unconditional,
    progress: bool = False,
    callback: Callable[[Moment], None] | None = None,
    draw: Callable[..., Tensor] = sample,
    **options: Any,
) -> Iterator[tuple[list[int], Tensor]]:
    """Draw images 0 .. num_images - 1, this process those of its batches.

    Batches are cut from the whole job before they are dealt out, so an image meets the same
    neighbours, and comes out the same bit for bit, on any number of processes.

    Args:
        denoiser: `(x, t, **conditions) -> prediction`, on the accelerator's device.
        scheduler: A diffusers scheduler.
        shape: Shape of one image, (C, H, W).
        num_images: Images in all.
        seed: Seed of the job.
        steps: Denoising steps.
        batch_size: Images per batch.
        accelerator: Knows the processes and the device.
        conditions: What the denoiser is told of each image.
        progress: Show a progress bar per batch, on the main process.
        callback: Called after every step of this process's first batch.
        draw: What draws the images of a batch, with the arguments of `sample`.
        options: Further arguments of `draw`.

    Yields:
        Numbers of the images, and the images `float32 [B, *shape]`.

    Raises:
        UserError: No images, empty batches, or a number of steps outside 1 .. T.
    """
    if num_images < 1 or batch_size < 1:
        raise UserError(f"{num_images} images in batches of {batch_size}: give at least 1 of both")
    starts = range(0, num_images, batch_size)
    for start in starts[accelerator.process_index :: accelerator.num_processes]:
        indices = list(range(start, min(start + batch_size, num_images)))
        images = draw(
            partial(denoiser, **conditions(indices)),
            scheduler,
            shape,
            seed=seed,
            indices=indices,
            steps=steps,
            device=accelerator.device,
            progress=progress and accelerator.is_main_process,
            callback=callback,
            **options,
        )
        callback = None
        yield indices, images


def generate_together(
    denoiser: Callable[..., Tensor],
    scheduler: Any,
    shape: Sequence[int],
    num_images: int,
    *,
    seed: int,
    steps: int,
    accelerator: Accelerator,
    conditions: Conditions = unconditional,
    **options: Any,
) -> Tensor:
    """Draw images with all processes at once and give them to all, `[num_images, *shape]`.

    Every process draws equally many (a few are thrown away), so that none waits for another,
    even where the denoiser itself is split over the processes. Arguments as in `generate`.
    """
    each = math.ceil(num_images / accelerator.num_processes)
    first = accelerator.process_index * each
    indices = range(first, first + each)
    images = sample(
        partial(denoiser, **conditions(indices)),
        scheduler,
        shape,
        seed=seed,
        indices=indices,
        steps=steps,
        device=accelerator.device,
        **options,
    )
    gathered: Any = accelerator.gather(images)
    return torch.as_tensor(gathered)[:num_images]

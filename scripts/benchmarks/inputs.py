"""The row of reading images for training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.networks import difference
from benchmarks.rows import OURS, Measured
from benchmarks.timing import Effort, Timer
from benchmarks.training import write_images
from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data.image_set import ImageSet
from ddpm_unet.data.loader import make_loader, step_batches
from ddpm_unet.data.sources import open_images, open_stream
from ddpm_unet.data.stream import to_model_range

SIZE, BATCH = 32, 64
TORCHVISION = "torchvision"


def packed_images(effort: Effort) -> Measured:
    """Batches of 32 x 32 images in [-1, 1], mirrored at random, in this process."""
    count = 1024 if effort.quick else 4096
    with TemporaryDirectory() as folder:
        place = Path(folder) / "images"
        place.mkdir()
        write_images(place, count, SIZE)
        config = ImageDataConfig(
            source=str(place), size=SIZE, fit="resize", rot90=False, include_held_out=True
        )
        images = open_images(config)
        plain = ImageDataConfig(**vars(config) | {"flips": False})
        apart = difference(
            sorted_images(ours(images, plain)), sorted_images(theirs(folder, mirrored=False))
        )
        timer = Timer(effort).alternate(
            {
                OURS: lambda: sum(len(batch) for batch in ours(images, config)),
                TORCHVISION: lambda: sum(len(batch) for batch in theirs(folder, mirrored=True)),
            }
        )
    return Measured.timed(
        timer,
        per=count,
        differences={TORCHVISION: apart},
        notes=[
            f"{count} PNG files of {SIZE} x {SIZE}, batches of {BATCH}, no worker processes; "
            "ours were decoded once, before; theirs are decoded every time: ImageFolder, "
            "RandomHorizontalFlip, ToTensor, Normalize; pixels without mirroring are compared"
        ],
    )


def ours(images: ImageSet, config: ImageDataConfig) -> Iterator[Tensor]:
    """An epoch by the training stream."""
    batches = step_batches(range(len(images) // BATCH), BATCH)
    for batch in make_loader(open_stream(config, 0, images), batches):
        yield to_model_range(batch["image"])


def theirs(folder: str, mirrored: bool) -> Iterator[Tensor]:
    """An epoch by torchvision's folder and transforms."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, ToTensor

    changes = [RandomHorizontalFlip()] if mirrored else []
    decoded = ImageFolder(folder, Compose([*changes, ToTensor(), Normalize([0.5], [0.5])]))
    for batch, _ in DataLoader(decoded, BATCH, shuffle=True):
        yield batch


def sorted_images(batches: Iterator[Tensor]) -> Tensor:
    """All images `[N, C, H, W]` in an order that their bytes decide."""
    images = torch.cat(list(batches))
    rows = images.mul(127.5).add(127.5).round().byte().flatten(1).numpy()
    return images[sorted(range(len(rows)), key=lambda i: rows[i].tobytes())]

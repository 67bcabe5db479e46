"""Pictures for people: grids, film strips and curves, written as PNG."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from PIL import Image
from torch import Tensor

from ddpm_unet.data.images import read_image
from ddpm_unet.data.pixels import to_unit
from ddpm_unet.data.volumes import is_nifti, read_volume, write_nifti
from ddpm_unet.errors import UserError

SLICES = 8
"""Slices of a volume that a grid shows."""


def to_uint8(images: Tensor) -> np.ndarray:
    """`[B, C, (D,) H, W]` in [-1, 1] -> `uint8 [B, (D,) H, W, C]`, C 1, 3, 4 (else: the first)."""
    if images.shape[1] not in (1, 3, 4):
        images = images[:, :1]
    levels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return levels.movedim(1, -1).cpu().numpy()


def to_pictures(images: Tensor) -> list[Image.Image]:
    """`[B, C, H, W]` in [-1, 1] as pillow images."""
    arrays = to_uint8(images)
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in arrays]


def save_images(images: Tensor, paths: Sequence[Path]) -> None:
    """Write `[B, C, H, W]` in [-1, 1] as PNG, or volumes `[B, C, D, H, W]` as their paths say.

    That is NIfTI, or a TIFF of a page per slice; 8 bits in every format.
    """
    if images.ndim == 4:
        for picture, path in zip(to_pictures(images), paths, strict=True):
            picture.save(path)
        return
    for volume, path in zip(to_uint8(images), paths, strict=True):
        grey = volume.shape[-1] == 1
        if is_nifti(path):
            write_nifti(path, volume[..., 0] if grey else np.moveaxis(volume, -1, 0))
        else:
            tifffile.imwrite(
                path,
                volume[..., 0] if grey else volume,
                photometric="minisblack" if grey else "rgb",
                compression="zlib",
                metadata={"axes": "ZYX" if grey else "ZYXS"},
            )


def read_pictures(folder: Path, count: int, most: int = 64, ending: str = ".png") -> Tensor:
    """The first of the pictures 00000.png ... of `folder`, `[B, C, H, W]` in [-1, 1].

    With the ending of volumes, `[B, C, D, H, W]`.

    Raises:
        UserError: One is missing, unreadable, or of another shape or depth than the first.
    """
    files = [folder / f"{i:05d}{ending}" for i in range(min(count, most))]
    arrays = []
    for file in files:
        if not file.exists():
            raise UserError(f"{file}: no such file; ask for fewer with --num_images, or make more")
        arrays.append((read_image if ending == ".png" else read_volume)(file))
        if (arrays[-1].shape, arrays[-1].dtype) != (arrays[0].shape, arrays[0].dtype):
            raise UserError(f"{file}: has not the shape and depth of {files[0].name}; remove one")
    return torch.from_numpy(to_unit(np.stack(arrays))).movedim(-1, 1)


def grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """Images `[B, C, H, W]` in [-1, 1] side by side, about square unless `columns` is given.

    Of volumes `[B, C, D, H, W]` a row of slices each.
    """
    from torchvision.utils import make_grid

    if images.ndim == 5:
        depth = images.shape[2]
        columns = min(depth, SLICES)
        chosen = (2 * torch.arange(columns) + 1) * depth // (2 * columns)
        images = images[:, :, chosen.to(images.device)].transpose(1, 2).flatten(0, 1)
    columns = columns or math.ceil(math.sqrt(len(images)))
    sheet = make_grid(images.float().cpu(), nrow=columns, padding=2, pad_value=1.0)
    return to_pictures(sheet[None])[0]


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Write `grid(images)` to `path`, small images enlarged to be seen."""
    picture = grid(images, columns)
    zoom = max(1, round(128 / images.shape[-1])) if images.shape[-1] < 100 else 1
    size = (picture.width * zoom, picture.height * zoom)
    picture.resize(size, Image.Resampling.NEAREST).save(path)


def save_film(frames: Sequence[Tensor], path: Path, most: int = 8) -> None:
    """Write moments `[B, C, H, W]` from left to right, a row for each of the first images.

    Of volumes, the middle slice.
    """
    flat = [f[:, :, f.shape[2] // 2] if f.ndim == 5 else f for f in frames]
    rows = torch.stack(flat, dim=1)[:most]
    save_grid(rows.flatten(0, 1), path, columns=len(frames))


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write `uint8 [H, W, 3]`."""
    Image.fromarray(picture).save(path)


def save_side_by_side(columns: Sequence[tuple[str, Tensor]], path: Path) -> None:
    """Write titled grids `(title, images [B, C, H, W])` next to each other."""
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(columns), figsize=(5 * len(columns), 5.4), squeeze=False, layout="constrained"
    )
    for axis, (title, images) in zip(axes[0], columns, strict=True):
        axis.imshow(np.asarray(grid(images)), interpolation="nearest", cmap="gray")
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)


def plot_metrics(records: Sequence[dict[str, float]], path: Path) -> None:
    """Plot every curve of a run's metrics.jsonl against images seen.

    Losses and the gradient's norm stand together on a logarithmic axis, scores below.
    """
    found = {name for record in records for name in record}
    losses = sorted(name for name in found if name.endswith(("loss", "grad_norm")))
    others = sorted(found - set(losses) - {"step", "images", "skipped", "lr"})
    if not losses:
        return
    plt = pyplot()
    figure, axes = plt.subplots(
        1 + bool(others), 1, figsize=(7, 4 + 2.5 * bool(others)), squeeze=False,
        sharex=True, layout="constrained",
    )  # fmt: skip
    for axis, names in zip(axes[:, 0], (losses, others), strict=False):
        for name in names:
            points = [(r["images"], r[name]) for r in records if name in r]
            x, y = zip(*points, strict=True)
            axis.plot(x, y, label=name, lw=1, marker="." if len(x) < 30 else None)
        axis.set_yscale("log" if names is losses else "linear")
        axis.grid(alpha=0.3)
        axis.legend()
    axes[-1, 0].set_xlabel("images seen")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    del figure, axes, axis
    gc.collect()  # figures are full of cycles, and a run draws thousands


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt

"""Grids, film strips and curves for people, written as PNG."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_unet.data.stream import to_bytes

SLICES = 8
"""Slices of a volume that a grid shows."""


def to_uint8(images: Tensor) -> np.ndarray:
    """`[B, C, (D,) H, W]` in [-1, 1] -> `uint8 [B, (D,) H, W, C]`, C 1, 3, 4 (else: the first)."""
    if images.shape[1] not in (1, 3, 4):
        images = images[:, :1]
    return to_bytes(images).movedim(1, -1).cpu().numpy()


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
    return Image.fromarray(to_uint8(sheet[None])[0].squeeze())


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Write `grid(images)` to `path`, small images enlarged to be seen."""
    sheet = grid(images, columns)
    zoom = max(1, round(128 / images.shape[-1])) if images.shape[-1] < 100 else 1
    sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST).save(path)


def save_film(frames: Sequence[Tensor], path: Path, most: int = 8) -> None:
    """Write moments `[B, C, H, W]` from left to right, a row for each of the first images.

    Of volumes, the middle slice.
    """
    flat = [f[:, :, f.shape[2] // 2] if f.ndim == 5 else f for f in frames]
    rows = torch.stack(flat, dim=1)[:most]
    save_grid(rows.flatten(0, 1), path, columns=len(frames))


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


Panel = dict[str, list[tuple[float, float]]]
"""Curves of one plot by name, each a list of (images seen, value)."""


def panels(records: Sequence[dict[str, Any]]) -> dict[str, Panel]:
    """The curves of a run's metrics.jsonl by plot: "loss", "grad_norm", and scores of a kind each.

    Steps, skipped ones and the learning rate are left out, and so are values that are not finite.
    """
    found: dict[str, Panel] = {}
    for record in records:
        for name, value in record.items():
            if name in ("step", "images", "skipped", "lr") or value is None:
                continue
            words = name.split("_")
            kind = next((k for k in ("loss", "dice", "iou") if k in (words[0], words[-1])), name)
            found.setdefault(kind, {}).setdefault(name, [])
            if math.isfinite(value):
                found[kind][name].append((record["images"], value))
    first = [name for name in ("loss", "grad_norm") if name in found]
    return {name: found[name] for name in [*first, *sorted(found.keys() - set(first))]}


def plot_panels(plots: dict[str, Panel], file: Any, kind: str = "png") -> None:
    """Plot curves against images seen, a plot below another; losses and norms logarithmically."""
    plt = pyplot()
    figure, axes = plt.subplots(
        len(plots), 1, figsize=(6, 2.8 * len(plots) + 0.4), squeeze=False, layout="constrained"
    )
    for axis, (title, curves) in zip(axes[:, 0], plots.items(), strict=True):
        for name, points in curves.items():
            x, y = zip(*points, strict=True) if points else ((), ())
            axis.plot(x, y, label=name, lw=1, marker="." if len(x) < 30 else None)
        if title in ("loss", "grad_norm", "val_loss"):
            axis.set_yscale("log")
        axis.set_title(title.replace("_", " "), fontsize=10)
        axis.grid(alpha=0.3)
        if len(curves) > 1:
            axis.legend(fontsize=8)
    axes[-1, 0].set_xlabel("images seen")
    figure.savefig(file, dpi=110, format=kind)
    plt.close(figure)
    del figure, axes, axis
    gc.collect()  # figures are full of cycles, and a run draws thousands


def plot_metrics(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot every curve of a run's metrics.jsonl against images seen."""
    if found := panels(records):
        plot_panels(found, path)


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt

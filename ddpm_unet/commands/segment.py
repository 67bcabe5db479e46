"""Segment pictures of any size: `python scripts/segment.py --model runs/x/model PICTURES...`.

A model of task "regress" writes the pictures that it predicts.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm_unet.command_line import ArgumentParser, whole, within
from ddpm_unet.commands.shared import shipped
from ddpm_unet.config import PredictConfig
from ddpm_unet.errors import UserError

PIXELS = within(float, 1e-6, 1e9)
SHIPPED = shipped("histology_nuclei")


def parse(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("pictures", type=Path, nargs="+", help="pictures, stacks, NIfTI, point sets, or folders")
    add("--model", type=Path, help="model folder (default: the newest run's, else the shipped one)")
    add("--out", type=Path, default=Path("segmented"), help="folder written to (default segmented)")
    add("--tile", type=int, help="side of the tiles (default: those of least work)")
    add("--overlap", type=int, help="pixels that tiles share (default 32, of volumes 16)")
    add("--batch_size", type=whole(1), default=4, help="tiles at a time (default 4)")
    add("--levels", type=int, help="use so many of a U-Net++'s levels only: faster, less exact")
    add("--turns", action="store_true", help="average over flips and quarter turns, 8 x the work")
    add("--probabilities", choices=["tiff", "npz"], help="write probabilities too, float32")
    add("--picture", choices=["tiff", "png"], default="tiff", help="task regress: format written")
    add("--max_pixels", type=PIXELS, default=200.0, help="largest picture, million pixels")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)

    import torch
    from tqdm import tqdm

    from ddpm_unet.data.folder import list_images
    from ddpm_unet.data.points import list_points
    from ddpm_unet.inference.files import FilePredictor, FileSegmenter
    from ddpm_unet.inference.overlay import class_colors
    from ddpm_unet.inference.points import PointSegmenter
    from ddpm_unet.inference.regression import FileRegressor, numbers
    from ddpm_unet.inference.segmentation import (
        PREPARATION,
        Preparation,
        class_probabilities,
        dimensions,
        tiling,
    )
    from ddpm_unet.inference.writers import output_folder, output_names
    from ddpm_unet.models.segmenter import load_segmentation_model
    from ddpm_unet.training.run_folder import newest_or_shipped

    cure = "train one with scripts/train_seg.py, or give --model"
    folder = args.model or newest_or_shipped(SHIPPED, PREPARATION, cure)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = load_segmentation_model(folder, args.levels).to(device)
    preparation = Preparation.read(folder, model)
    dims = dimensions(model)
    targets, count = preparation.targets, model.config.num_classes
    common: dict[str, Any] = {
        "prepare": preparation.pixels,
        "whole": preparation.whole,
        "channels": preparation.channels,
        "dims": dims,
        "scale": preparation.scale,
        "tiling": tiling(model, PredictConfig(args.tile, args.overlap)),
        "batch_size": args.batch_size,
        "device": device,
        "max_pixels": args.max_pixels,
    }
    predictor: FilePredictor
    if targets:
        predict = numbers(model, preparation.residual, args.turns)
        predictor = FileRegressor(predict=predict, targets=targets, picture=args.picture, **common)
    else:
        common["predict"] = class_probabilities(model, args.turns)
        common["colors"] = class_colors(max(2, count), model.config.class_colors)
        common["probabilities"] = args.probabilities
        if preparation.voxel:
            predictor = PointSegmenter(voxel=preparation.voxel, **common)
        else:
            predictor = FileSegmenter(**common)
    paths: list[Path] = []
    for path in args.pictures:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        inside = ["."]
        if path.is_dir():
            inside = list_points(path) if preparation.voxel else list_images(path, dims)[0]
        paths += [path / p for p in inside]
    names = output_names(paths, args.out)
    for path in paths:
        predictor.look(path)
    with output_folder(args.out):
        print(f"{len(paths)} picture(s) with {folder}")
        for path, name in zip(tqdm(paths, "Segmenting", disable=None), names, strict=True):
            with torch.inference_mode():
                found = predictor.write(path, args.out, name)
            if targets:
                told = "mean " + ", ".join(f"{mean:.4g}" for mean in found)
            else:
                shares = found / max(1, found.sum())
                classes = model.config.class_names or [f"class {i}" for i in range(len(shares))]
                told = ", ".join(f"{c} {s:.1%}" for c, s in zip(classes, shares, strict=True))
            tqdm.write(f"{path.name}: {told}")
    print(f"written: {'predictions' if targets else 'masks and overlays'} in {args.out}")

"""Segment images of any size: `python scripts/segment.py --model runs/x/model IMAGES...`.

A model of task "regress" writes the images that it predicts. Under `accelerate launch` several
processes share the files.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ddpm_unet.cli import ArgumentParser, whole, within
from ddpm_unet.commands.shared import add_common, at_speed, model_or_newest
from ddpm_unet.errors import UserError

PIXELS = within(float, 1e-6, 1e9)


def parse(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("images", type=Path, nargs="+", help="images, stacks, NIfTI, point sets, or folders")
    add("--tile", type=int, help="side of the tiles (default: those of least work)")
    add("--overlap", type=int, help="pixels that tiles share (default 32, of volumes 16)")
    add("--batch_size", type=whole(1), default=4, help="tiles at a time (default 4)")
    add("--levels", type=int, help="use so many of a U-Net++'s levels only: faster, less exact")
    add("--tta", action="store_true", help="average over flips and quarter turns, 8 x the work")
    black_white = "pixel values of black and white here (default: as in training)"
    add("--value_range", type=float, nargs=2, metavar=("BLACK", "WHITE"), help=black_white)
    millimetres = (
        "millimetres from pixel to pixel here, where files do not say it: one number or all"
    )
    add(
        "--spacing",
        type=within(float, 1e-9, 1e6),
        nargs="+",
        help=f"{millimetres} (default: as in training)",
    )
    add("--probabilities", choices=["tiff", "npz"], help="write probabilities too, float32")
    add("--format", choices=["tiff", "png"], default="tiff", help="task regress: format written")
    add("--max_pixels", type=PIXELS, default=200.0, help="largest image, million pixels")
    add_common(parser, "segmented")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)

    import torch
    from tqdm.auto import tqdm

    from ddpm_unet.data.folder import list_images
    from ddpm_unet.data.points import list_points
    from ddpm_unet.data.preprocessing import FILES
    from ddpm_unet.data.volumes import in_mm, is_nifti
    from ddpm_unet.inference.predictor import Predictor
    from ddpm_unet.inference.results import check_image_format
    from ddpm_unet.inference.writers import output_folder, output_names

    process, processes = (int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    if args.value_range and not args.value_range[0] < args.value_range[1]:
        raise UserError("--value_range: must be two numbers, black below white")
    folder = model_or_newest(args.model, "histology_nuclei", FILES, "seg")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if processes > 1 and device.type != "cpu":
        device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
    predictor = Predictor.from_pretrained(
        folder, levels=args.levels, device=device, tile=args.tile, overlap=args.overlap,
        batch_size=args.batch_size, tta=args.tta, max_pixels=args.max_pixels,
        value_range=args.value_range and tuple(args.value_range),
        spacing=args.spacing and (args.spacing[0] if len(args.spacing) == 1 else args.spacing),
    )  # fmt: skip
    own, config = predictor.preprocessing, predictor.model.config
    if own.targets:
        check_image_format(args.format, own.targets, predictor.dims)
    paths: list[Path] = []
    for path in args.images:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        inside = ["."]
        if path.is_dir():
            inside = list_points(path) if own.voxel else list_images(path, predictor.dims)[0]
        paths += [path / p for p in inside]
    names = output_names(paths, args.out)
    for path in paths:
        predictor.look(path)
    mine = list(zip(paths, names, strict=True))[process::processes]
    with output_folder(args.out), at_speed(predictor.model, device, args) as network:
        predictor.network = network
        if process == 0:
            shared = f", shared by {processes} processes" if processes > 1 else ""
            print(f"{len(paths)} image(s) with {folder}{shared}")
            if own.spacing and not predictor.spacing and not all(map(is_nifti, paths)):
                print(
                    f"pixels are taken to be of {in_mm(own.spacing)}, as in training; see --spacing"
                )
        for path, name in tqdm(mine, "Segmenting", disable=process > 0 or None):
            base = args.out / name
            with torch.inference_mode():
                found = write_results(predictor, path, base, args.probabilities, args.format)
            if own.targets:
                said = "mean " + ", ".join(f"{mean:.4g}" for mean in found)
            else:
                classes = config.class_names or [f"class {i}" for i in range(len(found))]
                shares = found / max(1, found.sum())
                said = ", ".join(f"{c} {s:.1%}" for c, s in zip(classes, shares, strict=True))
            tqdm.write(f"{path.name}: {said}{predictor.resampling(path)}")
    if process == 0:
        print(f"written: {'predictions' if own.targets else 'masks and overlays'} in {args.out}")


def write_results(
    predictor: Any,
    path: Path,
    base: Path,
    probabilities: Literal["tiff", "npz"] | None = None,
    format: Literal["tiff", "png"] = "tiff",
) -> Any:
    """Write the results of one file; gives a number for each class or channel."""
    from ddpm_unet.inference.overlay import class_colors
    from ddpm_unet.inference.results import write_masks, write_points, write_regression

    own, config = predictor.preprocessing, predictor.model.config
    if own.voxel:
        points, found = predictor.points(path)
        return write_points(points, found, base, npz=probabilities == "npz")
    with predictor.open(path) as source:
        if own.targets:
            return write_regression(source, base, own.targets, format)
        colors = class_colors(predictor.num_classes, config.class_colors)
        names = tuple(config.class_names)
        return write_masks(source, base, colors, names, probabilities=probabilities)

"""Segment images of any size: `python scripts/segment.py --model runs/x/model IMAGES...`.

A model of task "regress" writes the images that it predicts. Under `accelerate launch` several
processes share the files. With --truth the masks are scored, in scores.json and scores.csv; a
folder of finished masks is scored alone. How the true masks are read is as in the training, and the
flags of train_seg.py say otherwise (--data.mask_kind instances, --data.mask_name {}_label).
"""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ddpm_unet.cli import ArgumentParser, whole, within
from ddpm_unet.commands.shared import (
    add_common,
    at_speed,
    best_device,
    model_or_newest,
    training_settings,
)
from ddpm_unet.errors import UserError

PIXELS = within(float, 1e-6, 1e9)


def parse(arguments: Sequence[str] | None) -> tuple[Namespace, list[str]]:
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("images", type=Path, nargs="+", help="images, stacks, NIfTI, point sets, or folders")
    add("--tile", type=int, help="side of the tiles (default: those of least work)")
    add("--overlap", type=int, help="pixels that tiles share (default 32, of volumes 16)")
    add("--batch_size", type=whole(1), default=4, help="tiles at a time (default 4)")
    add("--levels", type=int, help="use so many of a U-Net++'s levels only: faster, less exact")
    add("--tta", action="store_true", help="average over flips and quarter turns, 8 x the work")
    black_white = "pixel values of black and white here (default: as in training)"
    add("--value_range", type=float, nargs=2, metavar=("BLACK", "WHITE"), help=black_white)
    add("--truth", help="folder of true masks, to score the predicted ones by")
    add(
        "--outlines", choices=["geojson", "imagej"], action="append", help="write objects' outlines"
    )
    millimetres = (
        "millimetres from pixel to pixel here, where NIfTI does not say it: one number or all"
    )
    add(
        "--spacing",
        type=within(float, 1e-9, 1e6),
        nargs="+",
        help=f"{millimetres} (default: as the file says, else as in training)",
    )
    add("--probabilities", choices=["tiff", "npz"], help="write probabilities too, float32")
    add("--format", choices=["tiff", "png"], default="tiff", help="task regress: format written")
    add("--max_pixels", type=PIXELS, default=200.0, help="largest image, million pixels")
    add_common(parser, "segmented")
    args, others = parser.parse_known_args(arguments)
    if others and not args.truth:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    return args, others


def main(arguments: Sequence[str] | None = None) -> None:
    args, others = parse(arguments)
    if args.truth and all(any(args.images[0].glob(f"*_{x}.*")) for x in ("mask", "overlay")):
        score(args.images[0], args.truth, others, args.model)
        return

    import torch
    from tqdm.auto import tqdm

    from ddpm_unet.data.folder import list_images
    from ddpm_unet.data.points import list_points
    from ddpm_unet.data.preprocessing import FILES
    from ddpm_unet.data.reading import is_bio
    from ddpm_unet.data.volumes import in_mm
    from ddpm_unet.inference.predictor import Predictor
    from ddpm_unet.inference.results import check_image_format
    from ddpm_unet.inference.writers import output_folder, output_names
    from ddpm_unet.training.distributed import check_launch

    check_launch()
    process, processes = (int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    if args.value_range and not args.value_range[0] < args.value_range[1]:
        raise UserError("--value_range: must be two numbers, black below white")
    folder = model_or_newest(args.model, "histology_nuclei", FILES, "seg")
    device = best_device()
    if processes > 1 and device.type != "cpu":
        device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
    predictor = Predictor.from_pretrained(
        folder, levels=args.levels, device=device, tile=args.tile, overlap=args.overlap,
        batch_size=args.batch_size, tta=args.tta, max_pixels=args.max_pixels,
        value_range=args.value_range and tuple(args.value_range),
        spacing=args.spacing and (args.spacing[0] if len(args.spacing) == 1 else args.spacing),
    )  # fmt: skip
    own = predictor.preprocessing
    if own.targets:
        check_image_format(args.format, own.targets, predictor.dims)
    paths: list[Path] = []
    for path in args.images:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        inside = ["."]
        if path.is_dir() and not is_bio(path):
            inside = list_points(path) if own.voxel else list_images(path, predictor.dims)[0]
        paths += [path / p for p in inside]
    paths = own.images(paths)
    names = output_names(paths, args.out)
    for path in paths:
        predictor.look(path)
    mine = list(zip(paths, names, strict=True))[process::processes]
    with output_folder(args.out), at_speed(predictor.model, device, args) as graph:
        predictor.network = graph(predictor.model) if graph else predictor.model
        if process == 0:
            shared = f", shared by {processes} processes" if processes > 1 else ""
            print(f"{len(paths)} image(s) with {folder}{shared}")
            unsaid = [path.name for path in paths if own.spacing and not predictor.spacing_of(path)]
            if unsaid:
                print(
                    f"{unsaid[0]}{' and others' * (len(unsaid) > 1)}: pixels are taken to be of "
                    f"{in_mm(own.spacing or ())}, as in training; see --spacing"
                )
        for path, name in tqdm(mine, "Segmenting", disable=process > 0 or None):
            base = args.out / name
            with torch.inference_mode():
                found = write_results(
                    predictor, path, base, args.probabilities, args.format, args.outlines or ()
                )
            if own.targets:
                said = "mean " + ", ".join(f"{mean:.4g}" for mean in found)
            else:
                classes = predictor.class_names or [f"class {i}" for i in range(len(found))]
                shares = found / max(1, found.sum())
                said = ", ".join(f"{c} {s:.1%}" for c, s in zip(classes, shares, strict=True))
            tqdm.write(f"{path.name}: {said}{predictor.changes(path)}")
    if processes > 1:
        from accelerate import PartialState

        PartialState(cpu=device.type == "cpu").wait_for_everyone()
    if process > 0:
        return
    print(f"written: {'predictions' if own.targets else 'masks and overlays'} in {args.out}")
    if not own.targets:
        _join_tables([args.out / f"{name}_objects.csv" for name in names], args.out)
    if args.truth:
        score(args.out, args.truth, [*others, f"--data.dims={predictor.dims}"], folder)


def _join_tables(files: Sequence[Path], out: Path) -> None:
    """Write objects.csv, the tables of all images in one, where they have the same columns."""
    there = [file for file in files if file.is_file()]
    tables = [file.read_text("utf-8", "surrogateescape").splitlines() for file in there]
    if tables and len({table[0] for table in tables}) == 1:
        rows = [row for table in tables for row in table[1:]]
        text = "\n".join([tables[0][0], *rows, ""])
        (out / "objects.csv").write_text(text, "utf-8", "surrogateescape")
        print(f"{len(rows)} objects in {out / 'objects.csv'}")


def score(folder: Path, truth: str, others: list[str], model: Path | None) -> None:
    """Score the masks that an earlier call wrote to a folder.

    Raises:
        UserError: Masks that do not fit each other, one line each.
    """
    from dataclasses import replace

    import numpy as np
    import torch

    from ddpm_unet.config import SegmentConfig
    from ddpm_unet.config.data import ExtraPairsConfig
    from ddpm_unet.data.check import check_pairs
    from ddpm_unet.data.masks import IGNORE_INDEX, mask_values
    from ddpm_unet.data.reading import read_image
    from ddpm_unet.evaluation import metrics
    from ddpm_unet.inference.objects import label_objects
    from ddpm_unet.training.pixelwise import ClassTarget

    data = replace(
        training_settings(SegmentConfig, model, others).data, images=str(folder), masks=truth,
        image_name="{}_mask", channels=None, value_range=None, extra=ExtraPairsConfig(),
    )  # fmt: skip
    report = check_pairs(data, finished=True)
    code, rows, counts = report.mask_code(), [], []
    for pair in report.pairs:
        found = mask_values(pair.read_image(), False, pair.image_file)
        values = code.read(pair.read_mask(), pair.mask_file)
        true = code.classes(values, pair.mask_file)
        objects = code.kind == "instances"
        found = np.where(true == IGNORE_INDEX, 0, found > 0 if objects else found).astype(np.int64)
        if found.max() >= code.num_classes:
            raise UserError(
                f"{pair.image_file}: has class {found.max()}, and {pair.mask_file} "
                f"{code.num_classes} classes; give data.num_classes or data.mask_values"
            )
        planes = torch.from_numpy(found), torch.from_numpy(true.astype(np.int64))
        counts.append(metrics.confusion(*planes, code.num_classes, IGNORE_INDEX))
        row = metrics.scores_of_image(*planes, code.num_classes, IGNORE_INDEX)
        if objects:
            at = re.fullmatch(r"(.*)_mask(\.[\w.]+?)( page (\d+))?", pair.image_file)
            assert at is not None
            ending = ".nii.gz" if ".nii" in at[2] else ".tif"
            path = Path(f"{at[1]}_objects{ending}")
            if path.is_file():
                labels = read_image(path, 3 if at[4] else report.config.axes)[..., 0]
                labels = labels[int(at[4])] if at[4] else labels
            else:
                labels = label_objects(found)
            labels = np.where(true == IGNORE_INDEX, 0, labels)
            row |= metrics.object_scores(labels, code.cells(values, true, ()))
        rows.append(row)
    target = ClassTarget(tuple(code.class_names))
    scores = target.compute(torch.stack(counts).sum(0)) | metrics.mean_over_images(rows)
    names = [pair.image_file for pair in report.pairs]
    metrics.write_scores(
        folder, scores, [{"name": n, **r} for n, r in zip(names, rows, strict=True)]
    )
    print(f"{len(rows)} masks by those in {truth}:\n{metrics.shown_scores(scores)}")


def write_results(
    predictor: Any,
    path: Path,
    base: Path,
    probabilities: Literal["tiff", "npz"] | None = None,
    format: Literal["tiff", "png"] = "tiff",
    outlines: Sequence[str] = (),
) -> Any:
    """Write the results of one file; gives a number for each class or channel."""
    from ddpm_unet.inference.overlay import class_colors
    from ddpm_unet.inference.results import write_masks, write_points, write_regression

    own, count = predictor.preprocessing, predictor.num_classes
    if own.voxel:
        points, chances = predictor.points(path)
        return write_points(points, chances, base, npz=probabilities == "npz")
    with predictor.open(path) as source:
        if own.targets:
            return write_regression(source, base, own.targets, format)
        colors = class_colors(count, predictor.model.config.class_colors[:count])
        return write_masks(
            source, base, colors, predictor.class_names, probabilities=probabilities,
            outlines=outlines,
        )  # fmt: skip

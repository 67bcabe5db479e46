"""Score predicted images, method by method: `score_images.py --targets DIR name=DIR ...`.

    python scripts/examples/score_images.py --targets pairs/pansharpening/test/targets --ratio 4 \
        bicubic=pairs/pansharpening/test/bicubic ours=segmented

Prints a table of means over the images, and writes the middle of the first one side by side.
Folders hold a file for each target, of its name or of its name and _predicted. With --dims 3 they
hold volumes, of which the middle slice is shown.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np

from ddpm_unet.cli import ArgumentParser, user_errors, whole
from ddpm_unet.errors import UserError


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("methods", nargs="+", help="name=folder of its predictions; names from left to right")
    add("--targets", type=Path, required=True, help="folder of the true images")
    add("--images", type=Path, help="folder of the inputs, to be shown")
    add("--dims", type=int, choices=(2, 3), default=2, help="3 for NIfTI and TIFF volumes")
    add("--target_range", type=float, nargs=2, help="black and white (default the type's)")
    add("--ratio", type=whole(1, 64), help="also SAM and ERGAS, the latter for this ratio")
    add("--crop", type=whole(16, 4096), default=128, help="pixels shown (default 128)")
    add("--out", type=Path, default=Path("compare.png"), help="PNG written (default compare.png)")
    return parser.parse_args()


def read(file: Path, dims: int) -> np.ndarray:
    """`[H, W, C]` of an image, `[D, H, W, C]` of a volume."""
    from ddpm_unet.data.reading import read_image

    return read_image(file, dims)


def prediction(folder: Path, target: Path) -> Path:
    """The file of a target."""
    from ddpm_unet.data.reading import split_ending

    stem = split_ending(target.name)[0]
    names = (stem, f"{stem}_predicted")
    found = [path for path in folder.glob("*") if split_ending(path.name)[0] in names]
    if len(found) != 1:
        raise UserError(f"{folder}: has {len(found)} files for {stem}, or no one; give one")
    return found[0]


def main() -> None:
    args = parse()

    import torch

    from ddpm_unet.data.folder import list_images
    from ddpm_unet.data.preprocessing import Targets
    from ddpm_unet.evaluation.image_quality import SMALLEST, image_scores, spectral_scores
    from ddpm_unet.evaluation.plots import save_side_by_side
    from ddpm_unet.inference.overlay import displayable
    from ddpm_unet.inference.writers import output_folder

    if args.ratio and args.dims == 3:
        raise UserError("--ratio: SAM and ERGAS are of images; leave it out")
    if args.target_range and not args.target_range[0] < args.target_range[1]:
        raise UserError("--target_range: must be two numbers, black below white")
    files = [args.targets / path for path in list_images(args.targets, args.dims)[0]]
    scores: dict[str, dict[str, list[float]]] = {}
    columns: list[tuple[str, torch.Tensor]] = []

    def show(title: str, image: torch.Tensor) -> None:
        if image.ndim == 4:
            image = image[:, image.shape[1] // 2]
        channels = 3 if len(image) >= 3 else 1
        starts = (max(0, (length - args.crop) // 2) for length in image.shape[1:])
        box = (slice(start, start + args.crop) for start in starts)
        columns.append((title, image[(slice(channels), *box)][None]))

    for number, file in enumerate(files):
        pixels = read(file, args.dims)
        if min(pixels.shape[:-1]) < SMALLEST:
            raise UserError(f"{file}: is under {SMALLEST} pixels wide, too few for SSIM; remove it")
        targets = Targets.of(pixels, args.target_range, str(file))
        truth = torch.from_numpy(np.moveaxis(targets.to_unit(pixels), -1, 0))
        if number == 0 and args.images:
            seen = displayable(read(prediction(args.images, file), args.dims))
            show("input", torch.tensor(np.moveaxis(seen, -1, 0)) / 127.5 - 1)
        for method in args.methods:
            name, _, folder = method.partition("=")
            if not folder or not Path(folder).is_dir():
                raise UserError(f"{method}: give name=folder, one that holds its predictions")
            pixels = read(prediction(Path(folder), file), args.dims)
            made = torch.from_numpy(np.moveaxis(targets.to_unit(pixels), -1, 0))
            if made.shape != truth.shape:
                raise UserError(f"{folder}: {file.name} has another shape than its target {file}")
            found = image_scores(made, truth)
            if args.ratio:
                found |= spectral_scores(made, truth, args.ratio)
            for score, value in found.items():
                scores.setdefault(name, {}).setdefault(score, []).append(value)
            if number == 0:
                show(name, made)
        if number == 0:
            show("truth", truth)
    names = list(next(iter(scores.values())))
    print(f"| method | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for method, values in scores.items():
        means = " | ".join(f"{np.mean(values[name]):.4g}" for name in names)
        print(f"| {method} | {means} |")
    with output_folder(args.out.parent):
        save_side_by_side(columns, args.out)
    print(f"{len(files)} image(s); written: {args.out}")


if __name__ == "__main__":
    with user_errors():
        main()

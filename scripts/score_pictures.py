"""Score predicted pictures, method by method: `python scripts/score_pictures.py --targets DIR ...`.

    python scripts/score_pictures.py --targets pairs/pansharpening/test/targets --ratio 4 \
        bicubic=pairs/pansharpening/test/bicubic ours=segmented

Prints a table of means over the pictures, and writes the middle of the first one side by side.
Folders hold a file for each target, of its name or of its name and _predicted.
"""

from argparse import Namespace
from pathlib import Path

import numpy as np

from ddpm_unet.command_line import ArgumentParser, user_errors, whole
from ddpm_unet.errors import UserError


def arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("methods", nargs="+", help="name=folder of its predictions; names from left to right")
    add("--targets", type=Path, required=True, help="folder of the true pictures")
    add("--images", type=Path, help="folder of the inputs, to be shown")
    add("--ratio", type=whole(1, 64), help="also SAM and ERGAS, the latter for this ratio")
    add("--crop", type=whole(16, 4096), default=128, help="pixels shown (default 128)")
    add("--out", type=Path, default=Path("compare.png"), help="PNG written (default compare.png)")
    return parser.parse_args()


def prediction(folder: Path, stem: str) -> np.ndarray:
    """`[H, W, C]` of the file of a target."""
    from ddpm_unet.data.pictures import read_picture

    found = [p for p in folder.glob("*") if p.stem in (stem, f"{stem}_predicted")]
    if len(found) != 1:
        raise UserError(f"{folder}: has {len(found)} files for {stem}, or no one; give one")
    return read_picture(found[0])


def main() -> None:
    args = arguments()

    import torch

    from ddpm_unet.data.folder import list_pictures
    from ddpm_unet.data.pictures import read_picture
    from ddpm_unet.data.targets import Targets
    from ddpm_unet.evaluation.picture_scores import picture_scores, spectral_scores
    from ddpm_unet.evaluation.plots import save_side_by_side
    from ddpm_unet.inference.writing import output_folder

    files = [args.targets / path for path in list_pictures(args.targets)[0]]
    scores: dict[str, dict[str, list[float]]] = {}
    columns: list[tuple[str, torch.Tensor]] = []

    def show(title: str, picture: torch.Tensor) -> None:
        channels = 3 if len(picture) >= 3 else 1
        starts = (max(0, (length - args.crop) // 2) for length in picture.shape[1:])
        box = (slice(start, start + args.crop) for start in starts)
        columns.append((title, picture[(slice(channels), *box)][None]))

    for number, file in enumerate(files):
        pixels = read_picture(file)
        targets = Targets.of(pixels, None, str(file))
        truth = torch.from_numpy(np.moveaxis(targets.to_unit(pixels), -1, 0))
        if number == 0 and args.images:
            image = prediction(args.images, file.stem)
            own = Targets.of(image, None, str(args.images))
            show("input", torch.from_numpy(np.moveaxis(own.to_unit(image), -1, 0)))
        for method in args.methods:
            name, _, folder = method.partition("=")
            if not folder or not Path(folder).is_dir():
                raise UserError(f"{method}: give name=folder, one that holds its predictions")
            pixels = prediction(Path(folder), file.stem)
            made = torch.from_numpy(np.moveaxis(targets.to_unit(pixels), -1, 0))
            if made.shape != truth.shape:
                raise UserError(f"{folder}: {file.stem} has not the shape of its target {file}")
            found = picture_scores(made, truth)
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
    print(f"{len(files)} picture(s); written: {args.out}")


if __name__ == "__main__":
    with user_errors():
        main()

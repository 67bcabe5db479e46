"""Make images to predict, with baselines: `python scripts/examples/make_pairs.py pansharpening`.

"pansharpening" blurs and reduces the colours of images and keeps their grey (Wald's protocol):
inputs of four channels, targets in colour. "staining" takes H&E micrographs: grey inputs, and as
targets the haematoxylin that colour deconvolution finds. Of each image the left two thirds go to
train/, the rest to test/, each with images/ and targets/, and test/ also with what simple methods
make of the images.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import tifffile

from ddpm_unet.cli import ArgumentParser, user_errors, whole, within
from ddpm_unet.errors import UserError

BUILTIN = "builtin:histology"


def arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("task", choices=["pansharpening", "staining"], help="what is to be predicted")
    add("images", nargs="*", default=[BUILTIN], help=f"RGB images (default: {BUILTIN})")
    add("--scale", type=within(float, 0.01, 1.0), default=0.5, help="resized first (default 0.5)")
    add("--ratio", type=whole(2, 16), default=4, help="pansharpening: how much coarser (default 4)")
    add("--out", type=Path, help="folder written to (default pairs/ + the task)")
    return parser.parse_args()


def read(name: str, scale: float) -> np.ndarray:
    """`uint8 [H, W, 3]`."""
    from ddpm_unet.data import histology
    from ddpm_unet.data.pixels import resize
    from ddpm_unet.data.reading import read_image

    scene = histology.micrograph("all") if name == BUILTIN else read_image(name)
    if scene.shape[-1] < 3 or scene.dtype != np.uint8:
        raise UserError(f"{name}: is no RGB image of 8 bits; give another")
    planes = np.ascontiguousarray(np.moveaxis(scene[..., :3], -1, 0))
    size = [round(length * scale) for length in scene.shape[:2]]
    if min(size) < 96:
        raise UserError(f"{name}: is under 96 pixels wide at --scale {scale:g}; give a larger one")
    return np.moveaxis(resize(planes, *size), 0, -1)


def save(path: Path, image: np.ndarray) -> None:
    """A TIFF of `uint8 [H, W, C]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = image.shape[-1] == 1
    photometric = "rgb" if image.shape[-1] == 3 else "minisblack"
    tifffile.imwrite(
        path,
        image[..., 0] if grey else image,
        photometric=photometric,
        planarconfig=None if grey else "contig",
        compression="zlib",
    )


def main() -> None:
    args = arguments()

    import color_deconvolution
    import pansharpening

    from ddpm_unet.inference.writers import output_folder

    out = args.out or Path("pairs", args.task)
    found = {"train": [], "test": []}  # type: dict[str, list[tuple[str, np.ndarray, np.ndarray]]]
    for name in args.images:
        scene = read(name, args.scale)
        stem = "histology" if name == BUILTIN else Path(name).stem
        border = scene.shape[1] * 2 // 3
        for part, columns in (("train", slice(border)), ("test", slice(border, None))):
            cut = scene[:, columns]
            if args.task == "pansharpening":
                image, target = pansharpening.wald_pair(cut, args.ratio)
            else:
                image, target = (
                    pansharpening.to_uint8(pansharpening.grey(cut)),
                    color_deconvolution.haematoxylin(cut),
                )
            found[part].append((stem, image, target))
    with output_folder(out):
        for part, pairs in found.items():
            for stem, image, target in pairs:
                save(out / part / "images" / f"{stem}.tif", image)
                save(out / part / "targets" / f"{stem}.tif", target)
        _, images, targets = zip(*found["train"], strict=True)
        weights = color_deconvolution.linear_map(list(images), list(targets))
        if args.task == "staining":
            curve = pansharpening.to_uint8(
                color_deconvolution.grey_curve(list(images), list(targets))
            )
        for stem, image, _ in found["test"]:
            save(
                out / "test" / "linear" / f"{stem}.tif", color_deconvolution.mapped(image, weights)
            )
            if args.task == "pansharpening":
                save(out / "test" / "bicubic" / f"{stem}.tif", pansharpening.bicubic(image))
                save(out / "test" / "brovey" / f"{stem}.tif", pansharpening.brovey(image))
            else:
                save(out / "test" / "curve" / f"{stem}.tif", curve[image])
    print(f"written: {len(found['train'])} pair(s) to train on and to test with in {out}")


if __name__ == "__main__":
    with user_errors():
        main()

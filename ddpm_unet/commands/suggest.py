"""Which unlabelled images to label first: `ddpm-unet suggest path/to/images --count 10`.

Images are ranked by how well the first of them stand for all the others, in the features of a
denoiser. They are read as in its training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddpm_unet.cli import ArgumentParser, whole
from ddpm_unet.commands.shared import best_device, model_or_newest
from ddpm_unet.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("images", help="folder of images")
    add("--model", type=Path, help="denoiser (default: the newest run's, else the shipped one)")
    add("--count", type=whole(1), help="how many to name (default: all)")
    add("--class_label", type=int, help="of a class-conditional denoiser, the class it is given")
    add("--repeat_grey", action="store_true", help="repeat grey images' channel for the denoiser")
    add("--out", type=Path, help="file to write the list to, a path a line")
    args = parser.parse_args(arguments)

    from ddpm_unet.config import ImageDataConfig
    from ddpm_unet.data.folder import with_dims
    from ddpm_unet.data.preprocessing import Preprocessing
    from ddpm_unet.data.sources import open_images
    from ddpm_unet.files import replace_text
    from ddpm_unet.inference.suggest import suggest
    from ddpm_unet.models.pretrained import model_folder, read_config

    folder = model_or_newest(args.model)
    unet = read_config(model_folder(folder))
    seen = Preprocessing.read(folder, unet.in_channels)
    if with_dims(ImageDataConfig(), args.images).axes > unet.dims:
        raise UserError(f"{args.images}: holds volumes, and {folder} is of images; give another")
    images = open_images(
        ImageDataConfig(
            source=args.images,
            dims=unet.dims,
            size=1,
            include_held_out=True,
            channels=1 if args.repeat_grey else seen.channels,
            scale=seen.scale,
            value_range=seen.value_range,
        )
    )
    if args.count and args.count > len(images):
        raise UserError(f"--count {args.count}: {args.images} has {len(images)} images")
    order = suggest(
        folder, images, args.count, device=best_device(),
        class_label=args.class_label, repeat_grey=args.repeat_grey,
    )  # fmt: skip
    names = [images.name(number) for number in order]
    print("\n".join(names))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        replace_text(args.out, "\n".join([*names, ""]))

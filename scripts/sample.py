"""Draw images from a trained denoiser: `python scripts/sample.py --steps 1000`."""

from argparse import Namespace
from pathlib import Path

from ddpm_unet.command_line import ArgumentParser, user_errors, whole
from ddpm_unet.errors import UserError

SHIPPED = Path(__file__).parents[1] / "samples" / "histology64" / "model"


def arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, help="model folder (default: the newest run's, else the shipped one)")
    add("--steps", type=int, default=1000, help="denoising steps (default 1000)")
    add("--sampler", default="ddpm", help="ddpm, ddim, dpm++, ... (default ddpm)")
    add("--num_images", type=int, default=16, help="images to draw (default 16)")
    add("--batch_size", type=int, default=16, help="images per process and batch (default 16)")
    add("--size", type=int, nargs="+", help="height and width, pixels (default: as trained)")
    add("--class", dest="label", type=int, help="class of all images (default: all in turn)")
    add("--seed", type=int, default=0, help="image i is a function of (seed, i)")
    add("--film", type=whole(0), default=0, help="also a film strip of so many moments")
    add("--nifti", action="store_true", help="write volumes as .nii.gz, not as TIFF stacks")
    add("--out", type=Path, default=Path("generated"), help="folder written to (default generated)")
    return parser.parse_args()


def main() -> None:
    args = arguments()

    import torch
    from accelerate import Accelerator

    from ddpm_unet.diffusion.samplers import make_scheduler
    from ddpm_unet.diffusion.sampling import FilmStrip
    from ddpm_unet.evaluation.plots import read_pictures, save_film, save_grid, save_images
    from ddpm_unet.inference.generate import generate, of_class
    from ddpm_unet.inference.pipeline import image_shape, read_pipeline
    from ddpm_unet.inference.writing import output_folder
    from ddpm_unet.training.run_folder import newest_or_shipped

    cure = "train one with scripts/train_ddpm.py, or give --model"
    folder = args.model or newest_or_shipped(SHIPPED, "model_index.json", cure)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    unet, diffusion = read_pipeline(folder)
    unet.to(accelerator.device)
    if unet.config.conditional:
        raise UserError(f"{folder}: attends to a context, which this script cannot give it yet")
    classes = unet.config.num_class_embeds
    if args.label is not None and not classes:
        raise UserError(f"{folder}: knows no classes; leave --class out")
    conditions = of_class(args.label, classes, accelerator.device)
    scheduler = make_scheduler(args.sampler, diffusion)
    shape = image_shape(unet.config, args.size)
    ending = ".png" if len(shape) == 3 else ".nii.gz" if args.nifti else ".tif"
    with output_folder(args.out):
        accelerator.print(
            f"{args.num_images} images of {'x'.join(map(str, shape))} from {folder}, "
            f"{args.steps} {args.sampler} steps, {accelerator.num_processes} process(es)"
        )
        film = FilmStrip(args.film) if args.film > 0 else None
        for indices, images in generate(
            unet,
            scheduler,
            shape,
            args.num_images,
            seed=args.seed,
            steps=args.steps,
            batch_size=args.batch_size,
            accelerator=accelerator,
            conditions=conditions,
            progress=True,
            callback=film,
        ):
            save_images(images, [args.out / f"{index:05d}{ending}" for index in indices])
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            save_grid(
                read_pictures(args.out, args.num_images, ending=ending), args.out / "grid.png"
            )
            if film:
                save_film(film.frames, args.out / "film.png")
    accelerator.print(f"written: {args.out / 'grid.png'} and one file per image")
    accelerator.end_training()


if __name__ == "__main__":
    with user_errors():
        main()

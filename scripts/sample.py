"""Draw images from a trained denoiser: `python scripts/sample.py --steps 1000`."""

from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

from ddpm_unet.command_line import ArgumentParser, user_errors, within
from ddpm_unet.diffusion.samplers import described
from ddpm_unet.errors import UserError

SHIPPED = Path(__file__).parents[1] / "samples" / "histology64" / "model"


def arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, help="model folder (default: the newest run's, else the shipped one)")
    add("--steps", type=int, default=1000, help="denoising steps (default 1000)")
    add(
        "--sampler",
        nargs="?",
        const="list",
        help="ddpm, ddim, dpm++, ... (default: the one that the model's folder names, ddpm if it "
        "was trained here); without a name, list them",
    )
    add("--num_images", type=int, default=16, help="images to draw (default 16)")
    add("--batch_size", type=int, default=16, help="images per process and batch (default 16)")
    add("--size", type=int, nargs="+", help="height and width, pixels (default: as trained)")
    add("--class", dest="label", help="class of all images, by number or name (default: in turn)")
    add("--context", type=Path, nargs="+", help="sequences to attend to, .npy or .safetensors")
    add("--prompt", nargs="+", help="captions, for a model that was trained with a text encoder")
    add("--condition", type=Path, nargs="+", help="pictures to go by, or a folder of them")
    add("--guidance", type=float, help="scale of guidance: above 1, more like what is told")
    add("--guidance_interval", type=float, nargs=2, metavar=("LO", "HI"), help="timesteps guided")
    add("--guide", type=Path, help="a checkpoint or model that guides, in place of telling nothing")
    add("--init_image", type=Path, help="picture to noise and go on from, or to fill by --mask")
    add("--strength", type=float, help="share of the steps taken from --init_image (default 0.5)")
    add("--mask", type=Path, help="paint --init_image anew where this picture is white")
    add(
        "--resamplings",
        type=within(int, 1, 1000),
        default=5,
        help="passes over each step with --mask",
    )
    add("--interpolate", type=Path, nargs=2, metavar="PICTURE", help="images from one to another")
    add(
        "--tile",
        type=within(int, 8, 10**6),
        help="side of the windows of images larger than the training's",
    )
    add("--periodic", action="store_true", help="with --tile: images that tile the plane")
    add("--seed", type=int, default=0, help="image i is a function of (seed, i)")
    add("--film", type=within(int, 0, 1000), default=0, help="also a film strip of so many moments")
    add("--nifti", action="store_true", help="write volumes as .nii.gz, not as TIFF stacks")
    add("--out", type=Path, default=Path("generated"), help="folder written to (default generated)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.sampler in ("list", "help"):
        print(described())
        return

    import torch
    from accelerate import Accelerator

    from ddpm_unet.cpu import accelerate_cpu
    from ddpm_unet.diffusion.samplers import make_scheduler
    from ddpm_unet.diffusion.sampling import FilmStrip, timesteps
    from ddpm_unet.diffusion.tiled import tiled
    from ddpm_unet.evaluation.plots import (
        read_pictures,
        save_film,
        save_grid,
        save_images,
        save_side_by_side,
    )
    from ddpm_unet.inference.conditions import Conditioning, in_turn, read_context, read_planes
    from ddpm_unet.inference.editing import Edit
    from ddpm_unet.inference.generate import generate
    from ddpm_unet.inference.picture_space import PictureSpace
    from ddpm_unet.inference.pipeline import image_shape, read_pipeline, read_scheduler
    from ddpm_unet.inference.steering import check_guidance, read_guide, steered
    from ddpm_unet.inference.writing import output_folder, save_masks
    from ddpm_unet.models import precompute_time_embeddings
    from ddpm_unet.training.run_folder import newest_or_shipped

    edit = Edit(args.init_image, args.strength, args.mask, args.resamplings, args.interpolate)
    cure = "train one with scripts/train_ddpm.py, or give --model"
    folder = args.model or newest_or_shipped(SHIPPED, "model_index.json", cure)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    unet, diffusion = read_pipeline(folder)
    unet = accelerate_cpu(unet.to(accelerator.device))
    told = Conditioning.read(folder)
    told.check(unet.config, folder)
    space = PictureSpace(folder, accelerator.device)
    check_guidance(told, args.guidance, args.guidance_interval, args.guide)
    planes = read_planes(told, args.condition, unet.config.dims, args.size)
    conditions = in_turn(
        told.classes(unet.config),
        told.class_number(args.label, unet.config),
        read_context(told, unet.config, args.context, args.prompt),
        planes,
        accelerator.device,
    )
    guide = args.guide and read_guide(args.guide, unet, diffusion, told).to(accelerator.device)
    sampler, scheduler = (
        (args.sampler, make_scheduler(args.sampler, diffusion))
        if args.sampler
        else read_scheduler(folder)
    )
    network = precompute_time_embeddings(unet, timesteps(scheduler, args.steps))
    denoiser = steered(
        network, told.null_class(unet.config), args.guidance, args.guidance_interval, guide
    )
    size = space.sides(args.size if planes is None else planes.shape[2:], "--size")
    shape = image_shape(unet.config, size, told.drawn_channels)
    pictures = space.beginning(edit, shape, sized=bool(size))
    shape = shape if pictures is None else tuple(pictures.shape[1:])
    for tile in space.sides([args.tile] if args.tile else [], "--tile") or ():
        if len(shape) > 3 or tile > min(shape[1:]):
            why = "volumes are drawn whole" if len(shape) > 3 else "the images are smaller"
            raise UserError(f"--tile {args.tile}: {why}; leave it out, or give another --size")
        denoiser = tiled(denoiser, tile, tile // 2, periodic=args.periodic)
    options = edit.options(pictures, args.num_images, bool(conditions([0])), told.self_conditioning)
    ending = ".png" if len(shape) == 3 else ".nii.gz" if args.nifti else ".tif"
    grid = args.out / "grid.png"
    names = ("images", "masks") if told.mask_classes else ("",)
    with output_folder(args.out), ExitStack() as folders:
        places = [folders.enter_context(output_folder(args.out / name)) for name in names]
        channels, *sides = space.shape(shape)
        what = "x".join(map(str, (channels - told.mask_classes, *sides)))
        what += f" with masks of {told.mask_classes} classes" if told.mask_classes else ""
        accelerator.print(
            f"{args.num_images} images of {what} from {folder}, "
            f"{args.steps} {sampler} steps, {accelerator.num_processes} process(es)"
        )
        film = FilmStrip(args.film) if args.film > 0 else None
        for indices, drawn in generate(
            denoiser,
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
            **options,
        ):
            files = [[at / f"{index:05d}{ending}" for index in indices] for at in places]
            images, masks = told.parted(drawn)
            save_images(space.pictures(images), files[0])
            if masks is not None:
                save_masks(masks.cpu().numpy(), told.mask_classes, files[1])
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            drawn_first = [read_pictures(at, args.num_images, ending=ending) for at in places]
            if told.mask_classes:
                save_side_by_side(list(zip(names, drawn_first, strict=True)), grid)
            else:
                save_grid(drawn_first[0], grid)
            if film:
                frames = [space.pictures(told.parted(x)[0]) for x in film.frames]
                save_film(frames, args.out / "film.png")
    accelerator.print(f"written: {grid} and one file per image")
    accelerator.end_training()


if __name__ == "__main__":
    with user_errors():
        main()

"""Draw images from a trained denoiser: `python scripts/sample.py --steps 1000`."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from ddpm_unet.cli import ArgumentParser, whole
from ddpm_unet.commands.shared import (
    add_common,
    at_speed_of_job,
    go_on,
    model_or_newest,
    weights_of,
)
from ddpm_unet.diffusion.samplers import described

SETTINGS = "settings.json"
NUMBERED = re.compile(r"[0-9]{5,}(-[0-9]{5,})?\.[a-z.]+")
"""The names of generated images."""
USUAL_STEPS = {"ddpm": 1000, "dpm++": 20, "unipc": 20, "heun": 20}
"""Without --steps, by sampler; 50 of the others. docs/samplers.md has what they are worth."""


def parse(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--steps", type=int, help="denoising steps (default: 20 of dpm++ for a model of ddpm)")
    named = "ddpm, ddim, ... (with --steps: that of the model's folder); no name: list them"
    add("--sampler", nargs="?", const="list", help=named)
    add("--num_images", type=int, default=16, help="images to draw (default 16)")
    add("--batch_size", type=int, default=16, help="images per process and batch (default 16)")
    add("--size", type=int, nargs="+", help="height and width, pixels (default: as trained)")
    add("--class", dest="label", help="class of all images, by number or name (default: in turn)")
    add("--context", type=Path, nargs="+", help="sequences to attend to, .npy or .safetensors")
    add("--prompt", nargs="+", help="captions, for a model that was trained with a text encoder")
    add("--condition", type=Path, nargs="+", help="images to condition on, or a folder of them")
    add("--guidance", type=float, help="scale of guidance; 1: none, default: the model's own")
    add("--guidance_interval", type=float, nargs=2, metavar=("LO", "HI"), help="timesteps guided")
    add("--guide", type=Path, help="a checkpoint or model that guides (autoguidance)")
    add("--lora", type=Path, help="LoRA file, or a folder with one, that changes the model")
    add("--lora_scale", type=float, default=1.0, help="factor of its changes (default 1)")
    add("--init_image", type=Path, help="image to noise and go on from, or to fill by --mask")
    add("--strength", type=float, help="share of the steps taken from --init_image (default 0.5)")
    add("--mask", type=Path, help="paint --init_image anew where this image is white")
    add("--resamplings", type=whole(1, 1000), default=5, help="passes over each step with --mask")
    add("--interpolate", type=Path, nargs=2, metavar="IMAGE", help="images from one to another")
    add("--tile", type=whole(8, 10**6), help="side of the windows of larger images")
    add("--periodic", action="store_true", help="with --tile: images that tile the plane")
    add("--seed", type=int, default=0, help="image i is a function of (seed, i)")
    add("--film", type=whole(0, 1000), default=0, help="also a film strip of so many moments")
    add("--nifti", action="store_true", help="write volumes as .nii.gz, not as TIFF stacks")
    add("--npz", action="store_true", help="write a .npz of arr_0 [N, H, W, C] per batch instead")
    add_common(parser, "generated")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw images."""
    args = parse(arguments)
    if args.sampler in ("list", "help"):
        print(described())
        return

    from ddpm_unet.diffusion.sampling import Trajectory
    from ddpm_unet.evaluation.plots import save_film
    from ddpm_unet.inference.conditioning import read_concat_cond, read_context
    from ddpm_unet.inference.denoiser import Denoiser, check_edit
    from ddpm_unet.inference.readers import read_hole, read_images
    from ddpm_unet.inference.writers import output_folder
    from ddpm_unet.training.distributed import open_processes

    check_edit(args.init_image, args.strength, args.mask, args.interpolate, args.num_images)
    folder = model_or_newest(args.model)
    accelerator = open_processes()
    changes = {"lora": args.lora, "lora_scale": args.lora_scale, "guide": args.guide}
    denoiser = Denoiser.from_pretrained(folder, **changes).to(accelerator.device)
    conditioning, config = denoiser.conditioning, denoiser.unet.config
    concat_cond = read_concat_cond(conditioning, args.condition, config.dims, args.size)
    sampler = choose_sampler(args, denoiser)
    begin = [*(args.interpolate or ()), *([args.init_image] if args.init_image else [])]
    images = read_images(begin, denoiser.preprocessing, args.size) if begin else None
    hole = None if images is None or not args.mask else read_hole(args.mask, images.shape[2:])
    film = Trajectory(args.film) if args.film > 0 else None
    shard = (accelerator.process_index, accelerator.num_processes)
    with at_speed_of_job(denoiser, accelerator, args) as denoiser.graph:
        kept: set[int] = set()
        job = denoiser.job(
            args.num_images, steps=args.steps, sampler=sampler, seed=args.seed,
            batch_size=args.batch_size, size=args.size, class_labels=args.label,
            context=read_context(conditioning, config, args.context, args.prompt),
            concat_cond=concat_cond, guidance=args.guidance,
            guidance_interval=args.guidance_interval,
            init_image=None if args.interpolate else images, strength=args.strength, mask=hole,
            resamplings=args.resamplings, interpolate=images if args.interpolate else None,
            tile=args.tile, periodic=args.periodic, shard=shard, skip=kept,
            progress=accelerator.is_main_process, callback=film,
        )  # fmt: skip
        shape = job.image_shape
        out = Output(args, denoiser, folder)
        with output_folder(args.out):
            kept |= out.kept(accelerator)
            scale = conditioning.guidance if args.guidance is None else args.guidance
            accelerator.print(
                f"{args.num_images} images of {'x'.join(map(str, shape))}{out.with_masks} from "
                f"{folder}, {args.steps} {sampler.name} steps, {shard[1]} process(es)"
                + (f", guidance {scale:g}" if scale else "")
                + (f", {len(kept)} of them there already" if kept else "")
            )
            for indices, drawn, masks in job:
                out.write(indices, drawn, masks)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                out.grid()
                if film:
                    frames = [denoiser.decode(conditioning.split(x)[0]) for x in film.images]
                    save_film(frames, args.out / "film.png")
    accelerator.print(f"written: {args.out / 'grid.png'} and {out.what}")
    accelerator.end_training()


def choose_sampler(args: Namespace, denoiser: Any) -> Any:
    """The sampler; sets args.steps, and args.sampler if it is another.

    With neither of the two given, 20 steps of DPM-Solver++ take the place of 1000 of DDPM, whose
    images are no better (docs/samplers.md), but not where an image is edited.
    """
    sampler = denoiser.sampler_of(args.sampler)
    if args.steps is None:
        edited = args.init_image or args.interpolate
        if sampler.name == "ddpm" and not args.sampler and not edited:
            args.sampler = "dpm++"
            sampler = denoiser.sampler_of(args.sampler)
        args.steps = USUAL_STEPS.get(sampler.name, 50)
    return sampler


class Output:
    """The files of a job in a folder; `model` is that of the denoiser."""

    def __init__(self, args: Namespace, denoiser: Any, model: Path) -> None:
        from ddpm_unet.inference.writers import image_ending
        from ddpm_unet.models.lora import FILE

        self.folder, self.count, self.batch = args.out, args.num_images, args.batch_size
        self.denoiser, self.npz = denoiser, args.npz
        self.classes = denoiser.conditioning.mask_classes
        self.with_masks = f" with masks of {self.classes} classes" if self.classes else ""
        self.places = [args.out / n for n in (("images", "masks") if self.classes else ("",))]
        self.dims, channels = denoiser.unet.config.dims, denoiser.image_channels
        self.ending = image_ending(
            self.dims, channels, denoiser.preprocessing.made_dtype, args.nifti
        )
        self.what = "one .npz per batch" if self.npz else "one file per image"
        free = ("out", "film", "compile", *["num_images"] * (not self.npz))
        self.made_by = {k: str(v) for k, v in vars(args).items() if k not in free}
        self.made_by["weights"] = weights_of(model)
        if args.lora:
            self.made_by["lora"] = weights_of(args.lora / FILE if args.lora.is_dir() else args.lora)

    def path(self, place: Path, index: int) -> Path:
        """The file of an image."""
        if self.npz:
            first = index // self.batch * self.batch
            last = min(first + self.batch, self.count) - 1
            return place / f"{first:05d}-{last:05d}.npz"
        return place / f"{index:05d}{self.ending}"

    def kept(self, accelerator: Any) -> set[int]:
        """Images of a job of the same settings that was stopped; those of others are removed."""
        every = [[self.path(place, i) for place in self.places] for i in range(self.count)]
        for place in self.places:
            place.mkdir(exist_ok=True)
        note = self.folder / SETTINGS
        names = (path for place in self.places for path in place.iterdir())
        earlier = [path for path in names if note.is_file() and NUMBERED.fullmatch(path.name)]
        go_on(note, self.made_by, lambda: chain(earlier, *every), accelerator)
        kept = {i for i, files in enumerate(every) if all(file.is_file() for file in files)}
        accelerator.wait_for_everyone()
        return kept

    def write(self, indices: Sequence[int], images: Any, masks: Any) -> None:
        """Write the images of a batch."""
        import numpy as np

        from ddpm_unet.files import finished
        from ddpm_unet.inference.writers import save_masks, write_image

        pixels = self.denoiser.to_pixels(images)
        masks = None if masks is None else masks.cpu().numpy()
        if self.npz:
            for place, arrays in zip(self.places, (pixels, masks), strict=False):
                with finished(self.path(place, indices[0])) as part, open(part, "wb") as file:
                    np.savez_compressed(file, arr_0=np.asarray(arrays))
            return
        if masks is not None:
            files = [self.path(self.places[1], index) for index in indices]
            save_masks(masks, self.classes, files)
        spacing = self.denoiser.preprocessing.made_spacing
        for index, array in zip(indices, pixels, strict=True):
            write_image(self.path(self.places[0], index), array, spacing)

    def grid(self) -> None:
        """grid.png of the first images, read back from their files."""
        import numpy as np
        import torch

        from ddpm_unet.data.reading import read_image
        from ddpm_unet.evaluation.plots import save_grid, save_side_by_side
        from ddpm_unet.inference.overlay import displayable

        def first(place: Path) -> torch.Tensor:
            shown = []
            for index in range(min(self.count, 64)):
                path = self.path(place, index)
                packed = self.npz and np.load(path)["arr_0"][index % self.batch]
                array = packed if self.npz else read_image(path, self.dims)
                shown.append(displayable(array))
            return torch.from_numpy(np.stack(shown)).movedim(-1, 1) / 127.5 - 1

        shown = [first(place) for place in self.places]
        if self.classes:
            titles = [place.name for place in self.places]
            save_side_by_side(list(zip(titles, shown, strict=True)), self.folder / "grid.png")
        else:
            save_grid(shown[0], self.folder / "grid.png")

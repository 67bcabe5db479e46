"""Measure how like real images generated ones are: `python scripts/evaluate.py --steps 50`.

    python scripts/evaluate.py --model runs/mine/model --sampler ddim --steps 50 --num_images 256
    python scripts/evaluate.py ours=generated theirs=other/images --reference real/images

Images are drawn from a model, in memory and over all processes of `accelerate launch`, or read
from folders. Each set is compared with real images, and so are as many other real images: what is
left between two sets of real ones is the best that a model can reach. A model's real images are
those of its training, as the config.yaml beside its folder says; --config and every dotted flag of
train_ddpm.py (--data.source DIR) change them. A job that was stopped goes on when it is started
again. Written: scores.json and page.png.
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm_unet.cli import ArgumentParser, whole
from ddpm_unet.commands.shared import (
    add_common,
    at_speed_of_job,
    go_on,
    model_or_newest,
    training_settings,
    weights_of,
)
from ddpm_unet.config import DenoiseConfig
from ddpm_unet.errors import UserError

SHOWN = 36
PART_OF_A_JOB = ("batch_size", "seed", "steps", "sampler", "guidance", "extractor", "precision")


def parse(arguments: Sequence[str] | None) -> tuple[Namespace, list[str]]:
    parser = ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("folders", nargs="*", help="name=folder of generated images, instead of a model's")
    add("--reference", type=Path, help="folder of real images (default: the model's training data)")
    add("--held_out", action="store_true", help="real images that training did not see")
    add("--num_images", type=whole(8), default=256, help="images of each set (default 256)")
    add("--steps", type=whole(1), default=250, help="denoising steps (default 250)")
    add("--sampler", help="ddpm, ddim, dpm++, ... (default: the one that the model's folder names)")
    add("--guidance", type=float, help="scale of guidance; 1: none, default: the model's own")
    add("--guide", type=Path, help="a checkpoint or model that guides (autoguidance)")
    add("--extractor", default="efficientnet-lite0", help="or inception, of the published FID")
    add("--batch_size", type=whole(1), default=32, help="images per process and batch (default 32)")
    add("--seed", type=int, default=0, help="image i is a function of (seed, i)")
    add_common(parser, "evaluation")
    return parser.parse_known_args(arguments)


def read_folder(folder: Path, sets: int, count: int) -> Any:
    """The first images of a folder, of as many sets as there are to be, `uint8 [N, C, H, W]`."""
    import numpy as np
    import torch

    from ddpm_unet.data.folder import list_images
    from ddpm_unet.data.reading import read_image

    files = list_images(folder)[0]
    if len(files) < sets * count:
        raise UserError(
            f"{folder}: has {len(files)} images; give --num_images {len(files) // sets}"
        )
    arrays = [read_image(folder / file) for file in files[: sets * count]]
    for file, array in zip(files, arrays, strict=False):
        if array.shape != arrays[0].shape or array.dtype != np.uint8:
            raise UserError(f"{folder / file}: is no 8-bit image of the size of {files[0]}")
    return torch.from_numpy(np.stack(arrays)).movedim(-1, 1)


def read_real(args: Namespace, others: list[str], model: Path | None) -> Any:
    """Real images for two sets, as training sees them, `uint8 [2 N, C, H, W]`."""
    from ddpm_unet.data import sources
    from ddpm_unet.data.stream import to_bytes, to_model_range

    if args.reference:
        return read_folder(args.reference, 2, args.num_images)
    data, count = training_settings(DenoiseConfig, model, others).data, 2 * args.num_images
    found: Any = sources.held_out(data) if args.held_out else sources.open_stream(data, seed=0)
    if args.held_out and (found is None or len(found) < count):
        raise UserError(
            f"data.source {data.source}: holds {len(found or [])} images out, and {count} are "
            "wanted; give a lower --num_images"
        )
    return to_bytes(to_model_range(found.__getitems__(range(count))["image"]))


def check(name: object, shape: Any, real: Any) -> None:
    """Refuse images of another shape (C, H, W) than the real ones."""
    if tuple(shape) != tuple(real.shape[1:]):
        raise UserError(
            f"{name}: images of {tuple(shape)}, but the real ones are of {tuple(real.shape[1:])}; "
            "give a --reference or --data settings that fit"
        )


def draw(
    args: Namespace, denoiser: Any, folder: Path, real: Any, extractor: Any, accelerator: Any
) -> tuple[Any, Any, float]:
    """Draw the model's images and describe them.

    Returns:
        The description, the first images, and the seconds an image took on one process: of the
        processor's time where it drew, so that other work beside it does not count.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from ddpm_unet.data.stream import to_bytes
    from ddpm_unet.evaluation.fidelity import Description, describe
    from ddpm_unet.files import finished

    parts = args.out / "parts"
    numbers, size = range(args.num_images), args.batch_size
    batches = [numbers[start : start + size] for start in numbers[::size]]
    files = {b.start: parts / f"{b.start:06d}-{b.stop:06d}.safetensors" for b in batches}
    kept: set[int] = set()
    job = denoiser.job(
        args.num_images, steps=args.steps, sampler=args.sampler, seed=args.seed,
        batch_size=args.batch_size, guidance=args.guidance, skip=kept,
        shard=(accelerator.process_index, accelerator.num_processes),
        progress=accelerator.is_main_process,
    )  # fmt: skip
    check(folder, (denoiser.image_channels, *job.image_shape[1:]), real)
    settings = {name: getattr(args, name) for name in PART_OF_A_JOB}
    settings["format"] = 2  # of the parts
    settings["model"] = weights_of(folder)
    settings["guide"] = args.guide and weights_of(args.guide)
    go_on(parts / "job.json", settings, lambda: parts.glob("*.safetensors"), accelerator)
    kept |= {index for batch in batches if files[batch.start].exists() for index in batch}
    accelerator.wait_for_everyone()
    clock = time.process_time if accelerator.device.type == "cpu" else time.perf_counter
    begun = clock()
    for indices, drawn, _ in job:
        images = to_bytes(drawn.float().cpu())
        seconds = torch.tensor([clock() - begun])
        shown = images[: max(0, SHOWN - indices[0])].contiguous()
        with torch.autocast(accelerator.device.type, enabled=False):
            described = describe(images, extractor).tensors()
        with finished(files[indices[0]]) as part:
            save_file({**described, "images": shown, "seconds": seconds}, part)
        accelerator.print(f"{indices[-1] + 1} of {args.num_images} images drawn")
        begun = clock()
    accelerator.wait_for_everyone()
    tables = [load_file(file) for file in files.values()]
    shown = torch.cat([table.pop("images") for table in tables])
    seconds = sum(float(table.pop("seconds")) for table in tables) / args.num_images
    return Description.join(Description(**table) for table in tables), shown, seconds


def main(arguments: Sequence[str] | None = None) -> None:
    args, others = parse(arguments)

    from ddpm_unet.data.stream import to_model_range
    from ddpm_unet.evaluation.extractors import load_extractor
    from ddpm_unet.evaluation.fidelity import describe, evaluate, plot_fidelity, table
    from ddpm_unet.inference.denoiser import Denoiser
    from ddpm_unet.inference.writers import output_folder
    from ddpm_unet.training.distributed import open_processes

    accelerator = open_processes()
    extractor = load_extractor(args.extractor).to(accelerator.device)
    with output_folder(args.out):
        folder = args.model
        if not folder and not args.folders:
            folder = model_or_newest(None)
        real = read_real(args, others, folder)
        sets, shown, timing = {}, {}, {}
        for entry in args.folders:
            name, _, made = entry.partition("=")
            if not made or not Path(made).is_dir():
                raise UserError(f"{entry}: give name=folder, one of generated images")
            images = read_folder(Path(made), 1, args.num_images)
            check(name, images.shape[1:], real)
            sets[name], shown[name] = describe(images, extractor), images[:SHOWN]
        if folder:
            denoiser = Denoiser.from_pretrained(folder, guide=args.guide).to(accelerator.device)
            with at_speed_of_job(denoiser, accelerator, args) as denoiser.graph:
                job = (args, denoiser, folder, real, extractor, accelerator)
                sets["drawn"], shown["drawn"], timing["seconds_per_image"] = draw(*job)
        if not accelerator.is_main_process:
            return
        reference, other = (describe(part, extractor) for part in (real[::2], real[1::2]))
        scores = evaluate(sets, reference, other)
        shown = {"reference": real[::2][:SHOWN], **shown}
        columns = {name: to_model_range(images) for name, images in shown.items()}
        described = {"reference": reference, "real": other, **sets}
        plot_fidelity(scores, described, columns, args.out / "page.png")
        made_by = {"num_images": args.num_images, "extractor": args.extractor, **timing}
        (args.out / "scores.json").write_text(json.dumps({**made_by, "scores": scores}, indent=1))
    print(f"{table(scores)}\nwritten: {args.out}")
    accelerator.end_training()

"""Bits per dimension of held-out images under a denoiser: `python scripts/likelihood.py`.

Under `accelerate launch` several processes share the images; the result is the same.
The data are those of the model's training, as the config.yaml beside its folder says; --config and
every dotted flag of train_ddpm.py (--data.source DIR) change them.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any

from ddpm_unet.cli import ArgumentParser, whole
from ddpm_unet.commands.shared import add_common, at_speed, model_or_newest, training_settings
from ddpm_unet.config import DenoiseConfig
from ddpm_unet.errors import UserError


def parse(arguments: Sequence[str] | None) -> tuple[Namespace, list[str]]:
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--images", type=whole(2), default=64, help="images, at most (default 64)")
    add("--parts", type=whole(2), default=40, help="timesteps asked of each image (default 40)")
    add("--all", action="store_true", help="windows of all images, not of those held out")
    add("--batch_size", type=whole(1), default=16, help="images at a time (default 16)")
    add_common(parser, "likelihood")
    return parser.parse_known_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args, others = parse(arguments)

    import torch
    from tqdm import tqdm

    from ddpm_unet.data.stream import Grid, to_model_range
    from ddpm_unet.diffusion.conditioning import concat_cond
    from ddpm_unet.diffusion.process import GaussianDiffusion
    from ddpm_unet.evaluation.likelihood import measure, plot_likelihood
    from ddpm_unet.inference.conditioning import Conditioning
    from ddpm_unet.inference.pipeline import image_shape, read_pipeline
    from ddpm_unet.inference.writers import output_folder
    from ddpm_unet.training.denoise import DenoiseJob
    from ddpm_unet.training.distributed import merge_rows, open_processes
    from ddpm_unet.training.from_config import build_denoise_job

    folder = model_or_newest(args.model)
    unet, diffusion = read_pipeline(folder)
    settings = training_settings(DenoiseConfig, folder, others)
    job: DenoiseJob = build_denoise_job(settings)
    if not isinstance(diffusion, GaussianDiffusion):
        raise UserError(f"{folder}: its process has no variational bound; take one of process ddpm")
    own = Conditioning.read(folder)
    own.check(unet.config, folder)
    if own.self_conditioning or job.latent:
        what = "takes its own estimate" if own.self_conditioning else "denoises latents"
        raise UserError(f"{folder}: {what}, so that it gives images no likelihood; take another")
    channels = image_shape(unet.config, [settings.data.size], own.image_channels)[0]
    images = job.windows.images
    if channels != images.layout.channels:
        raise UserError(
            f"data.source: has images of {images.layout.channels} channels, {folder} is of "
            f"{channels}; set data.channels"
        )
    windows = Grid(images) if args.all else job.held_out
    if not isinstance(windows, Grid):
        raise UserError(f"data.source {settings.data.source}: holds no image out; give --all")
    accelerator = open_processes()
    device, main_one = accelerator.device, accelerator.is_main_process
    count = min(args.images, len(windows))
    numbers, size = range(count), args.batch_size
    batched = [numbers[start : start + size] for start in numbers[::size]]
    mine = batched[accelerator.process_index :: accelerator.num_processes]

    def batches() -> Iterator[tuple[range, torch.Tensor, Any]]:
        for positions in tqdm(mine, "Likelihood", disable=not main_one):
            batch = {k: v.to(device) for k, v in windows.__getitems__(positions).items()}
            images = own.with_masks(to_model_range(batch["image"]), batch.get("condition"))
            cond = job.cond(batch, images, positions, seed=0)
            yield positions, images, partial(concat_cond(network), **cond)

    def merge(rows: torch.Tensor) -> torch.Tensor:
        return merge_rows(rows, list(chain(*mine)), count, accelerator)

    with output_folder(args.out), at_speed(unet.to(device), device, args) as graph:
        network = graph(unet) if graph else unet
        found = measure(batches(), diffusion, args.parts, merge=merge)
        if main_one:
            (args.out / "likelihood.json").write_text(json.dumps(asdict(found), indent=1))
            plot_likelihood(found, args.out / "likelihood.png")
    accelerator.print(
        f"{found.bits:.3f} +- {found.standard_error:.3f} bits per dimension of "
        f"{found.images} images, {diffusion.variance_type} variances: L_0 {found.last:.3f}, "
        f"steps {found.steps:.3f}, L_T {found.prior:.2g}\nwritten: {args.out}"
    )
    accelerator.end_training()

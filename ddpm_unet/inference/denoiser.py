"""A trained denoiser with its forward process and sampler, and images drawn from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_unet.data.conditioning import Sequences
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.diffusion.conditioning import (
    ALWAYS,
    autoguidance,
    classifier_free_guidance,
    concat_cond,
)
from ddpm_unet.diffusion.editing import Inversion, inpaint, slerp, tiled
from ddpm_unet.diffusion.edm import EDMDiffusion
from ddpm_unet.diffusion.process import Diffusion
from ddpm_unet.diffusion.samplers import Sampler, make_sampler
from ddpm_unet.diffusion.sampling import Graph, StepInfo
from ddpm_unet.diffusion.sampling import sample as sample_batch
from ddpm_unet.errors import UserError, refuse
from ddpm_unet.inference.conditioning import Cond, Conditioning, cond_in_turn
from ddpm_unet.inference.pipeline import image_shape, read_pipeline, read_sampler, write_pipeline
from ddpm_unet.models import UNet
from ddpm_unet.models.autoencoder import Autoencoder, autoencoder_of
from ddpm_unet.models.lora import load_lora
from ddpm_unet.models.precomputed import precompute_time_embeddings
from ddpm_unet.models.pretrained import check_weights, pipeline_root, read_file

CHECKPOINT, GUIDE = "ema.safetensors", "guide"
SAME_IN_A_GUIDE = (
    "in_channels", "out_channels", "dims", "num_class_embeds", "cross_attention_dim"
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """Images of `image_shape`, (C, H, W) or (C, D, H, W), to be drawn; iterating draws them.

    A batch is the indices of its images, the images `float32 [B, *image_shape]` in [-1, 1], and
    the classes of their pixels `int64 [B, *space]` where the denoiser makes masks too.
    """

    image_shape: tuple[int, ...]
    batches: Iterator[tuple[list[int], Tensor, Tensor | None]]

    def __iter__(self) -> Iterator[tuple[list[int], Tensor, Tensor | None]]:
        return self.batches


class Denoiser:
    """A U-Net, the forward process it was trained on, a sampler, and what it is conditioned on.

    Example:
        >>> from ddpm_unet import Denoiser, GaussianDiffusion, UNet
        >>> unet = UNet(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,),
        ...             layers_per_block=1, norm_num_groups=4)
        >>> denoiser = Denoiser(unet, GaussianDiffusion(num_timesteps=10))
        >>> denoiser.sample(2, steps=4, sampler="ddim", seed=0).shape
        (2, 8, 8, 1)

    Args:
        unet: The network.
        diffusion: The forward process.
        sampler: A name ("ddpm", "ddim", "dpm++", ...), a function, or an object with diffusers'
            `step`; None for "ddpm", of EDM "heun".
        conditioning: What it is conditioned on; None for what the network's config says.
        codec: Between images and the latents that it denoises; None for a denoiser of pixels.
        preprocessing: Of its training's images, in whose units samples are given; None for 8 bits.

    Attributes:
        guide: A weaker denoiser that guides it where no other is given (see `job`), or None; in the
            folder of a model it is the model `guide`, and its scale `conditioning.guidance`.
    """

    def __init__(
        self,
        unet: UNet,
        diffusion: Diffusion,
        sampler: Any = None,
        conditioning: Conditioning | None = None,
        codec: Autoencoder | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        self.unet, self.diffusion, self.sampler = unet, diffusion, sampler
        self.conditioning = conditioning or Conditioning()
        self.codec = codec
        self.preprocessing = preprocessing or Preprocessing(self.image_channels)
        self.guide: UNet | None = None
        self.network: Callable[..., Tensor] | None = None
        """Computes in place of the U-Net."""
        self.graph: Graph | None = None
        """Makes one graph of an evaluation, such as `torch.compile`; see `diffusion.sampling`."""
        self._folder: Path | None = None  # whose scheduler names the sampler, read when it is used

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        *,
        lora: str | PathLike[str] | None = None,
        lora_scale: float = 1.0,
        guide: str | PathLike[str] | None = None,
        guidance: float | None = None,
    ) -> Denoiser:
        """Read the folder of a run's model or of a diffusers pipeline.

        Args:
            folder: The folder.
            lora: A file of low-rank changes, or a folder with one; see `load_lora`.
            lora_scale: Their factor.
            guide: The folder of its guide, see `read_guide`; None for the one that it has.
            guidance: The scale of guidance that it draws with; None for the one that it has.

        Raises:
            UserError: Something is missing or not supported; names it.
        """
        folder = Path(folder)
        unet, diffusion = read_pipeline(folder)
        if lora is not None:
            load_lora(unet, lora, lora_scale)
        conditioning = Conditioning.read(folder)
        conditioning.check(unet.config, folder)
        denoiser = cls(unet, diffusion, None, conditioning, autoencoder_of(folder))
        root = pipeline_root(folder)
        denoiser.preprocessing = Preprocessing.read(root, denoiser.image_channels)
        denoiser._folder = folder
        if guide or (root / GUIDE).is_dir():
            denoiser.guide = read_guide(guide or root / GUIDE, denoiser)
        if guidance is not None:
            denoiser.conditioning = replace(conditioning, guidance=guidance)
        return denoiser

    def save_pretrained(
        self, folder: str | PathLike[str], state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Write a folder that `from_pretrained` and diffusers' pipelines read.

        `state_dict` are other weights of the U-Net, such as an average.
        """
        write_pipeline(Path(folder), self.unet, self.diffusion, state_dict, self.codec)
        if self.conditioning != Conditioning(self.conditioning.image_channels):
            self.conditioning.write(Path(folder))
        if self.preprocessing != Preprocessing(self.image_channels):
            self.preprocessing.write(Path(folder))
        if self.guide is not None:
            guide = Denoiser(self.guide, self.diffusion, None, self.conditioning)
            guide.conditioning = replace(self.conditioning, guidance=None)
            guide.save_pretrained(Path(folder) / GUIDE)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.unet.conv_in.weight.device

    def to(self, device: torch.device | str) -> Denoiser:
        """Move it to a device; returns itself."""
        self.unet.to(device)
        if self.codec:
            self.codec.to(device)
        return self

    def sampler_of(self, sampler: Any = None) -> Sampler:
        """The given sampler, by its name for instance, else the denoiser's own.

        Raises:
            UserError: An unknown name, or one that draws wrong images of such a denoiser.
        """
        chosen = sampler or self.sampler or (self._folder and read_sampler(self._folder))
        usual = "heun" if isinstance(self.diffusion, EDMDiffusion) else "ddpm"
        return make_sampler(chosen or usual, self.diffusion)

    def sample(self, num_images: int = 1, **options: Any) -> np.ndarray:
        """Draw images; image i is a function of (seed, i), whatever batch it is drawn in.

        Args:
            num_images: Images to draw.
            options: And errors: see `job`.

        Returns:
            `uint8 [num_images, H, W, C]`, volumes `[num_images, D, H, W, C]`; of the type and in
            the units of the training's images where `preprocessing` knows them.
        """
        batches = (images for _, images, _ in self.job(num_images, **options))
        return np.concatenate([self.to_pixels(images) for images in batches])

    def job(
        self,
        num_images: int,
        *,
        steps: int = 1000,
        sampler: Any = None,
        seed: int = 0,
        batch_size: int = 16,
        size: int | Sequence[int] | None = None,
        class_labels: str | int | Sequence[str | int] | None = None,
        context: Sequences | None = None,
        concat_cond: Tensor | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guide: UNet | None = None,
        init_image: Tensor | None = None,
        strength: float | None = None,
        mask: Tensor | None = None,
        resamplings: int = 5,
        interpolate: Tensor | None = None,
        tile: int | None = None,
        periodic: bool = False,
        shard: tuple[int, int] = (0, 1),
        skip: Container[int] = (),
        progress: bool = False,
        callback: Callable[[StepInfo], None] | None = None,
    ) -> Job:
        """Check what is asked for, and give what draws it.

        Batches are cut from the whole job before they are dealt to processes, so an image meets
        the same neighbours, and comes out bit for bit the same, on any number of processes.

        Args:
            num_images: Images in all.
            steps: Denoising steps.
            sampler: As of the class; None for the denoiser's own.
            seed: Seed of the job.
            batch_size: Images at a time.
            size: Side or sides of the images, pixels; None for those of the training.
            class_labels: A class for all images, or several in turn, by number or name; None for
                all in turn.
            context: Sequences to attend to, in turn.
            concat_cond: Images to concatenate, `[N, K, *space]`, in turn.
            guidance: Scale of guidance; above 1 it moves away from the guide; 1 is without. None
                for the denoiser's own.
            guidance_interval: Lowest and highest guided timestep (Kynkaanniemi 2024).
            guide: A weaker denoiser (autoguidance, Karras 2024); None for the denoiser's own, and
                without one for the unconditional prediction (classifier-free guidance, Ho 2022).
            init_image: Image `[1, C, H, W]` in [-1, 1] that is noised and gone on from.
            strength: Share of the steps taken from it; None for half of them.
            mask: `bool [1, 1, H, W]`, where init_image is to be painted anew, from noise.
            resamplings: With a mask, passes over each step (Lugmayr 2022).
            interpolate: Two images `[2, C, H, W]` to go between.
            tile: Side of the windows in which images larger than the training's are denoised.
            periodic: With tile: images that tile the plane.
            shard: This process and their number.
            skip: Indices of images that are there; a batch of them alone is left out.
            progress: Show a progress bar per batch.
            callback: Called after every step of the first batch.

        Raises:
            UserError: Arguments that contradict each other or the denoiser; names the argument.
        """
        own, config, device = self.conditioning, self.unet.config, self.device
        if num_images < 1 or batch_size < 1:
            raise UserError(
                f"{num_images} images in batches of {batch_size}: give at least 1 of both"
            )
        guide = self.guide if guide is None else guide
        guidance = own.guidance if guidance is None else guidance
        check_guidance(own, guidance, guidance_interval, guide)
        check_edit(init_image, strength, mask, interpolate, num_images)
        labels = own.class_numbers(class_labels, config)
        cond = cond_in_turn(labels, context, concat_cond, device)
        chosen = self.sampler_of(sampler)
        times = torch.tensor(chosen.plan(steps).times)
        network = self.unet if self.network is None else self.network
        # Windows, holes and ways between images are no part of a graph, their network is one.
        whole = not tile and mask is None and interpolate is None
        # At scale 1 nothing asks it.
        guide = None if guide is None or guidance == 1 else guide.to(device)
        if self.graph and not whole:
            network = self.graph(network)
        elif self.graph is None:
            if network is self.unet:
                network = precompute_time_embeddings(self.unet, times)
            if guide is not None:
                guide = precompute_time_embeddings(guide, times)
        denoise = self._guided(network, guidance, guidance_interval, guide)

        wanted = [size] if isinstance(size, int) else size
        if wanted is None and concat_cond is not None:
            wanted = list(concat_cond.shape[2:])
        sides = wanted and [self._latent_side(side, "size") for side in wanted]
        shape = image_shape(config, sides, own.drawn_channels)
        start = interpolate if init_image is None else init_image
        if start is not None:
            start = self._encoded(start, shape, sized=bool(sides), holed=mask is not None)
            shape = tuple(start.shape[1:])
        if tile:
            side = self._latent_side(tile, "tile")
            if len(shape) > 3 or side > min(shape[1:]):
                why = "volumes are drawn whole" if len(shape) > 3 else "the images are smaller"
                raise UserError(f"tile {tile}: {why}; leave it out, or give another size")
            denoise = tiled(denoise, side, side // 2, periodic=periodic)
        options: dict[str, Any] = {"self_conditioning": own.self_conditioning}
        if self.graph and whole:
            options["graph"] = self.graph
        if mask is not None or interpolate is not None:
            name = "mask" if interpolate is None else "interpolate"
            if own.self_conditioning or (interpolate is not None and cond([0])):
                what = "its own estimate" if own.self_conditioning else "a cond"
                raise UserError(f"{name}: the denoiser needs {what}, which is not known here")
            assert start is not None
            options = {"draw": _interpolation(start, num_images)}
            if mask is not None:
                painted: dict[str, Any] = {"known": start[0], "hole": mask[0]}
                painted["resamplings"] = resamplings
                options = {"draw": partial(inpaint, **painted)}
        elif start is not None:
            options |= {"start": start, "strength": 0.5 if strength is None else strength}
        drawn = generate(
            denoise, chosen, shape, num_images, seed=seed, steps=steps, batch_size=batch_size,
            device=device, shard=shard, skip=skip, cond=cond, progress=progress,
            callback=callback, **options,
        )  # fmt: skip
        channels, *space = shape
        if self.codec:
            channels, space = self.codec.channels, [self.codec.factor * n for n in space]
        finished = (
            (indices, self.decode(images), masks)
            for indices, (images, masks) in ((i, own.split(x)) for i, x in drawn)
        )
        return Job((channels - own.mask_classes, *space), finished)

    @property
    def image_channels(self) -> int:
        """Channels of the images it makes."""
        if self.codec:
            return self.codec.channels
        config = self.unet.config
        return self.conditioning.image_channels or min(config.in_channels, config.out_channels)

    def to_pixels(self, images: Tensor) -> np.ndarray:
        """Images `[B, C, *space]` in [-1, 1] as pixels `[B, *space, C]` in the training's units."""
        return self.preprocessing.to_pixels(images.float().movedim(1, -1).cpu().numpy())

    def decode(self, drawn: Tensor) -> Tensor:
        """Images `[B, C, *space]` in [-1, 1] of what was drawn."""
        return self.codec.decode(drawn) if self.codec else drawn

    def _latent_side(self, side: int, name: str) -> int:
        return self.codec.latent_size(side, name) if self.codec else side

    def _guided(
        self, network: Callable[..., Tensor], scale: float | None,
        interval: tuple[float, float] | None, guide: UNet | None,
    ) -> Callable[..., Tensor]:  # fmt: skip
        denoise, interval = concat_cond(network), interval or ALWAYS
        if scale is None:
            return denoise
        if guide is not None:
            return autoguidance(denoise, concat_cond(guide), scale, interval)
        null_class = self.conditioning.null_class(self.unet.config)
        return classifier_free_guidance(denoise, scale, null_class, interval)

    def _encoded(self, images: Tensor, shape: Sequence[int], sized: bool, holed: bool) -> Tensor:
        """Images to begin with, as the denoiser draws, `[N, *shape]`."""
        if self.codec is None:
            want = tuple(shape) if sized else (shape[0], *images.shape[2:])
            if tuple(images.shape[1:]) != want:
                have, asked = (" x ".join(map(str, s)) for s in (images.shape[1:], want))
                raise UserError(f"the image to begin with is {have}, not {asked}; resize it")
            return images
        if holed:
            raise UserError(
                "mask: the model draws latents, which mix what is in the hole and around it; "
                "leave it out, or take a model of pixels"
            )
        sides = [self.codec.latent_size(side, "an image of") for side in images.shape[2:]]
        if sized and sides != list(shape[1:]):
            raise UserError(f"the image to begin with has sides {list(images.shape[2:])}, not size")
        return self.codec.encode(images.to(self.device))[0].cpu()


def sample(unet: UNet, diffusion: Diffusion, num_images: int = 1, **options: Any) -> np.ndarray:
    """Draw images from a network: `Denoiser(unet, diffusion).sample(num_images, ...)`.

    Example:
        >>> from ddpm_unet import GaussianDiffusion, UNet, sample
        >>> unet = UNet(sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8,),
        ...             layers_per_block=1, norm_num_groups=4)
        >>> images = sample(unet, GaussianDiffusion(num_timesteps=10), 2, steps=4)
        >>> images.shape, images.dtype
        ((2, 8, 8, 3), dtype('uint8'))

    Args:
        unet: The network.
        diffusion: Its forward process.
        num_images: Images to draw.
        options: See `Denoiser.job`.

    Returns:
        `uint8 [num_images, H, W, C]`.
    """
    return Denoiser(unet, diffusion).sample(num_images, **options)


def generate(
    denoiser: Callable[..., Tensor],
    sampler: Any,
    shape: Sequence[int],
    num_images: int,
    *,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    skip: Container[int] = (),
    cond: Cond = lambda indices: {},
    callback: Callable[[StepInfo], None] | None = None,
    draw: Callable[..., Tensor] = sample_batch,
    **options: Any,
) -> Iterator[tuple[list[int], Tensor]]:
    """Draw images 0 .. num_images - 1 in batches, this process those of its batches.

    Args:
        denoiser: `(x, t, **cond) -> prediction`, on the device.
        sampler: A `Sampler`.
        shape: Shape of one image, (C, H, W).
        num_images, batch_size, shard, skip, callback: As of `Denoiser.job`.
        cond: The cond of each image.
        draw: What draws the images of a batch, with the arguments of `diffusion.sampling.sample`.
        options: Further arguments of `draw`.

    Yields:
        Indices of the images, and the images `float32 [B, *shape]`.
    """
    starts = range(0, num_images, batch_size)
    for start in starts[shard[0] :: shard[1]]:
        indices = list(range(num_images)[start : start + batch_size])
        if all(index in skip for index in indices):
            continue
        made = indices
        if options.get("graph") and start:  # a last batch that is full needs no graph of its own
            made = list(range(start, start + batch_size))
        bound = partial(denoiser, **cond(made))
        images = draw(bound, sampler, shape, indices=made, callback=callback, **options)
        yield indices, images[: len(indices)]
        callback = None


def generate_together(
    denoiser: Callable[..., Tensor],
    sampler: Any,
    shape: Sequence[int],
    num_images: int,
    *,
    accelerator: Accelerator,
    cond: Cond = lambda indices: {},
    **options: Any,
) -> Tensor:
    """Draw images with all processes at once and give them to all, `[num_images, *shape]`.

    Every process draws equally many (a few are thrown away), so that none waits for another,
    even where the denoiser itself is split over the processes. Arguments as in `generate`.
    """
    each = math.ceil(num_images / accelerator.num_processes)
    first = accelerator.process_index * each
    indices = range(first, first + each)
    bound = partial(denoiser, **cond(indices))
    images = sample_batch(
        bound, sampler, shape, indices=indices, device=accelerator.device, **options
    )
    gathered: Any = accelerator.gather(images)
    return torch.as_tensor(gathered)[:num_images]


def check_guidance(
    conditioning: Conditioning, guidance: float | None,
    guidance_interval: tuple[float, float] | None, guide: Any,
) -> None:  # fmt: skip
    """Refuse guidance without a guide, and the reverse.

    Raises:
        UserError: Names the argument.
    """
    low, high = guidance_interval or ALWAYS
    alone = "does nothing without guidance, its scale; give both"
    refuse({
        f"guide: {alone}": guidance is None and guide is not None,
        f"guidance_interval: {alone}": guidance is None and guidance_interval,
        "guidance: the model was trained without condition dropout, so classifier-free guidance "
        "has no unconditional prediction; train with condition_dropout, or give an earlier "
        "checkpoint of its run as guide":
            guidance not in (None, 1) and guide is None and not conditioning.cond_dropout,
        f"guidance {guidance}: give a finite number": not math.isfinite(guidance or 0),
        f"guidance_interval {low:g} {high:g}: give the lower timestep first": not low <= high,
    })  # fmt: skip


def check_edit(
    init_image: Any, strength: float | None, mask: Any, interpolate: Any, num_images: int
) -> None:
    """Refuse ways to begin that contradict each other; each may be an image or its path.

    Raises:
        UserError: Names the argument.
    """
    begun, holed = init_image is not None, mask is not None
    strong, between = strength is not None, interpolate is not None
    refuse({
        "mask: needs an image to begin with; give init_image too": holed and not begun,
        "strength: needs an image to begin with; give init_image too": strong and not begun,
        "strength: a hole is painted from noise; leave strength or mask out": holed and strong,
        "interpolate: goes between its own images; leave init_image out": between and begun,
        f"num_images {num_images}: the two ends are among them; give 2 or more":
            between and num_images < 2,
    })  # fmt: skip


def read_guide(folder: str | PathLike[str], denoiser: Denoiser) -> UNet:
    """The network that guides a denoiser.

    Args:
        folder: A checkpoint of the same run, whose averaged weights are taken, or the folder of a
            model of the same conditioning, prediction and forward process, of any size.
        denoiser: The one to be guided.

    Raises:
        UserError: Names what is missing or differs.
    """
    folder, unet = Path(folder), denoiser.unet
    if (folder / CHECKPOINT).is_file():
        weights = read_file(folder / CHECKPOINT)
        with torch.device("meta"):
            guide = UNet(unet.config)
        check_weights(
            folder, guide.state_dict(), weights, "take a checkpoint of the model's own run"
        )
        guide.load_state_dict(weights, assign=True)
        return guide.eval()
    guide, process = read_pipeline(folder)
    own, others = asdict(guide.config), asdict(unet.config)
    trained = denoiser.diffusion.config
    conditioning = replace(denoiser.conditioning, guidance=None)
    differing = [
        *(name for name in SAME_IN_A_GUIDE if own[name] != others[name]),
        *(name for name, value in process.config.items() if value != trained[name]),
        *(["its conditioning"] if Conditioning.read(folder) != conditioning else []),
    ]
    if differing:
        raise UserError(
            f"{folder}: differs from the model in {differing[0]}; a guide must have the same "
            "conditioning, prediction and noise"
        )
    return guide


def _interpolation(ends: Tensor, num_images: int) -> Callable[..., Tensor]:
    """What draws images evenly spaced between two, by DDIM, along the arc between their noises."""
    inverted: list[Tensor] = []

    def draw(
        denoiser: Any, sampler: Any, shape: Sequence[int], *, indices: Sequence[int], steps: int,
        device: torch.device, progress: bool = False, **unused: Any,
    ) -> Tensor:  # fmt: skip
        path = Inversion(denoiser, sampler.diffusion, steps, device)
        if not inverted:
            inverted.extend(path.to_noise(ends, progress=progress))
            if progress:
                again = path.to_images(torch.stack(inverted)).cpu()
                error = (again - ends).square().mean().sqrt()
                tqdm.write(f"inverted and back: off by {error / 2:.2%} of the range, rms")
        shares = [i / (num_images - 1) for i in indices]
        return path.to_images(slerp(inverted[0], inverted[1], shares), progress)

    return draw

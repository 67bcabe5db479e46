"""A trained denoiser as a diffusers pipeline folder.

It holds model_index.json, unet/, scheduler/scheduler_config.json, vae/ or vqvae/ (the autoencoder
of one that denoises latents), and ours alone: conditioning.json and preprocessing.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_unet.config import DiffusionConfig, UNetConfig
from ddpm_unet.config.reading import check_limits, from_plain, read_json
from ddpm_unet.diffusion.edm import EDMDiffusion, diffusion_of_scheduler
from ddpm_unet.diffusion.process import Diffusion
from ddpm_unet.diffusion.samplers import Sampler, saved_sampler
from ddpm_unet.errors import UserError
from ddpm_unet.files import replace_json
from ddpm_unet.models import UNet
from ddpm_unet.models.autoencoder import Autoencoder
from ddpm_unet.models.card import write_card_alone
from ddpm_unet.models.pretrained import pipeline_root, settings_of

_LACKING = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")
_NOT_THERE: dict[str, Any] = {name: [None, None] for name in _LACKING}
_NOT_THERE["requires_safety_checker"] = False
"""What a StableDiffusionPipeline asks for and may lack."""


def write_pipeline(
    folder: Path,
    unet: UNet,
    diffusion: Diffusion,
    state_dict: dict[str, Tensor] | None = None,
    autoencoder: Autoencoder | None = None,
    note: str = "",
) -> None:
    """Write a folder that diffusers samples from, with a model card.

    It is a DDPMPipeline; of latents an LDMPipeline, whose autoencoder it calls vqvae (and which
    knows a scaling_factor but no shift_factor), or, of a network that attends to a context, a
    StableDiffusionPipeline, read with `text_encoder` and `tokenizer` (None for both to give it
    `prompt_embeds`). Every file is replaced as a whole, so a reader never meets half a one.

    Args:
        folder: Made when missing.
        unet: Gives the architecture and, without `state_dict`, the weights.
        diffusion: Gives the scheduler.
        state_dict: Other weights, such as an average.
        autoencoder: Between images and the latents that it denoises.
        note: A sentence for the card, on where the model comes from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unet.save_pretrained(folder / "unet", state_dict=state_dict, card=False)
    replace_json(folder / "scheduler" / "scheduler_config.json", diffusion.scheduler_config())
    index: dict[str, Any] = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", settings_of(unet.config)["_class_name"]],
    }
    if autoencoder:
        place = "vae" if unet.config.conditional else "vqvae"
        autoencoder.write(folder / place)
        index |= {"_class_name": "LDMPipeline", place: ["diffusers", "AutoencoderKL"]}
        if unet.config.conditional:
            index |= {"_class_name": "StableDiffusionPipeline", **_NOT_THERE}
    replace_json(folder / "model_index.json", index)
    own = unet.config
    shape = (own.in_channels, *[own.sample_size] * own.dims)
    rows = {
        "parameters": f"{sum(p.numel() for p in unet.parameters()):,}",
        f"{'latents' if autoencoder else 'images'}, channels first": " x ".join(map(str, shape)),
        "process": type(diffusion).__name__,
        "prediction": getattr(diffusion, "prediction_type", None),
    }
    write_card_alone(folder, "denoiser", rows, note)


def read_pipeline(folder: Path) -> tuple[UNet, Diffusion]:
    """The denoiser of a pipeline folder and its forward process.

    Raises:
        UserError: Something is missing, or is not what this toolkit can use; names it.
    """
    unet, diffusion = UNet.from_pretrained(folder), read_diffusion(folder)
    outputs = unet.config.out_channels
    if diffusion.variance_type == "learned_range" and (
        outputs % 2 or outputs // 2 > unet.config.in_channels
    ):
        raise UserError(
            f"{folder}: its scheduler_config.json has variance_type learned_range, but the network "
            f"predicts {outputs} channels, so no variances; set it to fixed_small"
        )
    return unet, diffusion


def read_diffusion(folder: Path) -> Diffusion:
    """The forward process of a pipeline folder, or of the `unet` folder in one.

    Raises:
        UserError: There is none, it is unreadable, or not one that this toolkit knows.
    """
    path, settings = _read_scheduler_config(folder)
    losses = {"min_snr_gamma", "p2_gamma", "vlb_weight"}
    known = DiffusionConfig.__dataclass_fields__.keys() - losses
    values = {k: v for k, v in settings.items() if k in known and v is not None}
    if values.get("variance_type") in (None, "fixed_small_log"):  # the same by itself
        values.pop("variance_type", None)
    config = from_plain(DiffusionConfig, values, path)
    try:
        check_limits(config)
        diffusion = diffusion_of_scheduler(settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(diffusion, EDMDiffusion) and _draws_latents(path):
        diffusion.clip_sample = False
    return diffusion


def _draws_latents(scheduler_config: Path) -> bool:
    """Whether a pipeline's images are decoded from latents, which have no bounds to clip at."""
    root = scheduler_config.parents[1]
    return any((root / name).is_dir() for name in ("vae", "vqvae", "movq"))


def read_sampler(folder: Path) -> Sampler:
    """The sampler that a pipeline's folder names, with the settings that it has there.

    Raises:
        UserError: As `read_diffusion`; or it is no sampler known here.
    """
    path, settings = _read_scheduler_config(folder)
    if _draws_latents(path):
        settings = {**settings, "clip_sample": False, "thresholding": False}
    try:
        return saved_sampler(settings, read_diffusion(folder))
    except UserError as error:
        raise UserError(f"{path.parent.parent}: {error}") from error


def _read_scheduler_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = pipeline_root(folder) / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: has no scheduler/scheduler_config.json; give the model folder of a run, "
            "or a folder that a diffusers pipeline wrote"
        )
    return path, read_json(path)


def image_shape(
    config: UNetConfig, size: Sequence[int] | None = None, channels: int | None = None
) -> tuple[int, ...]:
    """Shape (C, H, W) of the images that a denoiser draws.

    Args:
        config: The network's; without `size`, gives the size it was trained at.
        size: One number for all sides, or one per side.
        channels: None for as many as the network takes or gives, whichever is less.

    Raises:
        UserError: No size is known, or it has the wrong number of sides.
    """
    chosen = size or config.sample_size
    if chosen is None:
        raise UserError("the model's config.json has no sample_size; give size")
    sides = (chosen,) if isinstance(chosen, int) else tuple(chosen)
    if len(sides) == 1:
        sides *= config.dims
    if len(sides) != config.dims or min(sides) < 1:
        raise UserError(f"size {sides}: give one positive number, or {config.dims}")
    return (channels or min(config.in_channels, config.out_channels), *sides)

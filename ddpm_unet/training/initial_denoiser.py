"""Which denoiser a segmenter starts from, where nobody names one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ddpm_unet.config import PairDataConfig, SegmentConfig
from ddpm_unet.data.pairs import complete_settings, find_pairs
from ddpm_unet.data.pixels import convert_channels
from ddpm_unet.data.settings import check_data_settings
from ddpm_unet.errors import UserError
from ddpm_unet.inference.conditioning import Conditioning
from ddpm_unet.models.autoencoder import PLACES
from ddpm_unet.models.pretrained import model_folder, read_config


def choose_denoiser(
    config: SegmentConfig, data: PairDataConfig, folders: Sequence[Path], cure: str
) -> tuple[Path, str]:
    """The first denoiser that sees what a segmenter of these images sees.

    Args:
        config: All settings.
        data: Those of the images, complete for the task.
        folders: Pipelines, best first.
        cure: What to do where none fits.

    Returns:
        Its folder, and a line that names it and says why those before it were passed over.

    Raises:
        UserError: None fits; or one cannot be read.
    """
    channels = channels_of(data)
    passed: list[str] = []
    for folder in folders:
        fault = why_not(folder, config, channels)
        if fault is None:
            over = f"; passed over: {_first(passed)}" if passed else ""
            return folder, f"starting from {folder}{over}"
        passed.append(f"{folder} ({fault})")
    if channels == 1 and not config.head.repeat_grey:
        cure = f"set head.repeat_grey true to repeat the grey channel, {cure}"
    raise UserError(f"no denoiser to start from: {_first(passed)}; {cure}")


def why_not(folder: Path, config: SegmentConfig, channels: int | None) -> str | None:
    """Why a denoiser cannot segment images of so many channels, in a few words; None if it can.

    Raises:
        UserError: The folder's settings cannot be read.
    """
    unet, told = read_config(model_folder(folder)), Conditioning.read(folder)
    if any((folder / place).is_dir() for place in PLACES):
        return "denoises latents"
    if told.mask_classes:
        return "denoises images with their masks"
    if told.concat_cond:
        return "goes by a condition beside the image"
    if told.self_conditioning:
        return "is told its own estimate"
    classes = unet.num_class_embeds or unet.class_embed_type
    if classes and config.head.class_label is None:
        return "is told classes, and head.class_label is not set"
    if unet.dims != config.data.dims:
        return f"is of {unet.dims} dimensions, data.dims is {config.data.dims}"
    taken = 1 if config.head.repeat_grey else unet.in_channels
    if channels not in (None, taken):
        return f"takes {taken} channel{'s' * (taken > 1)}, the images have {channels}"
    return None


def channels_of(data: PairDataConfig) -> int | None:
    """Channels of the first image; None if it has faults, which the check of all will name."""
    with suppress(UserError):
        check_data_settings(data)
        for pair in find_pairs(complete_settings(data)).pairs[:1]:
            return convert_channels(pair.read_image(), data.channels, pair.image_file).shape[-1]
    return None


def _first(passed: list[str], most: int = 4) -> str:
    more = f" and {len(passed) - most} more" if len(passed) > most else ""
    return ", ".join(passed[:most]) + more

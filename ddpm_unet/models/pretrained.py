"""Reading and writing the folders of diffusers' models: `config.json` and safetensors.

Plain functions of a folder, so that a caller may write beside the final place and rename.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_unet.config import UNetConfig
from ddpm_unet.config.reading import from_plain, read_json
from ddpm_unet.errors import UserError
from ddpm_unet.models.checks import CONDITIONAL_ONLY, DDPM_ONLY, check
from ddpm_unet.replace import replace_json

DDPM = "UNet2DModel"
CONDITIONAL = "UNet2DConditionModel"

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"

# What diffusers takes a key for that an older config.json lacks, where UNetConfig differs.
DEFAULTS: dict[str, dict[str, Any]] = {
    DDPM: {
        "down_block_types": ("DownBlock2D", *("AttnDownBlock2D",) * 3),
        "up_block_types": (*("AttnUpBlock2D",) * 3, "UpBlock2D"),
        "block_out_channels": (224, 448, 672, 896),
    },
    CONDITIONAL: {
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 1280,
    },
}

# Keys of diffusers with the one value that this network has.
FIXED: dict[str, dict[str, Any]] = {
    DDPM: {
        "time_embedding_type": "positional",
        "time_embedding_dim": None,
        "num_train_timesteps": None,
    },
    CONDITIONAL: {
        "time_embedding_type": "positional",
        "time_embedding_dim": None,
        "time_embedding_act_fn": None,
        "timestep_post_act": None,
        "time_cond_proj_dim": None,
        "num_attention_heads": None,
        "dual_cross_attention": False,
        "reverse_transformer_layers_per_block": None,
        "mid_block_only_cross_attention": None,
        "cross_attention_norm": None,
        "attention_type": "default",
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "addition_embed_type": None,
        "addition_embed_type_num_heads": 64,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
        "class_embeddings_concat": False,
        "resnet_skip_time_act": False,
        "resnet_out_scale_factor": 1.0,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
    },
}

# The attention layers of google/ddpm-* (diffusers 0.0.4) had other names.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def model_folder(folder: str | PathLike[str]) -> Path:
    """The folder itself, or `unet/` in it if that is where the model of a pipeline lies.

    Raises:
        UserError: There is no such folder, or no config.json in it.
    """
    folder = Path(folder)
    for candidate in (folder, folder / "unet"):
        if (candidate / CONFIG).is_file():
            return candidate
    fault = f"has no {CONFIG}" if folder.is_dir() else "does not exist"
    cure = "name the folder of a model, or of a pipeline with unet/ in it"
    if (folder / "model").is_dir():
        cure = f"name the model in it, {folder / 'model'}"
    raise UserError(f"{folder} {fault}; {cure}")


def read_config(folder: str | PathLike[str]) -> UNetConfig:
    """The architecture of a folder that diffusers' UNet2DModel or UNet2DConditionModel wrote.

    Raises:
        UserError: config.json is unreadable, or has a key or value that `UNet` does not support.
    """
    path = Path(folder) / CONFIG
    given = read_json(path)
    kind = str(given.get("_class_name", CONDITIONAL if "cross_attention_dim" in given else DDPM))
    if kind not in FIXED:
        raise UserError(
            f"{path}: _class_name {kind!r} is not supported; take the folder of a {DDPM} or"
            f" {CONDITIONAL}"
        )
    settings = dict(DEFAULTS[kind])
    for key, value in given.items():
        if key.startswith("_"):
            continue
        if key in FIXED[kind]:
            if value != FIXED[kind][key]:
                raise UserError(
                    f"{path}: {key} {value!r} is not supported; only {FIXED[kind][key]!r} is"
                )
        elif key in _keys(kind):
            settings[key] = value
        else:
            raise UserError(
                f"{path}: unknown key {key!r} of a {kind}; remove it if it means nothing"
            )
    config = from_plain(UNetConfig, settings, path)
    downs, ups = (
        tuple(block.removeprefix("UNetRes") for block in blocks)
        for blocks in (config.down_block_types, config.up_block_types)
    )
    config = replace(config, down_block_types=downs, up_block_types=ups)
    try:
        check(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def write_config(config: UNetConfig, folder: str | PathLike[str]) -> None:
    """Write `config.json` into `folder`, which is made if missing."""
    replace_json(Path(folder) / CONFIG, settings_of(config))


def settings_of(config: UNetConfig) -> dict[str, Any]:
    """What `config.json` says: all keys of diffusers' class that can differ.

    `dims` is said of volumes only; diffusers knows no such key.
    """
    kind = CONDITIONAL if config.conditional else DDPM
    settings = {key: value for key, value in asdict(config).items() if key in _keys(kind)}
    if config.dims == 2:
        settings.pop("dims", None)
    return {"_class_name": kind, "_diffusers_version": version("diffusers"), **settings}


def read_weights(folder: str | PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a model folder, in one file or several, in float32 and by their new names.

    Raises:
        UserError: There are no safetensors files, a damaged one, or one with NaN or infinite
            weights. Pickles are never loaded.
    """
    folder = Path(folder)
    index = folder / f"{WEIGHTS}.index.json"
    if (folder / WEIGHTS).is_file():
        files = [folder / WEIGHTS]
    elif index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise UserError(f"{index}: names no weights; copy the model again")
        files = [folder / Path(str(name)).name for name in dict.fromkeys(shards.values())]
    elif pickles := sorted(folder.glob("*.bin")):
        raise UserError(
            f"{pickles[0]} is a pickle, which is never loaded; convert it where you trust it:"
            f" diffusers.UNet2DModel.from_pretrained({str(folder)!r}, use_safetensors=False)"
            f".save_pretrained({str(folder)!r})"
        )
    else:
        raise UserError(f"{folder} has no {WEIGHTS}; copy it there")
    weights = {}
    for file in files:
        for name, tensor in read_file(file).items():
            weights[_new_name(name)] = single(tensor, f"{file}: {name}")
    return weights


def single(tensor: Tensor, name: str) -> Tensor:
    """A copy in float32, as the file is mapped into memory and may be overwritten in place.

    Raises:
        UserError: NaN or infinite numbers in the tensor of this name.
    """
    if not torch.isfinite(tensor).all():
        raise UserError(f"{name} is not finite; take weights of an earlier step")
    return tensor.to(torch.float32, copy=True).contiguous()


def read_file(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped into memory.

    Raises:
        UserError: It is missing or damaged.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is damaged or missing ({error}); copy it again") from error


def write_weights(weights: Mapping[str, Tensor], folder: str | PathLike[str]) -> None:
    """Write the safetensors file into `folder`, which is made if missing, in one rename."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{WEIGHTS}.unfinished"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, unfinished, metadata={"format": "pt"})
    os.replace(unfinished, folder / WEIGHTS)


def check_weights(
    source: str | PathLike[str],
    expected: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    cure: str = "take the weights of this network",
) -> None:
    """Refuse weights that are not those of a network.

    Raises:
        UserError: Names `source` and the first tensor that is missing, superfluous or ill-shaped.
    """
    for name, tensor in expected.items():
        if name not in given:
            raise UserError(f"{source}: tensor {name} is missing; {cure}")
        if given[name].shape != tensor.shape:
            shapes = f"{list(given[name].shape)}, not {list(tensor.shape)}"
            raise UserError(f"{source}: tensor {name} has shape {shapes}; {cure}")
    for name in given:
        if name not in expected:
            raise UserError(f"{source}: unexpected tensor {name}; {cure}")


def _keys(kind: str) -> set[str]:
    foreign = DDPM_ONLY if kind == CONDITIONAL else CONDITIONAL_ONLY
    return {field.name for field in fields(UNetConfig)} - set(foreign)


def _new_name(name: str) -> str:
    return re.sub(
        r"\.(query|key|value|proj_attn)\.(weight|bias)$",
        lambda found: f".{OLD_NAMES[found[1]]}.{found[2]}",
        name,
    )

"""Networks as folders: `config.json` and safetensors, as diffusers writes and reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddpm_unet.config import UNetConfig
from ddpm_unet.config.reading import from_plain, read_json
from ddpm_unet.errors import UserError, did_you_mean
from ddpm_unet.files import finished, replace_json
from ddpm_unet.models.architecture import CONDITIONAL_ONLY, DDPM_ONLY
from ddpm_unet.models.card import write_card_alone

Folder = str | PathLike[str]
Config = TypeVar("Config")
Network = TypeVar("Network", bound="Pretrained")

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
_NONE = (
    "time_embedding_dim time_embedding_act_fn timestep_post_act time_cond_proj_dim"
    " num_attention_heads reverse_transformer_layers_per_block mid_block_only_cross_attention"
    " cross_attention_norm encoder_hid_dim encoder_hid_dim_type addition_embed_type"
    " addition_time_embed_dim projection_class_embeddings_input_dim"
)
FIXED: dict[str, dict[str, Any]] = {
    DDPM: {
        "time_embedding_type": "positional",
        **dict.fromkeys(("time_embedding_dim", "num_train_timesteps")),
    },
    CONDITIONAL: {
        "time_embedding_type": "positional",
        "attention_type": "default",
        **dict.fromkeys(_NONE.split()),
        **dict.fromkeys(("dual_cross_attention", "class_embeddings_concat"), False),
        **{"resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0},
        **{"addition_embed_type_num_heads": 64, "conv_in_kernel": 3, "conv_out_kernel": 3},
    },
}

# The attention layers of google/ddpm-* (diffusers 0.0.4) had other names.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD = re.compile(rf"\.({'|'.join(OLD_NAMES)})\.(?=(weight|bias)$)")


class Pretrained(nn.Module):
    """A network that is written to a folder and read again.

    Attributes:
        config: Its settings, a `config_class`.
        folders: Folder in which the weights of each beginning of their names lie.
    """

    config: Any
    config_class: ClassVar[type[Any]]
    folders: ClassVar[dict[str, str]] = {"": ""}

    @classmethod
    def from_pretrained(cls: type[Network], source: Folder, hints: Any = None) -> Network:
        """Read a folder that `save_pretrained` wrote; a `UNet` also diffusers', or a file.

        Args:
            source: The model's folder; of a `UNet` also a pipeline's with the model in `unet/`, or
                a safetensors file of another code base, see `models.convert`.
            hints: What the tensors of such a file do not say, a `CheckpointHints`.

        Returns:
            The network in float32, on the CPU, in evaluation mode.

        Raises:
            UserError: There is no such model; names the file, field or tensor at fault.
        """
        cure, config_file = "take the weights that belong to this configuration", source
        if cls.config_class is UNetConfig and Path(source).is_file():
            from ddpm_unet.models import convert

            config, weights = convert.read(source, hints)
            cure = "UNet, whose names these are, cannot hold this network"
        else:
            source, config = cls._read_config(source)
            config_file = Path(source) / CONFIG
            weights = {
                beginning + name: tensor
                for beginning, place in cls.folders.items()
                for name, tensor in read_weights(Path(source) / place).items()
            }
        try:
            with torch.device("meta"):
                network = cls._of(config, source)
        except UserError as error:
            raise UserError(f"{config_file}: {error}") from error
        check_weights(source, network.state_dict(), weights, cure)
        network.load_state_dict(weights, assign=True)
        return network.eval()

    def save_pretrained(
        self, folder: Folder, state_dict: dict[str, Tensor] | None = None, card: bool = True
    ) -> None:
        """Write a folder that `from_pretrained` reads, of a `UNet` also diffusers'.

        Args:
            folder: Made if missing.
            state_dict: Weights to write instead of the network's own, such as their average.
            card: Write README.md too, where there is none, or none with more in it.

        Raises:
            UserError: `state_dict` is not that of this network.
        """
        weights = self.state_dict() if state_dict is None else state_dict
        check_weights("state_dict", self.state_dict(), weights)
        self._write_config(Path(folder))
        for beginning, place in self.folders.items():
            part = {
                name.removeprefix(beginning): tensor
                for name, tensor in weights.items()
                if name.startswith(beginning)
            }
            write_weights(part, Path(folder) / place)
        if card:
            config, count = self.config, sum(p.numel() for p in self.parameters())
            names = ("in_channels", "out_channels", "dims", "sample_size", "class_names")
            known = {name.replace("_", " "): getattr(config, name, None) for name in names}
            kind = "U-Net" if isinstance(config, UNetConfig) else "segmenter"
            rows = {"class": type(self).__name__, "parameters": f"{count:,}", **known}
            write_card_alone(Path(folder), kind, rows)

    @classmethod
    def _read_config(cls, folder: Folder) -> tuple[Folder, Any]:
        """The folder that holds the model, and its settings."""
        if cls.config_class is UNetConfig:
            folder = model_folder(folder)
            return folder, read_config(folder)
        return folder, read_settings(folder, cls.__name__, cls.config_class)

    @classmethod
    def _of(cls: type[Network], config: Any, folder: Folder) -> Network:
        return cls(config)

    def _write_config(self, folder: Path) -> None:
        settings = {"_class_name": type(self).__name__, **asdict(self.config)}
        diffusers = isinstance(self.config, UNetConfig)
        replace_json(folder / CONFIG, settings_of(self.config) if diffusers else settings)


def settings_from(
    config: Config | None, kind: type[Config], given: Mapping[str, Any], source: object
) -> Config:
    """Settings given as an object, by keyword, or both: `given` is different in `config`.

    Raises:
        UserError: An unknown keyword, with the nearest that there is, or a value of a wrong type;
            the message begins with `source`.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            cure = did_you_mean(name, known, "remove it if it means nothing")
            raise UserError(f"{source}: unknown key {name!r}; {cure}")
    if config is None:
        return from_plain(kind, given, source)
    changed = from_plain(kind, given, source)
    return replace(config, **{name: getattr(changed, name) for name in given})  # type: ignore[type-var]


def unet_config(config: UNetConfig | None, given: Mapping[str, Any]) -> UNetConfig:
    """The configuration of a `UNet` from diffusers' arguments by keyword.

    Without block types, every level but the finest has self-attention; with `cross_attention_dim`
    every level but the coarsest attends to the context, as has the middle.

    Raises:
        UserError: See `settings_from`; or an argument with a value that this network does not have.
    """
    dim = given.get("cross_attention_dim", config.cross_attention_dim if config else None)
    kind = DDPM if dim is None else CONDITIONAL
    settings = _without_fixed(given, kind, "UNet")
    if config is None:
        more = len(settings.get("block_out_channels", UNetConfig().block_out_channels)) - 1
        if kind == DDPM:
            settings.setdefault("down_block_types", ("DownBlock2D", *("AttnDownBlock2D",) * more))
            settings.setdefault("up_block_types", (*("AttnUpBlock2D",) * more, "UpBlock2D"))
        else:
            cross = ("CrossAttnDownBlock2D",) * more
            settings.setdefault("down_block_types", (*cross, "DownBlock2D"))
            settings.setdefault("mid_block_type", DEFAULTS[kind]["mid_block_type"])
            settings.setdefault("up_block_types", ("UpBlock2D", *("CrossAttnUpBlock2D",) * more))
    return settings_from(config, UNetConfig, settings, "UNet")


def _without_fixed(given: Mapping[str, Any], kind: str, source: object) -> dict[str, Any]:
    """Settings without those that have one value only; refuse another one."""
    settings = {}
    for key, value in given.items():
        if key not in FIXED[kind]:
            settings[key] = value
        elif value != FIXED[kind][key]:
            only = FIXED[kind][key]
            raise UserError(f"{source}: {key} {value!r} is not supported; only {only!r} is")
    return settings


def model_folder(folder: Folder, places: Sequence[str] = ("unet",), kind: str = "a model") -> Path:
    """The folder itself, or the one of `places` in a pipeline where its model lies."""
    folder = Path(folder)
    for candidate in (folder, *(folder / place for place in places)):
        if (candidate / CONFIG).is_file():
            return candidate
    raise _no_config(folder, f"name the folder of {kind}, or of a pipeline with {places[0]}/ in it")


def pipeline_root(folder: Path) -> Path:
    """The folder of a pipeline, given it or the one of the network in it."""
    return folder if (folder / "unet").is_dir() else folder.resolve().parent


def _no_config(folder: Path, cure: str) -> UserError:
    fault = f"has no {CONFIG}" if folder.is_dir() else "does not exist"
    if (folder / "model").is_dir():
        cure = f"name the model in it, {folder / 'model'}"
    return UserError(f"{folder} {fault}; {cure}")


def class_name(folder: Folder) -> str:
    """The `_class_name` of a model's folder."""
    if not (Path(folder) / CONFIG).is_file():
        raise _no_config(Path(folder), "name the model folder of a run")
    return str(read_json(Path(folder) / CONFIG).get("_class_name", "model of unknown class"))


def read_settings(folder: Folder, kind: str, settings: type[Config]) -> Config:
    """The settings in `config.json` of a model of class `kind`."""
    path, found = Path(folder) / CONFIG, class_name(folder)
    if found != kind:
        raise UserError(f"{path} is of a {found}; name the folder of a {kind}")
    given = {key: value for key, value in read_json(path).items() if not key.startswith("_")}
    return settings_from(None, settings, given, path)


def read_config(folder: Folder) -> UNetConfig:
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
    own = {key: value for key, value in given.items() if not key.startswith("_")}
    settings = _without_fixed(own, kind, path)
    for key in sorted(settings.keys() - _keys(kind)):
        raise UserError(f"{path}: unknown key {key!r} of a {kind}; remove it if it means nothing")
    for name in ("down_block_types", "up_block_types"):
        blocks = settings.get(name)
        if isinstance(blocks, list):  # diffusers 0.0.4 has UNetRes...
            settings[name] = [str(block).removeprefix("UNetRes") for block in blocks]
    return from_plain(UNetConfig, DEFAULTS[kind] | settings, path)


def settings_of(config: UNetConfig) -> dict[str, Any]:
    """What `config.json` says: all keys of diffusers' class that can differ.

    `dims` is said of volumes only; diffusers knows no such key.
    """
    kind = CONDITIONAL if config.conditional else DDPM
    settings = {key: value for key, value in asdict(config).items() if key in _keys(kind)}
    if config.dims == 2:
        del settings["dims"]
    return {"_class_name": kind, "_diffusers_version": version("diffusers"), **settings}


def _keys(kind: str) -> set[str]:
    foreign = DDPM_ONLY if kind == CONDITIONAL else CONDITIONAL_ONLY
    return {field.name for field in fields(UNetConfig)} - set(foreign)


def read_weights(folder: Folder) -> dict[str, Tensor]:
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
            now = _OLD.sub(lambda found: f".{OLD_NAMES[found[1]]}.", name)
            weights[now] = single(tensor, f"{file}: {name}")
    return weights


def single(tensor: Tensor, name: str) -> Tensor:
    """A copy in float32, as the file is mapped into memory and may be overwritten in place."""
    if not torch.isfinite(tensor).all():
        raise UserError(f"{name} is not finite; take weights of an earlier step")
    if tensor.is_floating_point():
        tensor = tensor.to(torch.float32)
    return tensor.clone(memory_format=torch.contiguous_format)


def read_file(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped into memory."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is damaged or missing ({error}); copy it again") from error


def write_weights(
    weights: Mapping[str, Tensor], folder: Folder, name: str = WEIGHTS, **metadata: str
) -> None:
    """Write a safetensors file into `folder`, which is made if missing, in one rename."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    with finished(Path(folder) / name) as part:
        save_file(tensors, part, {"format": "pt", **metadata})


def check_weights(
    source: Folder,
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

"""Low-rank changes of a network's layers (LoRA, Hu 2021, arXiv:2106.09685), in diffusers' files.

A layer of weight W becomes one of W + (alpha / r) B A, with A and B of rank r. Training is peft's
(extra `lora`); to use such a file it is not needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ddpm_unet.errors import UserError, from_extra
from ddpm_unet.models.pretrained import Folder, read_file, write_weights
from ddpm_unet.models.unet import UNet

FILE = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
ADAPTER = "default"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_PARTS = re.compile(r"(?:unet\.)?(.+)\.(lora\.down|lora\.up|lora_A|lora_B)\.weight")


def add_lora(
    unet: UNet,
    rank: int,
    alpha: float | None = None,
    layers: Literal["attention", "all"] = "attention",
) -> UNet:
    """Give a network low-rank changes, which alone train from then on; gives the network itself.

    Args:
        unet: The network, changed in place. It computes the same as before until it is trained.
        rank: Of the changes.
        alpha: Their factor times the rank; None for the rank itself.
        layers: "attention", the projections of attention layers, as diffusers' own trainings
            have it, or "all" linear layers and convolutions.

    Raises:
        UserError: peft is missing, or the network has no attention.
    """
    peft = from_extra("peft", "lora", "lora")
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    names = [name for name, module in unet.named_modules() if isinstance(module, kinds)]
    if layers == "attention":
        names = [name for name in names if name.endswith(tuple(f".{end}" for end in ATTENTION))]
    if not names:
        raise UserError("lora.layers attention: the network has no attention; take all")
    factor: Any = alpha or rank  # which need not be whole
    config = peft.LoraConfig(r=rank, lora_alpha=factor, target_modules=names)
    peft.inject_adapter_in_model(config, unet, ADAPTER)
    unet.peft_config = {ADAPTER: config}  # type: ignore[assignment]  # as diffusers keeps it
    return unet


def has_lora(unet: nn.Module) -> bool:
    """Whether a network has the changes of `add_lora`."""
    return hasattr(unet, "peft_config")


def merge_lora(unet: UNet, state_dict: Mapping[str, Tensor]) -> tuple[UNet, dict[str, Tensor]]:
    """A network without changes apart, on the meta device, and the weights that are the same.

    Args:
        unet: With the changes of `add_lora`.
        state_dict: Its weights, or their average.
    """
    with torch.device("meta"):
        plain = UNet(unet.config)
    layers = _layers(unet, state_dict)
    weights = {}
    for name in plain.state_dict():
        layer, _, leaf = name.rpartition(".")
        weights[name] = state_dict[f"{layer}.base_layer.{leaf}" if layer in layers else name]
    config: Any = unet.peft_config[ADAPTER]  # type: ignore[index]
    return plain, _changed(weights, layers, config.lora_alpha / config.r)


def write_lora(unet: UNet, state_dict: Mapping[str, Tensor], folder: Folder) -> None:
    """Write `pytorch_lora_weights.safetensors`, which diffusers loads, into a folder.

    The names are those of its pipelines, `unet.LAYER.lora.down.weight`; rank and factor are in the
    file's metadata. Arguments as of `merge_lora`.
    """
    tensors = {
        f"unet.{layer}.lora.{part}.weight": value
        for layer, pair in _layers(unet, state_dict).items()
        for part, value in zip(("down", "up"), pair, strict=True)
    }
    config: Any = unet.peft_config[ADAPTER]  # type: ignore[index]
    own = {key: sorted(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
    about = {f"unet.{key}": value for key, value in own.items()}
    write_weights(tensors, folder, FILE, **{METADATA: json.dumps(about, default=str)})


def load_lora(unet: UNet, source: Folder, scale: float = 1.0) -> UNet:
    """Change a network's weights as a LoRA file says, in place; gives the network itself.

    Args:
        unet: A plain network.
        source: The file, or a folder with one, of this toolkit or of diffusers.
        scale: Factor of the changes.

    Raises:
        UserError: There is no such file, or it is of another network; names what does not fit.
    """
    file = Path(source)
    file = file / FILE if file.is_dir() else file
    tensors, about = read_file(file), _metadata(file)
    weights, layers = unet.state_dict(), dict[str, list[Tensor]]()
    alphas = {n.removesuffix(".alpha"): float(tensors[n]) for n in tensors if n.endswith(".alpha")}
    for name, tensor in tensors.items():
        parts = _PARTS.fullmatch(name)
        if parts is None and not name.endswith(".alpha"):
            raise UserError(f"{file}: has {name}, which is no LoRA of a U-Net in diffusers' layout")
        if parts:
            pair = layers.setdefault(parts[1], [tensor, tensor])
            pair[parts[2] in ("lora.up", "lora_B")] = tensor.float()
    for layer, (down, up) in layers.items():
        weight = weights.get(f"{layer}.weight")
        if weight is None or (up.shape[0], down.shape[1]) != weight.shape[:2]:
            raise UserError(f"{file}: changes {layer}, which this network has not in this size")
        rank = down.shape[0]
        alpha = alphas.get(layer, alphas.get(f"unet.{layer}", about.get("lora_alpha", rank)))
        changes = {layer: (down, up)}
        factor = scale * float(alpha) / (rank**0.5 if about.get("use_rslora") else rank)
        weight.copy_(_changed({f"{layer}.weight": weight}, changes, factor)[f"{layer}.weight"])
    return unet


def _metadata(file: Path) -> dict[str, Any]:
    """What a file says of its changes; nothing where it says nothing."""
    with safe_open(file, "pt") as opened:
        text = (opened.metadata() or {}).get(METADATA, "{}")
    found = {key.removeprefix("unet."): value for key, value in json.loads(text).items()}
    if found.get("use_dora") or found.get("alpha_pattern") or found.get("bias", "none") != "none":
        kind = "is of another kind than plain LoRA (DoRA, biases, several alphas)"
        raise UserError(f"{file}: {kind}")
    return found


def _layers(unet: UNet, state_dict: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The down and up projection of each layer that has them."""
    ending = f".lora_A.{ADAPTER}.weight"
    layers = [name.removesuffix(ending) for name in state_dict if name.endswith(ending)]
    down, up = ([state_dict[f"{n}.lora_{x}.{ADAPTER}.weight"] for n in layers] for x in "AB")
    return dict(zip(layers, zip(down, up, strict=True), strict=True))


def _changed(
    weights: dict[str, Tensor], layers: Mapping[str, tuple[Tensor, Tensor]], scale: float
) -> dict[str, Tensor]:
    """Weights with the changes added; of a convolution the upper projection is 1 x 1."""
    found = dict(weights)
    for layer, (down, up) in layers.items():
        name = f"{layer}.weight"
        change = up.flatten(1) @ down.flatten(1)
        found[name] = weights[name] + scale * change.reshape(weights[name].shape)
    return found

"""Networks of torchvision as contracting paths, with weights of ImageNet or without.

TernausNet (Iglovikov 2018, arXiv 1801.05746) is a U-Net whose contracting path is a VGG network
that has learned to classify ImageNet. Any network of torchvision will do that halves its
activations step by step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.fx.proxy import TraceError
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from ddpm_unet.config import ClassicConfig
from ddpm_unet.errors import UserError, did_you_mean
from ddpm_unet.models.pretrained import check_weights

IMAGENET = "imagenet"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours, in [0, 1]: what torchvision's networks were trained to see."""


class Backbone(nn.Module):
    """A torchvision network, read where it last has each size: H, H/2, H/4, ...

    One that halves at once has nothing else than the image at the finest level. Grey images are
    repeated to three channels, and sizes that cannot be halved so often are continued at the far
    borders. `widths` are the channels of every level's activations.

    Raises:
        UserError: There is no network `config.encoder`, or it has not `config.depth` levels.
    """

    def __init__(self, config: ClassicConfig) -> None:
        super().__init__()
        name, depth = config.encoder, config.depth
        if config.dims != 2 or config.in_channels not in (1, 3):
            raise UserError(
                f"encoder {name}: takes images of 1 or 3 channels, not {config.dims}-D data of "
                f"{config.in_channels}; take encoder classic"
            )
        self.network, self.widths = levels(name, depth)
        self.name = name
        self.multiple = 2 ** (depth - 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """`[B, 1 or 3, H, W]` in [-1, 1] to `[B, widths[i], h / 2^i, w / 2^i]` for every level i,
        where h and w are H and W or the next multiples of 2^(depth - 1).
        """
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        x = ((images + 1) / 2 - mean) / std
        down, right = (-n % self.multiple for n in x.shape[2:])
        if down or right:
            x = F.pad(x, (0, right, 0, down), mode="replicate")
        activations = self.network(x)
        return [activations[str(level)] for level in range(len(self.widths))]

    def load(self, weights: str) -> None:
        """Take over weights: "imagenet", or a safetensors file with torchvision's names.

        Raises:
            UserError: They cannot be had, or are another network's; names the cure.
        """
        try:
            if weights == IMAGENET:
                fault = f"encoder {self.name}: its ImageNet weights could not be fetched"
                cure = "a safetensors file of them"
                source = models.get_model_weights(self.name).DEFAULT
                given = source.get_state_dict(progress=False, check_hash=True, weights_only=True)
            else:
                fault = f"{weights} is no safetensors file of {self.name}"
                cure = "such a file, imagenet"
                given = load_file(weights)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{fault} ({error}); give init {cure}, or scratch") from error
        expected = self.network.state_dict()
        taken = {name: tensor for name, tensor in given.items() if name in expected}
        check_weights(weights, expected, taken)
        self.network.load_state_dict(taken)


def levels(name: str, depth: int) -> tuple[nn.Module, list[int]]:
    """A torchvision network that gives what it last has of each size, freshly initialised.

    An activation counts if every path from the image to what follows leads through it, so that no
    skip connection of a residual block goes past it. What comes after the last is left out.

    Returns:
        The network, from images to `{"0": activations, "1": ..., ...}` of `depth` levels, finest
        first, and their channels.

    Raises:
        UserError: torchvision has no such network, or it has not so many levels.
    """
    known = models.list_models(module=models)
    if name not in known:
        cure = did_you_mean(name, known, "take classic, vgg11 or resnet34")
        raise UserError(f"encoder {name}: torchvision has no such network; {cure}")
    try:
        # Without memory, as classifiers have many weights that are not wanted here.
        with torch.device("meta"):
            network = models.get_model(name)
            found = _halvings(network.eval())[:depth]
    except (AssertionError, NotImplementedError, TraceError):
        found = []
    if len(found) < depth:
        raise UserError(
            f"encoder {name}: its activations have {len(found)} sizes, each half the one before; "
            "set depth to no more, or take another network, such as vgg11 or resnet34"
        )
    nodes = {node: str(level) for level, (node, _) in enumerate(found)}
    network = create_feature_extractor(network.train(), return_nodes=nodes)
    network.to_empty(device=torch.get_default_device())
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif next(module.parameters(recurse=False), None) is not None:
            raise UserError(f"encoder {name}: has weights of a kind of its own; take resnet34")
    return network, [width for _, width in found]


def _halvings(network: nn.Module) -> list[tuple[str, int]]:
    """Names and channels of the activations that `levels` returns."""
    traced = create_feature_extractor(network, return_nodes=get_graph_node_names(network)[1])
    side = 256
    activations = traced(torch.empty(1, 3, side, side))
    *_, last = traced.graph.nodes
    place = {node: number for number, node in enumerate(traced.graph.nodes)}
    sizes: dict[int, tuple[str, int]] = {}
    reach = 0
    for name, node in last.args[0].items():
        activation = activations[name]
        if reach <= place[node] and isinstance(activation, Tensor) and activation.dim() == 4:
            sizes[activation.shape[3]] = (name, activation.shape[1])
        reach = max([reach, *(place[user] for user in node.users if user is not last)])
    found = []
    while side in sizes:
        found.append(sizes[side])
        side //= 2
    return found

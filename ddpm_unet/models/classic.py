"""The U-Net of 2015 and its family: an encoder and a decoder, each of several kinds.

Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
MICCAI 2015 (arXiv 1505.04597), figure 1: 572 x 572 pixels in, 388 x 388 out.
Cicek, Abdulkadir, Lienkamp, Brox, Ronneberger, "3D U-Net", MICCAI 2016 (arXiv 1606.06650),
figure 2: `dims=3, depth=4, base_width=32, norm="batch", doubling="before_pooling", dropout=0`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

from torch import Tensor

from ddpm_unet.config import ClassicConfig, HeadConfig
from ddpm_unet.config.reading import check_settings
from ddpm_unet.errors import UserError
from ddpm_unet.models.classic_layers import ContractingPath, Recomputing, corner, he_initialise
from ddpm_unet.models.decoders import (
    FCNDecoder,
    FullScaleDecoder,
    NestedDecoder,
    TernausDecoder,
    UNetDecoder,
)
from ddpm_unet.models.pretrained import Pretrained, settings_from

DECODERS: dict[str, type[Recomputing]] = {
    "unet": UNetDecoder,
    "fcn": FCNDecoder,
    "ternaus": TernausDecoder,
    "nested": NestedDecoder,
    "full_scale": FullScaleDecoder,
}
SUPERVISED = ("nested", "full_scale")


class ClassicUNet(Pretrained):
    """Contracting path, expansive path, and skips between them.

    The defaults are the published network: unpadded 3x3 convolutions with ReLU, 2x2 max pooling,
    2x2 up-convolutions, cropped concatenation, a 1x1 convolution at the end; He initialisation
    and dropout at the end of the contracting path (after its last two levels, as in the authors'
    release). `padding="same", norm="batch", dropout=0` is milesial's Pytorch-UNet.

    Attributes:
        dims: Spatial dimensions, 2 or 3.
        factor: Pixels along a side of one of the coarsest level.
        margin: Pixels lost on every side, 0 with padding "same".
        step: Input sizes that fit are `valid_size(1)` and a multiple of `step`. Without padding, a
            tile whose origin is a multiple of `step` gives what one pass over the whole image
            gives there; with another origin the pooling falls on other pixels.

    Raises:
        UserError: The settings make no network; names the setting and the cure.

    Example:
        >>> import torch
        >>> from ddpm_unet import ClassicUNet
        >>> network = ClassicUNet(depth=3, base_width=8, padding="same", num_classes=4)
        >>> network(torch.randn(1, 1, 40, 56)).shape
        torch.Size([1, 4, 40, 56])
    """

    config: ClassicConfig
    config_class = ClassicConfig

    def __init__(self, config: ClassicConfig | None = None, **settings: Any) -> None:
        super().__init__()
        config = settings_from(config, ClassicConfig, settings, "ClassicUNet")
        self.config = config
        check_classes(config)
        _check_parts(config)
        self.in_channels, self.dims = config.in_channels, config.dims
        self.factor = 2 ** (config.depth - 1)
        self.encoder: Any
        if config.encoder == "classic":
            self.encoder = ContractingPath(config)
        else:
            from ddpm_unet.models.backbones import Backbone  # torchvision takes seconds

            self.encoder = Backbone(config)
        self.decoder = DECODERS[config.decoder](config, self.encoder.widths)
        self.step = self.factor if config.padding == "valid" else 1
        smallest = self.valid_size(1)
        self.margin = (smallest - self._output_size(smallest)) // 2
        he_initialise(self)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Scores of every class at every pixel.

        Args:
            images: `[B, in_channels, H, W]` (or `[..., D, H, W]`), any size with padding "same".

        Returns:
            Logits `[B, num_classes, H - 2 margin, W - 2 margin]`, one channel with `one_logit`.
            In training with `deep_supervision` a tuple of them, the one that counts first.

        Raises:
            UserError: Images of other channels; "valid" padding and a size that cannot be halved
                at every level.
        """
        if images.shape[1] != self.in_channels:
            raise UserError(
                f"ClassicUNet takes images of {self.in_channels} channels, these have"
                f" {images.shape[1]}; convert the images, or set in_channels and train anew"
            )
        for size in images.shape[2:]:
            if self._output_size(size) == 0:
                raise UserError(
                    f"ClassicUNet without padding cannot take {size} pixels: at every level the "
                    f"size must be even; the next that fits is {self.valid_size(size)}"
                )
        out = [self._output_size(size) for size in images.shape[2:]]
        logits = [corner(x, out) for x in self.decoder(self.encoder(images))]
        return tuple(logits) if self.training and self.config.deep_supervision else logits[0]

    def valid_size(self, at_least: int) -> int:
        """The smallest input size of at least so many pixels that the network takes."""
        return next(n for n in count(max(at_least, 1)) if self._output_size(n))

    def load_encoder(self, weights: str) -> None:
        """Take over weights of torchvision's encoder: "imagenet", or a safetensors file.

        Raises:
            UserError: The encoder is not torchvision's, or there are no such weights.
        """
        if isinstance(self.encoder, ContractingPath):
            raise UserError(
                f"init {weights}: encoder {self.config.encoder} starts from random weights; set "
                "init scratch, or an encoder of torchvision"
            )
        self.encoder.load(weights)

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass: less memory, slower.

        An encoder of torchvision keeps its own.
        """
        for part in (self.encoder, self.decoder):
            if isinstance(part, Recomputing):
                part.checkpointing = enabled

    def pruned(self, depth: int) -> ClassicUNet:
        """The U-Net++ of fewer levels that is part of this one (Zhou 2018, figure 1c), as a copy.

        Raises:
            UserError: It is no U-Net++ trained under deep supervision, or has not so many levels.
        """
        config = self.config
        if config.decoder != "nested" or not config.deep_supervision:
            raise UserError(
                "only a U-Net++ can do without its coarse levels: decoder nested, trained with "
                "deep_supervision"
            )
        if not 2 <= depth <= config.depth:
            raise UserError(f"levels {depth}: the network has {config.depth}; take 2 or more")
        part = ClassicUNet(replace(config, depth=depth))
        weights = self.state_dict()
        part.load_state_dict({name: weights[name] for name in part.state_dict()})
        return part.eval()

    def _output_size(self, size: int) -> int:
        """Output size for an input size, 0 if the network cannot take it."""
        if self.config.padding == "same":
            return size
        for _ in range(self.config.depth - 1):
            size -= 4
            if size % 2 or size <= 0:
                return 0
            size //= 2
        size -= 4
        for _ in range(self.config.depth - 1):
            size = 2 * size - (2 if self.config.upsample == "bilinear" else 0) - 4
        return max(size, 0)


def check_classes(config: ClassicConfig | HeadConfig) -> None:
    """Refuse settings out of bounds, and names or colours that are not one per class."""
    check_settings(config)
    for name in ("class_names", "class_colors"):
        entries = getattr(config, name)
        if entries and len(entries) != config.num_classes:
            raise UserError(
                f"{name} has {len(entries)} entries and num_classes is {config.num_classes};"
                " give one per class, or none"
            )


def _check_parts(config: ClassicConfig) -> None:
    """Refuse parts that do not go together."""
    least = 3 if config.decoder == "fcn" else 2
    if config.depth < least:
        raise UserError(f"depth is {config.depth}; take at least {least}")
    if config.one_logit and config.num_classes != 2:
        raise UserError(f"one_logit: {config.num_classes} classes; it takes 2, so leave it out")
    plain = config.decoder == "unet" and config.encoder == "classic"
    if config.padding == "valid" and not plain:
        raise UserError(
            f'encoder {config.encoder} with decoder {config.decoder}: set padding "same"; only '
            "the classic encoder with decoder unet does without"
        )
    if config.skip == "add" and config.decoder != "unet":
        raise UserError(f'skip "add": decoder {config.decoder} has skips of its own; leave it out')
    if config.skip == "add" and config.doubling == "before_pooling":
        raise UserError('skip "add" needs equal channels: set doubling "after_pooling"')
    if config.deep_supervision and config.decoder not in SUPERVISED:
        raise UserError(
            f"deep_supervision: decoder {config.decoder} has one output; take decoder "
            f"{' or '.join(SUPERVISED)}, or leave it out"
        )

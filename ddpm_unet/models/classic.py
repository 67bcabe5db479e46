"""The U-Net of 2015 and its common variants.

Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
MICCAI 2015 (arXiv 1505.04597), figure 1: 572 x 572 pixels in, 388 x 388 out.
Cicek, Abdulkadir, Lienkamp, Brox, Ronneberger, "3D U-Net", MICCAI 2016 (arXiv 1606.06650),
figure 2: `dims=3, depth=4, base_width=32, norm="batch", doubling="before_pooling", dropout=0`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import count
from math import prod, sqrt
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ddpm_unet.config import ClassicConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models.pretrained import check_weights, read_weights, write_weights
from ddpm_unet.models.segmentation_settings import check_settings, read_settings, write_settings


class ClassicUNet(nn.Module):
    """Contracting path, expansive path, and skips between them at every level.

    The defaults are the published network: unpadded 3x3 convolutions with ReLU, 2x2 max pooling,
    2x2 up-convolutions, cropped concatenation, a 1x1 convolution at the end; He initialisation
    and dropout at the end of the contracting path (after its last two levels, as in the authors'
    release). `padding="same", norm="batch", dropout=0` is milesial's Pytorch-UNet.

    Attributes:
        in_channels: Channels of the images.
        margin: Pixels lost on every side, 0 with padding "same".
        step: Input sizes that fit are `valid_size(1)` and a multiple of `step`. Without padding, a
            tile whose origin is a multiple of `step` gives what one pass over the whole image
            gives there; with another origin the pooling falls on other pixels.

    Args:
        config: The architecture.
    """

    def __init__(self, config: ClassicConfig) -> None:
        super().__init__()
        self.config = config
        check_settings(config)
        if config.depth < 2:
            raise UserError(f"depth is {config.depth}; take at least 2")
        if config.one_logit and config.num_classes != 2:
            raise UserError(f"one_logit: {config.num_classes} classes; it takes 2, so leave it out")
        self.in_channels = config.in_channels
        early = config.doubling == "before_pooling"
        if early and config.skip == "add":
            raise UserError('skip "add" needs equal channels: set doubling "after_pooling"')
        widths = [config.base_width * 2 ** (level + early) for level in range(config.depth)]
        outs = list(widths)
        if config.upsample == "bilinear" and not early:
            # No up-convolution halves the channels, so the convolutions before it do.
            outs = [config.base_width, *widths[:-1]]
        ins = [config.in_channels, *widths[:-1]]
        self.down = nn.ModuleList(
            ConvBlock(
                config,
                ins[i],
                outs[i] if i == config.depth - 1 else widths[i],
                mid=widths[i] // 2 if early else 0,
            )
            for i in range(config.depth)
        )
        self.up = nn.ModuleList(
            Up(config, outs[i + 1], widths[i], outs[i]) for i in reversed(range(config.depth - 1))
        )
        scores = 1 if config.one_logit else config.num_classes
        self.head = _layer(config, "Conv")(widths[0], scores, kernel_size=1)
        self.dropout = nn.Dropout(config.dropout)
        self.checkpointing = False
        self.step = 2 ** (config.depth - 1) if config.padding == "valid" else 1
        smallest = self.valid_size(1)
        self.margin = (smallest - self._output_size(smallest)) // 2
        he_initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of every class at every pixel.

        Args:
            images: `[B, in_channels, H, W]` (or `[..., D, H, W]`), any size with padding "same".

        Returns:
            Logits `[B, num_classes, H - 2 margin, W - 2 margin]`, one channel with `one_logit`.

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
        skips = []
        x = images
        for level, block in enumerate(self.down):
            if level > 0:
                x = _pool(x)
            x = self._run(block, x)
            if level >= self.config.depth - 2:
                x = self.dropout(x)
            skips.append(x)
        skips.pop()
        for block in self.up:
            x = self._run(block, x, skips.pop())
        return self.head(x)

    def valid_size(self, at_least: int) -> int:
        """The smallest input size of at least so many pixels that the network takes."""
        return next(n for n in count(max(at_least, 1)) if self._output_size(n))

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> ClassicUNet:
        """Read a folder that `save_pretrained` wrote.

        Returns:
            The network in float32, on the CPU, in evaluation mode.

        Raises:
            UserError: The folder has no such model; names the file, field or tensor at fault.
        """
        network = cls(read_settings(folder, cls.__name__, ClassicConfig))
        weights = read_weights(folder)
        check_weights(folder, network.state_dict(), weights)
        network.load_state_dict(weights)
        return network.eval()

    def save_pretrained(
        self, folder: str | PathLike[str], state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Write `config.json` and the weights.

        Args:
            folder: Made if missing.
            state_dict: Weights to write instead of the network's own, such as their average.

        Raises:
            UserError: `state_dict` is not that of this network.
        """
        weights = self.state_dict() if state_dict is None else state_dict
        check_weights("state_dict", self.state_dict(), weights)
        write_settings(self.config, type(self).__name__, folder)
        write_weights(weights, folder)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the blocks' activations in the backward pass: less memory, slower."""
        self.checkpointing = True

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

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block(*inputs)
        contexts = partial(_recomputing, block)
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


class ConvBlock(nn.Sequential):
    """Two 3x3 convolutions, each followed by normalisation (if any) and ReLU."""

    def __init__(self, config: ClassicConfig, channels: int, out: int, mid: int = 0) -> None:
        layers: list[nn.Module] = []
        for i, o in ((channels, mid or out), (mid or out, out)):
            normed = config.norm == "batch"
            padding = 1 if config.padding == "same" else 0
            layers.append(_layer(config, "Conv")(i, o, 3, padding=padding, bias=not normed))
            if normed:
                layers.append(_layer(config, "BatchNorm")(o))
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class Up(nn.Module):
    """Double the size, join with the encoder's activation of that size, convolve twice."""

    def __init__(self, config: ClassicConfig, channels: int, skip: int, out: int) -> None:
        super().__init__()
        self.add = config.skip == "add"
        up = channels if config.doubling == "before_pooling" else skip
        joined = skip if self.add else up + skip
        self.up: nn.Module
        if config.upsample == "transposed":
            self.up = _layer(config, "ConvTranspose")(channels, up, kernel_size=2, stride=2)
            self.block = ConvBlock(config, joined, out)
        else:
            self.up = Interpolate(config)
            self.block = ConvBlock(config, joined, out, mid=skip)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """`[B, channels, h, w]` and `[B, skip, ~2h, ~2w]` to `[B, out, ~2h, ~2w]`."""
        x = self.up(x)
        size = [min(a, b) for a, b in zip(x.shape[2:], skip.shape[2:], strict=True)]
        x, skip = _centre(x, size), _centre(skip, size)
        return self.block(x + skip if self.add else torch.cat([skip, x], dim=1))


class Interpolate(nn.Module):
    """Linear interpolation to the double size.

    With padding "same" the corners are aligned, as in milesial's network. Without padding nothing
    may depend on where the image ends: pixel centres are aligned and the outermost pixels, which
    would need values from beyond the border, are dropped.
    """

    def __init__(self, config: ClassicConfig) -> None:
        super().__init__()
        self.mode = "bilinear" if config.dims == 2 else "trilinear"
        self.same = config.padding == "same"

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, h, w]` to `[B, C, 2h, 2w]`, without padding `[B, C, 2h - 2, 2w - 2]`."""
        x = F.interpolate(x, scale_factor=2, mode=self.mode, align_corners=self.same)
        return x if self.same else _centre(x, [n - 2 for n in x.shape[2:]])


@torch.no_grad()
def he_initialise(network: nn.Module) -> None:
    """Normal weights of standard deviation sqrt(2 / N), N the number of inputs of one output.

    Ronneberger 2015, section 3, after He 2015 (arXiv 1502.01852). An output of a 2x2
    up-convolution with stride 2 sees one pixel of every channel.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            inputs = module.in_channels
            if not module.transposed:
                inputs *= prod(module.kernel_size)
            module.weight.normal_(0, sqrt(2 / inputs))
            if module.bias is not None:
                module.bias.zero_()


def _layer(config: ClassicConfig, kind: str) -> Callable[..., nn.Module]:
    """`torch.nn`'s 2-D or 3-D layer: "Conv" -> `nn.Conv2d` or `nn.Conv3d`."""
    return getattr(nn, f"{kind}{config.dims}d")


def _pool(x: Tensor) -> Tensor:
    """Halve; an odd last row or column is pooled alone, the decoder crops it again."""
    pool = F.max_pool2d if x.dim() == 4 else F.max_pool3d
    return pool(x, kernel_size=2, ceil_mode=True)


def _centre(x: Tensor, size: list[int]) -> Tensor:
    """The centre of `x`, of spatial size `size`."""
    for dim, n in enumerate(size, start=2):
        x = x.narrow(dim, (x.shape[dim] - n) // 2, n)
    return x


def _recomputing(block: nn.Module) -> tuple[AbstractContextManager[Any], Any]:
    """Contexts of the first and the second forward pass of a checkpointed block."""
    return nullcontext(), _spare_statistics(block)


@contextmanager
def _spare_statistics(block: nn.Module) -> Iterator[None]:
    """Batch normalisation counts a batch once: what the recomputation adds is thrown away."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    kept = [norm._buffers for norm in norms]
    for norm in norms:
        norm._buffers = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers = buffers

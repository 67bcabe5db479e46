"""Modules that compute what their plain parents do, faster on a CPU and with less memory.

A module becomes its fast kind by changing class, so that its parameters, their names and order,
hooks and settings stay what they are. Where torch follows or transforms the computation, under
autocast, on another device or in another precision each does as its parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_unet.cpu import kernels
from ddpm_unet.cpu.kernels import differentiated, serves, transformed, unseen
from ddpm_unet.cpu.recompute import keep_recipe, recompute
from ddpm_unet.models import layers
from ddpm_unet.models.attention import Attention, SelfAttention
from ddpm_unet.models.classic_layers import ConvBlock, Pool

Model = TypeVar("Model", bound=nn.Module)


def accelerate_cpu(model: Model) -> Model:
    """Put compiled and memory-saving modules in place of a model's plain ones.

    Parameters, their names, order and values stay, and results within rounding. Where g++ or AVX2
    is missing, and on other systems than Linux, one line of the log says so and torch serves.

    Args:
        model: A `UNet`, `Segmenter`, `ClassicUNet` or a module that contains them; changed in
            place. One that has parameters on another device stays as it is.

    Returns:
        The model itself.

    Example:
        >>> from ddpm_unet.models import UNet
        >>> unet = accelerate_cpu(UNet(block_out_channels=(32, 64)))
    """
    if not all(parameter.is_cpu for parameter in model.parameters()):
        return model
    for module in model.modules():
        fast = _fast_kind(module)
        if fast is not None:
            module.__class__ = fast
            if fast in SOURCES:
                kernels.functions(SOURCES[fast])
    model._accelerated = True  # type: ignore[assignment]
    return model


def is_accelerated(model: nn.Module) -> bool:
    """Whether `accelerate_cpu` was called with this model."""
    return getattr(model, "_accelerated", False) is True


def _fast_kind(module: nn.Module) -> type[nn.Module] | None:
    kind = type(module)
    if kind is nn.Conv2d:
        assert isinstance(module, nn.Conv2d)
        plain = (module.stride, module.dilation, module.groups, module.padding_mode)
        fits = plain == ((1, 1), (1, 1), 1, "zeros") and module.padding in ((0, 0), (1, 1))
        return FastConv3x3 if fits and module.kernel_size == (3, 3) else None
    if kind is nn.ConvTranspose2d:
        assert isinstance(module, nn.ConvTranspose2d)
        sizes = (module.kernel_size, module.stride, module.padding, module.output_padding)
        fits = sizes == ((2, 2), (2, 2), (0, 0), (0, 0))
        return FastDouble if fits and module.groups == 1 and module.dilation == (1, 1) else None
    return FAST.get(kind)


class FastConv3x3(nn.Conv2d):
    """A 3 x 3 convolution of stride 1, padded by 1 or not, by Winograd's method."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`[B, in_channels, H, W]` to `[B, out_channels, H, W]`, or 2 less without padding."""
        if kernels.winograd_applies(x, weight, bias):
            y = kernels.winograd(x, weight, bias)
            return y if self.padding == (1, 1) else y[..., 1:-1, 1:-1].clone()
        return super()._conv_forward(x, weight, bias)


class FastNormAct(layers.NormAct):
    """Normalisation, modulation and SiLU in one function; computed again, not kept, in training."""

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """See `NormAct`."""
        if transformed():
            return super().forward(x, scale, shift)
        return recompute(self._compute, x, self.weight, self.bias, scale, shift)

    def _compute(
        self, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None
    ) -> Tensor:
        if self.act is F.silu and kernels.norm_silu_applies(x, weight, bias, scale, shift):
            return kernels.norm_silu(x, self.num_groups, weight, bias, self.eps, scale, shift)
        x = torch.group_norm(x, self.num_groups, weight, bias, self.eps)
        if scale is not None and shift is not None:
            x = torch.addcmul(shift, x, 1 + scale)
        if self.act is F.gelu or x.requires_grad:
            return self.act(x)
        return self.act(x, inplace=True)  # type: ignore[call-arg]


class FastAttention(Attention):
    """Attention whose small heads are mixed by a compiled function."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """See `Attention`."""
        if bias is None and kernels.attend_applies(q, k, v, self.heads):
            return kernels.attend(q, k, v, self.heads)
        return super().mix(q, k, v, bias)


class FastSelfAttention(FastAttention, SelfAttention):
    """Attention of the pixels to each other, likewise."""


class FastResidualBlock(layers.ResidualBlock):
    """A residual block that keeps for the backward pass what its normalisations read, no more."""

    def _convolved(self, conv: nn.Module, x: Tensor) -> Tensor:
        return conv(x) if transformed() else keep_recipe(conv, x)

    def _added(self, x: Tensor, other: Tensor) -> Tensor:
        return x + other if transformed() else x.add_(other)

    def resampled(self, x: Tensor, size: Sequence[int] | None) -> Tensor:
        """See `ResidualBlock`."""
        if self.down:
            return halve(x)
        return x if size is None else enlarge(x, size)


class FastDownsample(layers.Downsample):
    """A convolution of stride 2 that does not keep the padded image."""

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """See `Downsample`."""
        if self.pads_far_side:
            x = recompute(layers.pad_far_side, x)
        return keep_recipe(self.conv, x)


class FastUpsample(layers.Upsample):
    """An enlargement and convolution that does not keep the enlarged image."""

    def forward(self, x: Tensor, emb: Tensor | None, size: Sequence[int]) -> Tensor:
        """See `Upsample`."""
        return keep_recipe(self.conv, recompute(partial(enlarge, size=size), x))


class FastConvBlock(ConvBlock):
    """Convolutions whose weights take in the normalisation where nothing is trained."""

    def forward(self, x: Tensor) -> Tensor:
        """See `ConvBlock`."""
        trained = self.training or differentiated(x, *self.parameters())
        if not self.normed or trained or not unseen():
            return super().forward(x)
        for conv, norm, relu in zip(*[iter(self)] * 3, strict=True):
            factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
            weight = conv.weight * factor.reshape(-1, *[1] * (conv.weight.dim() - 1))
            x = relu(conv._conv_forward(x, weight, norm.bias - norm.running_mean * factor))
        return x


class FastPool(Pool):
    """Pooling by maxima of strided views."""

    def forward(self, x: Tensor) -> Tensor:
        """See `Pool`."""
        rest = any(size % self.factor for size in x.shape[2:])
        if not x.is_cpu or rest or not unseen() or differentiated(x):
            return super().forward(x)
        for dim in range(2, x.dim()):  # ten times faster than torch's
            parts = x.unflatten(dim, (-1, self.factor)).unbind(dim + 1)
            x = reduce(torch.maximum, parts)
        return x


class FastDouble(nn.ConvTranspose2d):
    """The up-convolution of stride 2, each pixel becoming 2 x 2, as one product of matrices."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """`[B, channels, H, W]` to `[B, out, 2H, 2W]`."""
        if self.bias is None or not serves(x, self.weight, self.bias):
            return super().forward(x, output_size)
        # The values two by two as complex numbers, which is how they lie in memory: up to three
        # times as fast as torch's.
        weight = self.weight.flatten(1).t()[..., None, None]
        values = F.conv2d(x, weight, self.bias.repeat_interleave(4))
        values = values.unflatten(1, (-1, 2, 2)).permute(3, 0, 1, 4, 2, 5)  # j b k h i w
        pairs = torch.view_as_real(torch.complex(values[0], values[1]))
        return pairs.flatten(4).flatten(2, 3)


def halve(x: Tensor) -> Tensor:
    """As `layers.halve`, up to twenty times faster than torch's pooling on a CPU."""
    if not x.is_cpu or any(size % 2 for size in x.shape[2:]):
        return layers.halve(x)
    for dim in range(2, x.ndim):
        x = torch.add(*x.unflatten(dim, (-1, 2)).unbind(dim + 1))
    return x * 0.5 ** (x.ndim - 2)


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """As `layers.enlarge`, several times faster than torch's interpolation on a CPU."""
    doubled = list(size) == [2 * n for n in x.shape[2:]]
    if transformed() or not x.is_cpu or not x.is_contiguous() or not doubled:
        return layers.enlarge(x, size)
    for dim in reversed(range(2, x.ndim)):
        x = x.repeat_interleave(2, dim)
    return x


FAST: dict[type[nn.Module], type[nn.Module]] = {
    layers.NormAct: FastNormAct,
    layers.ResidualBlock: FastResidualBlock,
    layers.Downsample: FastDownsample,
    layers.Upsample: FastUpsample,
    Attention: FastAttention,
    SelfAttention: FastSelfAttention,
    ConvBlock: FastConvBlock,
    Pool: FastPool,
}
SOURCES: dict[type[nn.Module], str] = {
    FastConv3x3: "winograd",
    FastNormAct: "norm_silu",
    FastAttention: "attend",
    FastSelfAttention: "attend",
}
"""What is compiled for each kind."""

"""Group normalisation and activation, always one after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_unet.models.layers import norm_silu
from ddpm_unet.models.layers.forgetting import forgetful


def gelu(x: Tensor, inplace: bool = False) -> Tensor:
    """GELU with the signature of the other activations; torch has none in place."""
    return F.gelu(x)


ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "gelu": gelu,
    "relu": F.relu,
}


class NormAct(nn.GroupNorm):
    """Group normalisation (Wu 2018), an optional modulation, an activation.

    Args:
        groups: Groups, a divisor of `channels`.
        channels: Channels of the input.
        eps: Added to the variance.
        act: Activation, a key of `ACTIVATIONS`.
    """

    def __init__(self, groups: int, channels: int, eps: float, act: str) -> None:
        super().__init__(groups, channels, eps)
        self.act = ACTIVATIONS[act]

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """`act(norm(x) * (1 + scale) + shift)`.

        Args:
            x: `[B, C, *space]`.
            scale: `[B or 1, C, *ones]`, or None for no modulation.
            shift: Like `scale`.
        """
        return forgetful(self._compute, x, self.weight, self.bias, scale, shift)

    def _compute(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
    ) -> Tensor:
        if self.act is F.silu and norm_silu.applies(x, weight, bias, scale, shift):
            return norm_silu.norm_silu(x, self.num_groups, weight, bias, self.eps, scale, shift)
        x = torch.group_norm(x, self.num_groups, weight, bias, self.eps)
        if scale is not None and shift is not None:
            x = torch.addcmul(shift, x, 1 + scale)
        return self.act(x, inplace=not x.requires_grad)

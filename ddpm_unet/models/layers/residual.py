"""The residual block with time embedding."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ddpm_unet.models.layers.convolution import convolution, zeroed
from ddpm_unet.models.layers.forgetting import without_keeping
from ddpm_unet.models.layers.normalisation import NormAct
from ddpm_unet.models.layers.resampling import enlarge, halve


class ResidualBlock(nn.Module):
    """Two convolutions around the time embedding, added to the input.

    Ho 2020, appendix B; the modulation and the blocks that resample: Nichol 2021, Dhariwal 2021.

    Args:
        dims: 2 or 3.
        in_channels: Channels in.
        out_channels: Channels out.
        emb_channels: Length of the time embedding.
        groups: Groups of both normalisations.
        eps: Epsilon of both normalisations.
        act: Activation.
        dropout: Probability, before the second convolution.
        scale_shift: Modulate the second normalisation instead of adding the embedding.
        output_scale: Divisor of the sum.
        down: Halve the resolution.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        groups: int,
        eps: float,
        act: str,
        dropout: float = 0.0,
        scale_shift: bool = False,
        output_scale: float = 1.0,
        down: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = NormAct(groups, in_channels, eps, act)
        self.conv1 = convolution(dims, in_channels, out_channels)
        self.time_emb_proj = nn.Linear(emb_channels, out_channels * (2 if scale_shift else 1))
        self.norm2 = NormAct(groups, out_channels, eps, act)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = zeroed(convolution(dims, out_channels, out_channels))
        self.conv_shortcut = (
            convolution(dims, in_channels, out_channels, kernel=1, padding=0)
            if in_channels != out_channels
            else None
        )
        self.scale_shift = scale_shift
        self.output_scale = output_scale
        self.down = down

    def forward(self, x: Tensor, emb: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Add to `x` what the block makes of it.

        Args:
            x: `[B, in_channels, *space]`.
            emb: Time embedding `[B or 1, emb_channels]`, already activated.
            size: Spatial size to enlarge to, if any.

        Returns:
            `[B, out_channels, *space]`, with `space` halved by `down` or enlarged to `size`.
        """
        # First the shortcut, whose gradient then comes last and waits for nothing.
        shortcut = self._resampled(x, size)
        if self.conv_shortcut is not None:
            shortcut = self.conv_shortcut(shortcut)
        h = self._resampled(self.norm1(x), size)
        h = without_keeping(self.conv1, h)
        modulation = self.time_emb_proj(emb)
        modulation = modulation.reshape(*modulation.shape, *[1] * (x.ndim - 2))
        if self.scale_shift:
            h = self.norm2(h, *modulation.chunk(2, dim=1))
        else:
            h = self.norm2(h.add_(modulation))
        h = without_keeping(self.conv2, self.dropout(h))
        h = h.add_(shortcut)
        return h if self.output_scale == 1 else h / self.output_scale

    def _resampled(self, x: Tensor, size: Sequence[int] | None) -> Tensor:
        if self.down:
            return halve(x)
        return x if size is None else enlarge(x, size)

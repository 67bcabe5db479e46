"""Checkpoints of other toolkits: what their tensors do not say, and a network of theirs.

What is told has no defaults: what is needed and not given is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddpm_unet.config.network import UNetConfig
from ddpm_unet.config.training import BetaSchedule, PredictionType


@dataclass(frozen=True)
class ForeignConfig:
    """What is needed to know the network.

    Args:
        heads: Attention heads, the same at every level (`num_heads`).
        head_dim: Channels of an attention head, the same at every level (`num_head_channels`).
        qkv_order: guided-diffusion: "heads_first", each head with its queries, keys and values
            (the usual order), or "qkv_first" (`use_new_attention_order`).
        norm_num_groups: MONAI: groups of every group normalisation.
        norm_eps: MONAI: epsilon of every group normalisation.
        prefix: Start of the names of the network's tensors, where a file holds several networks.
    """

    heads: int | None = None
    head_dim: int | None = None
    qkv_order: Literal["heads_first", "qkv_first"] | None = None
    norm_num_groups: int | None = None
    norm_eps: float | None = None
    prefix: str | None = None


@dataclass(frozen=True)
class ForeignProcessConfig:
    """What is needed to sample from the network; all of it, or none for the network alone.

    Args:
        size: Height and width of the images it was trained on.
        prediction_type: What it predicts: "epsilon" (the noise), "sample" (x0) or "v_prediction".
        num_train_timesteps: Length of the chain; not needed where the file has `betas`, nor are
            the following.
        beta_schedule: "linear", "scaled_linear" (latent diffusion), "squaredcos_cap_v2" (cosine) or
            "logistic" (sigmoid of denoising-diffusion-pytorch).
        beta_start: First beta (linear, scaled_linear).
        beta_end: Last beta (linear, scaled_linear).
        drop_variance: Of a network that predicts variances too (`learn_sigma`; as shares between
            the logarithms of the smallest and the largest, as these toolkits do), keep the rest.
    """

    size: int | None = None
    prediction_type: PredictionType | None = None
    num_train_timesteps: int | None = None
    beta_schedule: BetaSchedule | None = None
    beta_start: float | None = None
    beta_end: float | None = None
    drop_variance: bool = False


@dataclass
class LucidrainsConfig(UNetConfig):
    """Architecture of a `LucidrainsUNet`.

    Of the settings of a `UNetConfig` it has in_channels, out_channels, sample_size,
    block_out_channels, dropout, and for a segmentation head norm_num_groups.

    Args:
        mid_channels: Channels of the middle.
        full_attention: Per level from fine to coarse: full attention instead of linear.
        attention_heads: Per level: heads of the attention. The middle has those of the coarsest.
        head_dims: Per level: channels of a head.
        memory: Learned keys and values of every head.
        flip_sin_to_cos: Sines first, always.
        freq_shift: 1, always.
    """

    mid_channels: int = 512
    full_attention: tuple[bool, ...] = (False, False, True)
    attention_heads: tuple[int, ...] = (4, 4, 4)
    head_dims: tuple[int, ...] = (32, 32, 32)
    memory: int = 4
    flip_sin_to_cos: bool = False
    freq_shift: int = 1

    @property
    def channels_below(self) -> tuple[int, ...]:
        """Channels of the next coarser level, or middle, per level."""
        return (*self.block_out_channels[1:], self.mid_channels)

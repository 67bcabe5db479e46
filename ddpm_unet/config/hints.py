"""Checkpoints of other toolkits: what their tensors do not say.

What is told has no defaults: what is needed and not given is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddpm_unet.config.training import BetaSchedule, PredictionType


@dataclass(frozen=True)
class CheckpointHints:
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
class ProcessHints:
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

"""The diffusion process, and what the network predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PredictionType = Literal["epsilon", "sample", "v_prediction"]
EPSILON_AT_ZERO_SNR = (
    "rescale_betas_zero_snr: with prediction_type epsilon the last timestep says nothing of the "
    "image; take v_prediction or sample"
)
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "logistic"]
VarianceType = Literal["fixed_small", "fixed_large", "learned_range"]


@dataclass
class DiffusionConfig:
    """The forward process and what the network predicts.

    Args:
        num_train_timesteps: Length T of the chain.
        beta_schedule: "linear" (Ho 2020), "scaled_linear" (latent diffusion),
            "squaredcos_cap_v2" (cosine, Nichol 2021) or "logistic" (sigmoid, Jabri 2022, the
            usual one of denoising-diffusion-pytorch).
        beta_start: First beta (linear, scaled_linear).
        beta_end: Last beta (linear, scaled_linear).
        rescale_betas_zero_snr: Leave nothing of the image at the last timestep, where sampling
            begins (Lin 2023); with prediction type "sample" or "v_prediction" only.
        prediction_type: "epsilon" (the noise), "sample" (x0) or "v_prediction" (Salimans 2022).
        min_snr_gamma: Min-SNR loss weighting (Hang 2023, gamma = 5); null for the plain loss.
        variance_type: Variance of a reverse step: "fixed_small" (that of the posterior, Ho 2020),
            "fixed_large" (beta), or "learned_range": the network predicts one between the two, in
            as many channels again (Nichol 2021).
        vlb_weight: "learned_range": weight of the variational bound, in bits per dimension, in
            the hybrid loss (Nichol 2021, eq. 16).
        clip_sample: Images that are predicted on the way are kept within [-1, 1]. Latents never
            are.
    """

    num_train_timesteps: int = 1000
    beta_schedule: BetaSchedule = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    rescale_betas_zero_snr: bool = False
    prediction_type: PredictionType = "epsilon"
    min_snr_gamma: float | None = None
    variance_type: VarianceType = "fixed_small"
    vlb_weight: float = 0.001
    clip_sample: bool = True

    def output_channels(self, image_channels: int) -> int:
        """Channels of a prediction for images of so many."""
        return image_channels * (2 if self.variance_type == "learned_range" else 1)

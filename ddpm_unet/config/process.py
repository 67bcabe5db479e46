"""The diffusion process, and what the network predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ddpm_unet.errors import UserError

PredictionType = Literal["epsilon", "sample", "v_prediction"]
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
        snr_shift: The resolution that the schedule was made for over that of the images, so that
            large ones, which noise hides less, get more of it (Hoogeboom 2023); 1 for none.
        min_snr_gamma: Min-SNR loss weighting (Hang 2023, gamma = 5); null for the plain loss.
        p2_gamma: P2 loss weighting (Choi 2022, gamma = 0.5 or 1); null for the plain loss.
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
    snr_shift: float = 1.0
    min_snr_gamma: float | None = None
    p2_gamma: float | None = None
    variance_type: VarianceType = "fixed_small"
    vlb_weight: float = 0.001
    clip_sample: bool = True

    @property
    def loss_options(self) -> dict[str, Any]:
        """The settings that are of the loss, by argument of `GaussianDiffusion.losses`.

        Raises:
            UserError: Two weightings.
        """
        if self.min_snr_gamma is not None and self.p2_gamma is not None:
            raise UserError("min_snr_gamma and p2_gamma: are two weightings; set one to null")
        options: dict[str, Any] = {"vlb_weight": self.vlb_weight}
        for weighting, gamma in (("min_snr", self.min_snr_gamma), ("p2", self.p2_gamma)):
            if gamma is not None:
                options |= {"weighting": weighting, "gamma": gamma}
        return options

    def output_channels(self, image_channels: int) -> int:
        """Channels of a prediction for images of so many."""
        return image_channels * (2 if self.variance_type == "learned_range" else 1)

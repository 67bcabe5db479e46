"""What a network may predict, and how x_0 and the noise follow from it.

A prediction is a mixture p x_0 + q eps of image and noise. Together with
x_t = a x_0 + s eps, a = sqrt(abar) and s = sqrt(1 - abar), it makes two linear equations;
everything here is their solution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_unet.config import PredictionType
from ddpm_unet.diffusion.schedule import snr


class Mixture(NamedTuple):
    """Coefficients of first + second, each of the shape of abar."""

    first: Tensor
    second: Tensor


def target_mixture(prediction_type: PredictionType, abar: Tensor) -> Mixture:
    """Coefficients (p, q) of the target p x_0 + q eps.

    "epsilon" is the noise (Ho 2020, eq. 14), "sample" the image, "v_prediction" the velocity
    a eps - s x_0 (Salimans 2022, arXiv:2202.00512, section 4).
    """
    zero, one = torch.zeros_like(abar), torch.ones_like(abar)
    if prediction_type == "epsilon":
        return Mixture(zero, one)
    if prediction_type == "sample":
        return Mixture(one, zero)
    if prediction_type == "v_prediction":
        return Mixture(-(1 - abar).sqrt(), abar.sqrt())
    raise ValueError(
        f"prediction_type {prediction_type!r} is none of epsilon, sample, v_prediction"
    )


def _determinant(prediction_type: PredictionType, abar: Tensor) -> Tensor:
    p, q = target_mixture(prediction_type, abar)
    return abar.sqrt() * q - (1 - abar).sqrt() * p


def image_mixture(prediction_type: PredictionType, abar: Tensor) -> Mixture:
    """Coefficients of x_t and of the prediction whose sum is x_0."""
    _, q = target_mixture(prediction_type, abar)
    determinant = _determinant(prediction_type, abar)
    return Mixture(q / determinant, -(1 - abar).sqrt() / determinant)


def noise_mixture(prediction_type: PredictionType, abar: Tensor) -> Mixture:
    """Coefficients of x_t and of the prediction whose sum is eps."""
    p, _ = target_mixture(prediction_type, abar)
    determinant = _determinant(prediction_type, abar)
    return Mixture(-p / determinant, abar.sqrt() / determinant)


def mean_channels(prediction: Tensor, channels: int) -> Tensor:
    """A prediction `[B, C or 2 C, ...]` without what it says of variances, `[B, C, ...]`."""
    return prediction if prediction.shape[1] == channels else prediction[:, :channels]


def min_snr_weight(prediction_type: PredictionType, abar: Tensor, gamma: float) -> Tensor:
    """Min-SNR weight of the squared error of the prediction (Hang 2023, arXiv:2303.09556).

    An error of x_0 weighs min(SNR, gamma) (eq. 6). An error of the prediction is an error of
    x_0 times its coefficient in x_0, so that epsilon gets min(SNR, gamma) / SNR and v
    min(SNR, gamma) / (SNR + 1).
    """
    return snr(abar).clamp(max=gamma) * image_mixture(prediction_type, abar).second ** 2

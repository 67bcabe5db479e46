"""Data whose best denoiser is known: mixtures of Gaussians, in float64.

Written without the package's own formulas, which it is here to judge. A vector of the data lies
along the channels of an image, each pixel is an independent draw.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ddpm_unet.diffusion.process import GaussianDiffusion


class Mixture:
    """Sum of weights[k] N(means[k], covariances[k])."""

    def __init__(self, weights: list[float], means: list, covariances: list) -> None:
        self.weights = np.array(weights)
        self.means = np.array(means, dtype=float)
        self.covariances = np.array(covariances, dtype=float)

    @property
    def mean(self) -> np.ndarray:
        return self.weights @ self.means

    @property
    def covariance(self) -> np.ndarray:
        centred = self.means - self.mean
        between = np.einsum("k,ki,kj->ij", self.weights, centred, centred)
        return between + np.einsum("k,kij->ij", self.weights, self.covariances)

    def gain(self, k: int, abar: float) -> np.ndarray:
        """Regression of x_0 on x_t within a component."""
        total = abar * self.covariances[k] + (1 - abar) * np.eye(len(self.means[k]))
        return math.sqrt(abar) * self.covariances[k] @ np.linalg.inv(total)

    def image(self, x: Tensor, abar: float) -> Tensor:
        """E[x_0 | x_t = x], `float64 [N, d]`."""
        likelihoods, images = [], []
        for k, weight in enumerate(self.weights):
            mean = torch.from_numpy(self.means[k])
            total = abar * self.covariances[k] + (1 - abar) * np.eye(len(mean))
            residual = x - math.sqrt(abar) * mean
            images.append(mean + residual @ torch.from_numpy(self.gain(k, abar).T))
            if len(self.weights) == 1:
                return images[0]
            whitened = residual @ torch.from_numpy(np.linalg.inv(np.linalg.cholesky(total)).T)
            scale = math.log(weight) - 0.5 * np.linalg.slogdet(total)[1]
            likelihoods.append(scale - 0.5 * whitened.square().sum(1))
        posterior = torch.stack(likelihoods).softmax(0)
        return sum(p[:, None] * image for p, image in zip(posterior, images, strict=True))


class Oracle:
    """The best denoiser of a data distribution, for a prediction type."""

    def __init__(self, data: Mixture, diffusion: GaussianDiffusion) -> None:
        self.data = data
        self.prediction_type = diffusion.prediction_type
        self.table = diffusion.alphas_cumprod_float64.numpy()

    def abar(self, t: float) -> float:
        """As a network would between two timesteps: smoothly, in the log-SNR."""
        logit = np.log(self.table / (1 - self.table))
        return float(1 / (1 + np.exp(-np.interp(t, np.arange(len(logit)), logit))))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        abar = self.abar(float(t[0]))
        vectors = x.double().movedim(1, -1).reshape(-1, x.shape[1])
        image = self.data.image(vectors, abar)
        a, s = math.sqrt(abar), math.sqrt(1 - abar)
        noise = (vectors - a * image) / s
        prediction = {"epsilon": noise, "sample": image, "v_prediction": a * noise - s * image}[
            self.prediction_type
        ]
        pixels = x.movedim(1, -1).shape
        return prediction.reshape(pixels).movedim(-1, 1)


def gaussian_flow(data: Mixture, x: np.ndarray, abar: float) -> np.ndarray:
    """Where the probability-flow ODE takes x `[N, d]` from noise level abar, for one Gaussian.

    Each principal component keeps its standard score (Song 2021, arXiv:2011.13456, eq. 13).
    """
    variances, axes = np.linalg.eigh(data.covariances[0])
    ratio = np.sqrt(variances / (abar * variances + 1 - abar))
    centred = (x - math.sqrt(abar) * data.means[0]) @ axes
    return data.means[0] + (centred * ratio) @ axes.T


def ancestral_moments(
    data: Mixture, table: np.ndarray, timesteps: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance at the end of a DDPM chain (fixed_small) with the best denoiser.

    Exact for one Gaussian: each step draws from q(x_previous | x_t, x_0 = E[x_0 | x_t]), found
    here by adding precisions, so it loses the variance that x_0 has about its expectation.
    """
    d = len(data.means[0])
    mean, covariance = np.zeros(d), np.eye(d)
    for t, previous in zip(timesteps, [*timesteps[1:], None], strict=True):
        gain = data.gain(0, table[t])
        offset = data.means[0] - gain @ data.means[0] * math.sqrt(table[t])
        if previous is None:
            a, b, variance = 1.0, 0.0, 0.0
        else:
            kept = table[t] / table[previous]
            prior, likelihood = 1 / (1 - table[previous]), kept / (1 - kept)
            variance = 1 / (prior + likelihood)
            a = variance * prior * math.sqrt(table[previous])
            b = variance * likelihood / math.sqrt(kept)
        linear = a * gain + b * np.eye(d)
        mean = linear @ mean + a * offset
        covariance = linear @ covariance @ linear.T + variance * np.eye(d)
    return mean, covariance

"""The terms of the bound against closed forms and against integrals, in float64."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.variational_bound import (
    bound_terms,
    gaussian_divergence,
    log_level_probability,
    prior_bits,
)


@pytest.mark.parametrize("offset", [0.0, 0.3, -2.0])
@pytest.mark.parametrize("stds", [(1.0, 1.0), (0.1, 0.2), (0.5, 0.3)])
def test_divergence_is_its_integral(offset, stds):
    first, second = norm(offset, stds[0]), norm(0, stds[1])
    expected, _ = quad(
        lambda x: first.pdf(x) * (first.logpdf(x) - second.logpdf(x)),
        *(offset - 10 * stds[0], offset + 10 * stds[0]),
    )
    logs = [torch.tensor(2 * math.log(std)) for std in stds]
    found = gaussian_divergence(torch.tensor(offset), *logs)
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_divergence_of_almost_the_same_keeps_its_digits():
    wider = torch.tensor(1e-4)
    found = gaussian_divergence(torch.zeros(()), torch.zeros(()), wider)
    assert found.item() == pytest.approx(0.25e-8, rel=1e-3)


@pytest.mark.parametrize("std", [0.003, 0.0075, 0.05, 2.0])
@pytest.mark.parametrize("mean", [-1.0, -0.4, 0.1, 1.02])
def test_level_probabilities_are_integrals_of_a_gaussian(mean, std):
    levels = 2 * torch.arange(256) / 255 - 1
    log_variance = torch.full_like(levels, 2 * math.log(std))
    found = log_level_probability(levels, torch.full_like(levels, mean), log_variance).double()
    centres = 2 * np.arange(256) / 255 - 1
    edges = np.concatenate([[-np.inf], (centres[1:] + centres[:-1]) / 2, [np.inf]])
    expected = norm.logcdf(edges, mean, std)
    upper = norm.logsf(edges, mean, std)
    with np.errstate(invalid="ignore", divide="ignore"):
        low = expected[1:] + np.log(-np.expm1(expected[:-1] - expected[1:]))
        high = upper[:-1] + np.log(-np.expm1(upper[1:] - upper[:-1]))
    expected = torch.from_numpy(np.where(centres < mean, low, high))
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_a_level_far_from_the_mean_has_a_finite_gradient():
    levels = torch.tensor([-1.0, 0.0, 0.5, 1.0])
    log_variance = torch.full_like(levels, 2 * math.log(0.0075), requires_grad=True)
    log_level_probability(levels, 0.1 - levels, log_variance).sum().backward()
    assert torch.isfinite(log_variance.grad).all()


def gaussian_terms(config, mean, std, variances):
    """Expected terms of data N(mean, std^2) with the best denoiser, in bits, `float64 [T]`.

    Args:
        variances: Of each reverse step, `float64 [T]`.
    """
    abar, beta = config.alphas_cumprod_float64.numpy(), np.array(config.betas())
    previous = np.concatenate([[1.0], abar[:-1]])
    posterior = (1 - previous) / (1 - abar) * beta
    left = 1 / (1 / std**2 + abar / (1 - abar))  # Var[x_0 | x_t]
    of_image = np.sqrt(previous) * beta / (1 - abar)
    with np.errstate(divide="ignore"):
        nats = 0.5 * (
            np.log(variances / posterior)
            - 1
            + posterior / variances
            + of_image**2 * left / variances
        )
    # The last step: levels of x_0 against x_1, both Gaussian.
    x0 = mean + std * np.linspace(-5, 5, 4001)
    weights = norm.pdf(x0, mean, std)
    z = np.linspace(-6, 6, 121)
    gain = left[0] * np.sqrt(abar[0]) / (1 - abar[0])
    total = 0.0
    for noise, weight in zip(z, norm.pdf(z) / norm.pdf(z).sum(), strict=True):
        x1 = np.sqrt(abar[0]) * x0 + np.sqrt(1 - abar[0]) * noise
        predicted = left[0] / std**2 * mean + gain * x1
        probability = norm(predicted, np.sqrt(variances[0]))
        inside = probability.cdf(x0 + 1 / 255) - probability.cdf(x0 - 1 / 255)
        total += weight * (weights * -np.log(inside)).sum() / weights.sum()
    nats[0] = total
    return nats / math.log(2)


def variances_of(config, std):
    """Of the reverse steps, and the channels that a network says them with."""
    abar, beta = config.alphas_cumprod_float64, torch.tensor(config.betas(), dtype=torch.float64)
    previous = torch.cat([torch.ones(1).double(), abar[:-1]])
    posterior = (1 - previous) / (1 - abar) * beta
    lowest = posterior.clone()
    lowest[0] = posterior[1]
    if config.variance_type == "fixed_small":
        return lowest, None
    if config.variance_type == "fixed_large":
        largest = beta.clone()
        largest[0] = posterior[1]
        return largest, None
    left = 1 / (1 / std**2 + abar / (1 - abar))
    best = posterior + (previous.sqrt() * beta / (1 - abar)) ** 2 * left
    return best, 2 * (best / lowest).log() / (beta / lowest).log() - 1


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_bound_of_a_gaussian(variance, kind):
    """Term by term; with the best learned variances the bound is the entropy of the levels."""
    mean, std, steps = 0.1, 0.2, 200
    config = GaussianDiffusion(
        num_timesteps=steps, beta_end=0.1, prediction_type=kind, variance_type=variance
    )
    chosen, channels = variances_of(config, std)
    expected = gaussian_terms(config, mean, std, chosen.numpy())
    abar = config.alphas_cumprod_float64
    generator = torch.Generator().manual_seed(0)
    x0 = mean + std * torch.randn(steps, 1, 4000, generator=generator, dtype=torch.float64)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    t = torch.arange(steps)
    a, s = abar.sqrt()[:, None, None], (1 - abar).sqrt()[:, None, None]
    noisy = a * x0 + s * noise
    left = 1 / (1 / std**2 + (a / s) ** 2)
    image = left * (mean / std**2 + a / s**2 * noisy)
    eps = (noisy - a * image) / s
    prediction = eps if kind == "epsilon" else a * eps - s * image
    if channels is not None:
        said = channels[:, None, None].expand_as(prediction)
        prediction = torch.cat([prediction, said], dim=1)
    found = bound_terms(config, x0.float(), noisy.float(), t, prediction.float())
    scatter = 6 * math.sqrt(2 / 4000)
    np.testing.assert_allclose(found.bits.numpy(), expected, rtol=scatter, atol=2e-5)
    np.testing.assert_allclose(found.image_error.numpy(), left.flatten().numpy(), rtol=scatter)
    of_noise = (left * (a / s) ** 2).flatten().numpy()
    np.testing.assert_allclose(found.noise_error.numpy(), of_noise, rtol=scatter)
    prior = prior_bits(config, x0.float()).mean().item()
    last = float(abar[-1])
    average = 0.5 * (last * (mean**2 + std**2) - last - math.log1p(-last)) / math.log(2)
    assert prior == pytest.approx(average, rel=0.05)
    centres = 2 * np.arange(256) / 255 - 1
    inside = norm.cdf(centres + 1 / 255, mean, std) - norm.cdf(centres - 1 / 255, mean, std)
    entropy = -(inside * np.log2(inside)).sum()
    gap = expected.sum() + average - entropy
    low, high = {"fixed_small": (1, 5), "fixed_large": (0.01, 0.5), "learned_range": (-1e-3, 5e-3)}[
        variance
    ]
    assert low < gap < high, gap


def test_clipping_is_that_of_the_predicted_image():
    config = GaussianDiffusion(prediction_type="sample")
    images = torch.full((1, 1, 2, 2), 0.9)
    prediction = torch.full_like(images, 1.5)
    t = torch.tensor([300])
    plain, clipped = (
        bound_terms(config, images, images, t, prediction, clip).image_error.item()
        for clip in (False, True)
    )
    assert (plain, clipped) == (pytest.approx(0.36), pytest.approx(0.01))

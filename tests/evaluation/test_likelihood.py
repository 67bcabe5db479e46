import json
import math

import numpy as np
import pytest
import torch

from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.variational_bound import bound_terms, prior_bits
from ddpm_unet.evaluation.likelihood import measure, parts_of, plot_likelihood

STEPS, MEAN, STD = 40, 0.1, 0.2


@pytest.mark.parametrize("parts", [2, 7, 40, 1000, 5000])
@pytest.mark.parametrize("timesteps", [1, 2, 40, 1000])
def test_parts_are_the_whole_chain(timesteps, parts):
    found = parts_of(timesteps, parts)
    assert [t for part in found for t in part] == list(range(timesteps))
    assert len(found[0]) == 1
    assert len(found) <= max(parts, 2)
    if parts >= timesteps:
        assert all(len(part) == 1 for part in found)


def config_of(variance):
    return GaussianDiffusion(num_timesteps=STEPS, beta_end=0.3, variance_type=variance)


def best(config):
    """The best denoiser of pixels N(MEAN, STD^2), with the largest variances if it says some."""
    table = config.alphas_cumprod_float64.float()

    def denoiser(x, t):
        abar = table[t].reshape(-1, 1, 1, 1)
        left = 1 / (1 / STD**2 + abar / (1 - abar))
        image = left * (MEAN / STD**2 + abar.sqrt() / (1 - abar) * x)
        noise = (x - abar.sqrt() * image) / (1 - abar).sqrt()
        return torch.cat([noise, torch.ones_like(noise)], dim=1)

    return denoiser


def batches(count, denoiser, size=32):
    generator = torch.Generator().manual_seed(1)
    images = (MEAN + STD * torch.randn(count, 1, size, size, generator=generator)).clamp(-1, 1)
    images = ((images + 1) * 127.5).round() / 127.5 - 1
    return [(range(a, a + 4), images[a : a + 4], denoiser) for a in range(0, count, 4)]


@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
@pytest.mark.parametrize("parts", [8, STEPS])
def test_the_whole_is_the_sum_of_all_timesteps(variance, parts):
    """Whichever timesteps are asked, the bound is that of every one, within its standard error."""
    config = config_of(variance)
    denoiser = best(config)
    found = measure(batches(24, denoiser), config, parts)
    exact = []
    generator = torch.Generator().manual_seed(2)
    for _, images, _ in batches(24, denoiser):
        noise = torch.randn(images.shape, generator=generator)
        total = prior_bits(config, images)
        for t in range(STEPS):
            abar = float(config.alphas_cumprod_float64[t])
            noisy = abar**0.5 * images + (1 - abar) ** 0.5 * noise
            time = torch.full((len(images),), t)
            total = (
                total + bound_terms(config, images, noisy, time, denoiser(noisy, time), True).bits
            )
        exact.append(total)
    exact = torch.cat(exact).double()
    error = math.hypot(found.standard_error, float(exact.std()) / math.sqrt(24))
    assert abs(found.bits - float(exact.mean())) < 5 * error + 1e-4
    assert found.standard_error < 0.6
    assert found.bits == pytest.approx(found.last + found.steps + found.prior)
    assert found.bits == pytest.approx(sum(p.bits for p in found.parts) + found.prior)
    assert found.images == 24


def test_errors_of_the_best_denoiser_are_the_posterior_variances():
    config = config_of("fixed_small")
    found = measure(batches(8, best(config)), config, STEPS)
    abar = config.alphas_cumprod_float64.numpy()
    left = 1 / (1 / STD**2 + abar / (1 - abar))
    scatter = 6 * math.sqrt(2 / (8 * 32 * 32))
    np.testing.assert_allclose([p.image_error for p in found.parts], left, rtol=scatter + 1e-3)
    errors = left * abar / (1 - abar)
    np.testing.assert_allclose([p.noise_error for p in found.parts], errors, rtol=scatter + 1e-3)


def test_an_image_has_the_same_bits_in_any_batch():
    config = config_of("fixed_large")
    ((_, images, denoiser),) = batches(4, best(config))
    together = measure([(range(4), images, denoiser)], config, 5)
    alone = [measure([([i], images[i : i + 1], denoiser)], config, 5).bits for i in range(4)]
    assert together.bits == pytest.approx(np.mean(alone), rel=1e-6)
    assert together.standard_error == pytest.approx(np.std(alone, ddof=1) / 2, rel=1e-4)
    seen: list[torch.Tensor] = []

    def merge(rows):
        seen.append(rows)
        return torch.cat(seen)

    for numbers in ([0, 1], [], [2, 3]):  # as three processes deal them
        share = [(numbers, images[numbers], denoiser)] if numbers else []
        found = measure(share, config, 5, merge=merge)
    assert found.bits == pytest.approx(together.bits, rel=1e-6)
    other = measure([(range(4), images, denoiser)], config, 5, seed=1)
    assert other.bits != together.bits


def test_a_plot(tmp_path):
    config = config_of("fixed_small")
    found = measure(batches(4, best(config), 8), config, 5)
    plot_likelihood(found, tmp_path / "likelihood.png")
    assert (tmp_path / "likelihood.png").stat().st_size > 10_000
    assert json.dumps([part.bits for part in found.parts])

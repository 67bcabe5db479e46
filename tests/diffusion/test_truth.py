"""The reverse loop against data whose best denoiser and whose answer are known."""

import numpy as np
import pytest
from oracles import Mixture, Oracle, ancestral_moments, gaussian_flow

from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import LinearSampler
from ddpm_unet.diffusion.sampling import sample

TYPES = ["epsilon", "sample", "v_prediction"]
GAUSSIAN = Mixture([1.0], [[0.2, -0.1]], [[[0.04, 0.015], [0.015, 0.01]]])
MIXTURE = Mixture(
    [0.3, 0.7],
    [[-0.5, 0.2], [0.4, -0.3]],
    [[[0.01, 0.004], [0.004, 0.005]], [[0.0225, -0.005], [-0.005, 0.01]]],
)


def vectors(images):
    return images.double().movedim(1, -1).reshape(-1, images.shape[1]).numpy()


def draw(data, name, steps, size=128, **settings):
    """Vectors of a sampling job of two images, `float64 [2 * size * size, d]`."""
    config = GaussianDiffusion(**settings)
    options = {"diffusion": config, "seed": 0, "indices": range(2), "steps": steps}
    return vectors(sample(Oracle(data, config), name, (2, size, size), **options))


def check_moments(samples, mean, covariance, sigmas=5.0, bias=0.0):
    """Within sampling error: of whitened samples, the mean is 0 and the covariance 1."""
    white = np.linalg.solve(np.linalg.cholesky(covariance), (samples - mean).T)
    error = 1 / np.sqrt(len(samples))
    assert np.abs(white.mean(1)).max() < sigmas * error + bias
    deviation = np.abs(white @ white.T / len(samples) - np.eye(len(white))).max()
    assert deviation < sigmas * np.sqrt(2) * error + bias


@pytest.mark.parametrize(
    ("steps", "kind"), [(1000, "epsilon"), (250, "v_prediction"), *((50, kind) for kind in TYPES)]
)
def test_ddpm_of_a_gaussian(steps, kind):
    samples = draw(GAUSSIAN, "ddpm", steps, size=96, prediction_type=kind)
    config = GaussianDiffusion()
    times = LinearSampler(config, "ddpm").timesteps(steps)
    chain = ancestral_moments(GAUSSIAN, config.alphas_cumprod_float64.numpy(), times)
    check_moments(samples, *chain)
    # a chain of few steps loses variance; its limit is the data
    np.testing.assert_allclose(chain[0], GAUSSIAN.mean, atol=1e-4)
    lost = {1000: 0.07, 250: 0.19, 50: 0.48}[steps]
    np.testing.assert_allclose(chain[1], GAUSSIAN.covariance, rtol=lost)


@pytest.mark.parametrize("schedule", ["scaled_linear", "squaredcos_cap_v2"])
def test_ddpm_of_a_gaussian_under_other_schedules(schedule):
    samples = draw(GAUSSIAN, "ddpm", 250, beta_schedule=schedule)
    config = GaussianDiffusion(beta_schedule=schedule)
    times = LinearSampler(config, "ddpm").timesteps(250)
    check_moments(
        samples, *ancestral_moments(GAUSSIAN, config.alphas_cumprod_float64.numpy(), times)
    )


@pytest.mark.parametrize("steps", [1000, 250, 50])
def test_ddpm_of_a_mixture(steps):
    """The chain resolves the components early on, then treats each as one Gaussian."""
    samples = draw(MIXTURE, "ddpm", steps, size=64)
    config = GaussianDiffusion()
    table = config.alphas_cumprod_float64.numpy()
    times = LinearSampler(config, "ddpm").timesteps(steps)
    parts = [
        ancestral_moments(Mixture([1.0], [mean], [covariance]), table, times)
        for mean, covariance in zip(MIXTURE.means, MIXTURE.covariances, strict=True)
    ]
    chain = Mixture(MIXTURE.weights, *zip(*parts, strict=True))
    bias = {1000: 0.0, 250: 0.015, 50: 0.08}[steps]
    check_moments(samples, chain.mean, chain.covariance, bias=bias)
    assert np.mean(samples[:, 0] < -0.05) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize(("steps", "bias"), [(100, 0.015), (50, 0.025), (20, 0.09)])
def test_dpm_sde(data, steps, bias):
    samples = draw(data, "dpm++sde", steps, size=96)
    check_moments(samples, data.mean, data.covariance, bias=bias)


# largest error after so many steps, in units of the data's deviation
ODE_ERRORS = {
    "ddim": {20: 0.35, 50: 0.16, 250: 0.04},
    "euler": {20: 0.20, 50: 0.09, 250: 0.02},
    "heun": {20: 0.11, 50: 0.015, 250: 0.006},
    "dpm++": {10: 0.05, 20: 0.04, 50: 0.015, 250: 0.01},
    "unipc": {10: 0.07, 20: 0.045, 50: 0.018, 250: 0.016},
}


@pytest.mark.parametrize(
    ("schedule", "kind"), [("linear", "epsilon"), ("squaredcos_cap_v2", "v_prediction")]
)
@pytest.mark.parametrize("name", ODE_ERRORS)
def test_deterministic_samplers_solve_the_ode(name, schedule, kind):
    config = GaussianDiffusion(beta_schedule=schedule, prediction_type=kind)
    oracle = Oracle(GAUSSIAN, config)
    start = []

    def denoiser(x, t):
        start.append(x.clone())  # at unit variance, whatever scale the scheduler works in
        return oracle(x, t)

    for steps, bound in ODE_ERRORS[name].items():
        start.clear()
        images = sample(
            denoiser, name, (2, 8, 8), diffusion=config, seed=0, indices=[0], steps=steps
        )
        exact = gaussian_flow(GAUSSIAN, vectors(start[0]), oracle.table[-1])
        error = np.sqrt(np.mean((vectors(images) - exact) ** 2))
        assert error / np.sqrt(np.trace(GAUSSIAN.covariance) / 2) < bound, steps

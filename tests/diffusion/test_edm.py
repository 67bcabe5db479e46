"""EDM against Gaussians in closed form, and against diffusers' EDM schedulers."""

import math

import diffusers
import pytest
import torch

from ddpm_unet.config import DiffusionConfig
from ddpm_unet.diffusion.conditioning import own_estimate
from ddpm_unet.diffusion.edm import EDMDiffusion, diffusion_of_scheduler, make_diffusion
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import SolverSampler, make_sampler, saved_sampler
from ddpm_unet.diffusion.sampling import Noise, sample
from ddpm_unet.diffusion.solvers import SOLVERS, euler, heun
from ddpm_unet.errors import UserError

EDM = EDMDiffusion()
MEAN, STD = 0.3, 0.4
SHAPE = (1, 16, 16)


def best(x, t):
    """F of N(MEAN, STD^2): the network's side of the best denoiser."""
    sigma = torch.exp(4 * t.double()).reshape(-1, *[1] * (x.ndim - 1))
    c_in, _, c_skip, c_out = EDM.preconditioning(sigma)
    noisy = x / c_in
    image = (STD**2 * noisy + sigma**2 * MEAN) / (STD**2 + sigma**2)
    return ((image - c_skip * noisy) / c_out).float()


def exact(noise, sigma):
    """Where the probability-flow ODE leads from noise at a level (Karras 2022, eq. 4)."""
    return MEAN + (noise - MEAN) * STD / math.hypot(STD, sigma)


def test_preconditioning_is_that_of_the_paper_and_of_diffusers():
    """Input and target have unit variance (Karras 2022, appendix B.6), at every level."""
    theirs = diffusers.EDMEulerScheduler()
    generator = torch.Generator().manual_seed(0)
    for sigma in (0.002, 0.1, 0.5, 3.0, 80.0):
        images = 0.5 * torch.randn(4, 1, 100, 100, generator=generator)
        noise = torch.randn(images.shape, generator=generator)
        t = torch.full((4,), sigma)
        c_in, c_noise, _, _ = EDM.preconditioning(sigma)
        x = EDM.add_noise(images, t, noise)
        target = EDM.target(images, t, noise)
        assert (c_in * x).std().item() == pytest.approx(1, abs=0.02)
        assert target.std().item() == pytest.approx(1, abs=0.02)
        torch.testing.assert_close(EDM.predict_x0(x, t, target), images, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(EDM.predict_noise(x, t, target), noise, rtol=1e-2, atol=1e-2)
        level = torch.tensor(sigma)
        seen = theirs.precondition_inputs(x, level)
        torch.testing.assert_close(c_in * x, seen)
        assert c_noise == pytest.approx(float(theirs.precondition_noise(level)))
        known = theirs.precondition_outputs(x, target, level)
        torch.testing.assert_close(EDM.predict_x0(x, t, target), known, rtol=1e-4, atol=1e-5)
        assert EDM.snr(t)[0] == pytest.approx(sigma**-2)


def test_noise_levels_are_log_normal_and_functions_of_the_position():
    sigma, noise = EDM.draw(0, range(20_000), (2,))
    logs = sigma.double().log()
    assert logs.mean() == pytest.approx(-1.2, abs=0.05)
    assert logs.std() == pytest.approx(1.2, abs=0.05)
    shares = (logs < torch.tensor([[-2.4], [-1.2], [0.0]])).double().mean(1)
    torch.testing.assert_close(
        shares, torch.tensor([0.1587, 0.5, 0.8413]).double(), rtol=0, atol=0.02
    )
    again, same = EDM.draw(0, [7, 3], (2,))
    assert torch.equal(again, sigma[[7, 3]])
    assert torch.equal(same, noise[[7, 3]])


def test_the_loss_of_the_best_denoiser_is_the_posterior_variance():
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([0.02, 0.3, 2.0, 50.0])
    images = MEAN + STD * torch.randn(4, 1, 200, 200, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    _, _, _, c_out = EDM.preconditioning(t)
    left = STD**2 * t**2 / (STD**2 + t**2)  # Var[x_0 | x]
    losses = EDM.losses(best, images, t, noise)
    torch.testing.assert_close(losses, left / c_out**2, rtol=0.03, atol=0)
    assert EDM.loss(best, images, t, noise) == losses.mean()
    drawn = EDM.losses(best, images, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn, EDM.losses(best, images, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(UserError, match="has its own"):
        EDM.losses(best, images, weighting="min_snr")


@pytest.mark.parametrize("name", SOLVERS)
def test_samplers_draw_the_data(name):
    images = sample(best, name, (1, 64, 64), diffusion=EDM, seed=0, indices=range(2), steps=40)
    assert images.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert images.std().item() == pytest.approx(STD, rel=0.08)


def test_orders_of_convergence():
    """Halving the steps' width halves Euler's error, quarters Heun's (Karras 2022, appendix D)."""
    noise = Noise(0, range(2), SHAPE, "cpu").draw(EDM.sigma_max).clone()
    known = exact(noise, EDM.sigma_max)
    for solver, ratio in ((euler, 2), (heun, 4)):
        errors = []
        for steps in (40, 80):
            found = sample(
                best, solver, SHAPE, diffusion=EDM, seed=0, indices=range(2), steps=steps
            )
            errors.append((found - known).abs().max().item())
        assert errors[0] / errors[1] == pytest.approx(ratio, rel=0.35), solver
    assert errors[1] < 5e-3


def test_churn_is_heuns_method_without_noise():
    def still(denoise, x, sigmas, noise):
        return SOLVERS["churn"](denoise, x, sigmas, noise, s_churn=0.0)

    options = {"diffusion": EDM, "seed": 0, "indices": [0], "steps": 8}
    calm, plain = (sample(best, s, SHAPE, **options) for s in (still, heun))
    assert torch.equal(calm, plain)
    stirred, again = (sample(best, "churn", SHAPE, **options) for _ in range(2))
    assert torch.equal(stirred, again)
    assert not torch.allclose(stirred, plain, atol=0.1)


@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_diffusers_schedulers_are_read_and_written(kind):
    diffusion = EDMDiffusion(sigma_data=0.6, sigma_max=60.0, rho=5.0, p_mean=-0.4)
    saved = diffusion.scheduler_config()
    assert EDMDiffusion.from_scheduler_config(saved).config == diffusion.config
    theirs = getattr(diffusers, kind).from_config(saved)
    theirs.set_timesteps(9)
    levels = diffusion.sigmas(9)
    torch.testing.assert_close(theirs.sigmas.double()[:9], levels[:9], rtol=1e-5, atol=0)
    times = torch.tensor([diffusion.preconditioning(s)[1] for s in levels[:9].tolist()])
    torch.testing.assert_close(theirs.timesteps, times, rtol=1e-5, atol=1e-5)
    read = diffusion_of_scheduler({**theirs.config, "_class_name": kind})
    assert read.config == {**diffusion.config, "p_mean": read.p_mean}
    sampler = saved_sampler({**EDM.scheduler_config(), "_class_name": kind}, EDM)
    images = sample(best, sampler, (1, 64, 64), seed=0, indices=range(2), steps=40)
    assert images.std().item() == pytest.approx(STD, rel=0.08)


def test_settings_make_either_process():
    config = DiffusionConfig(process="edm", sigma_data=0.3)
    assert make_diffusion(config).config == EDMDiffusion(sigma_data=0.3).config
    assert isinstance(make_diffusion(DiffusionConfig()), GaussianDiffusion)
    for wrong in ({"sigma_min": 100.0}, {"sigma_data": 0.0}):
        with pytest.raises(UserError, match="give positive ones"):
            EDMDiffusion(**wrong)
    with pytest.raises(UserError, match="prediction_type"):
        diffusion_of_scheduler(
            {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}
        )
    with pytest.raises(UserError, match="is of the process ddpm"):
        make_sampler("ddim", EDM)
    assert isinstance(make_sampler("dpm++", EDM), SolverSampler)


def test_self_conditioning_is_given_the_image():
    x0, t = torch.rand(40, 1, 4, 4), torch.full((40,), 0.1)
    x = EDM.add_noise(x0, t, torch.randn(x0.shape))
    found = own_estimate(EDM, lambda x, t, estimate: best(x, t), x, t, 0, range(40))
    chosen = (found != 0).flatten(1).any(1)
    known = (STD**2 * x + 0.01 * MEAN) / (STD**2 + 0.01)
    assert 8 < chosen.sum() < 32
    torch.testing.assert_close(found[chosen], known[chosen], rtol=1e-3, atol=1e-3)

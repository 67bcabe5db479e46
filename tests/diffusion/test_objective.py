import math

import diffusers
import pytest
import torch
from ddpm_unet.diffusion.objective import Objective
from oracles import Mixture, Oracle

from ddpm_unet.config import DiffusionConfig
from ddpm_unet.errors import UserError

TYPES = ["epsilon", "sample", "v_prediction"]


def batch(objective, n=6, shape=(3, 4, 5)):
    images = torch.rand(n, *shape) * 2 - 1
    return images, *objective.draw(0, range(n), shape)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_noising_and_targets_are_those_of_diffusers(schedule):
    scheduler = diffusers.DDPMScheduler(beta_schedule=schedule)
    for kind in TYPES:
        objective = Objective(DiffusionConfig(beta_schedule=schedule, prediction_type=kind))
        images, t, noise = batch(objective)
        noisy = objective.add_noise(images, t, noise)
        torch.testing.assert_close(noisy, scheduler.add_noise(images, noise, t))
        expected = {
            "epsilon": noise,
            "sample": images,
            "v_prediction": scheduler.get_velocity(images, noise, t),
        }[kind]
        torch.testing.assert_close(objective.target(images, t, noise), expected)


def test_loss_is_the_mean_squared_error_of_each_image():
    objective = Objective(DiffusionConfig())
    images, t, noise = batch(objective)

    def denoiser(x, timesteps, shift):
        assert torch.equal(timesteps, t)
        assert torch.equal(x, objective.add_noise(images, t, noise))
        return noise + shift[:, None, None, None]

    shift = torch.arange(6.0)
    losses = objective.losses(denoiser, images, t, noise, shift=shift)
    torch.testing.assert_close(losses, shift**2)


def test_min_snr_makes_the_three_losses_one():
    """The same denoiser has the same weighted loss, in whichever words it predicts."""
    data = Mixture([1.0], [[0.2, -0.1]], [[[0.04, 0.015], [0.015, 0.01]]])
    images, _, noise = batch(Objective(DiffusionConfig()), 5, (2, 8, 8))
    t = torch.tensor([5, 50, 300, 700, 999])
    losses = []
    for kind in TYPES:
        config = DiffusionConfig(prediction_type=kind, min_snr_gamma=5.0)
        objective, oracle = Objective(config), Oracle(data, config)

        def denoiser(x, timesteps, oracle=oracle):
            return torch.cat([oracle(x[i : i + 1], timesteps[i : i + 1]) for i in range(5)])

        losses.append(objective.losses(denoiser, images, t, noise))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-3, atol=0)


def test_loss_of_the_best_denoiser_is_the_posterior_variance():
    config = DiffusionConfig()
    objective = Objective(config)
    oracle = Oracle(Mixture([1.0], [[0.3]], [[[0.04]]]), config)
    noise = objective.draw(0, [5], (1, 300, 300))[1]
    images = 0.3 + 0.2 * torch.randn(noise.shape, generator=torch.Generator().manual_seed(1))
    for t in (10, 200, 500):
        abar = oracle.abar(t)
        expected = abar * 0.04 / (abar * 0.04 + 1 - abar)  # Var[eps | x_t]
        loss = objective.losses(oracle, images, torch.tensor([t]), noise)
        assert loss.item() == pytest.approx(expected, rel=6 * math.sqrt(2 / noise.numel()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_float32_under_autocast(dtype):
    objective = Objective(DiffusionConfig())
    images, t, noise = batch(objective)
    network = torch.nn.Conv2d(3, 3, 1)
    seen = []

    def denoiser(x, _):
        seen.append(network(x))
        return seen[0]

    with torch.autocast("cpu", dtype=dtype):
        losses = objective.losses(denoiser, images, t, noise)
    assert seen[0].dtype == dtype
    assert losses.dtype == torch.float32
    expected = (seen[0].float() - noise).square().mean((1, 2, 3))
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
    losses.mean().backward()
    assert network.weight.grad.abs().sum() > 0


def test_draws_depend_on_seed_and_position_only():
    objective = Objective(DiffusionConfig())
    t, noise = objective.draw(7, range(10), (3, 8, 8))
    assert t.dtype == torch.int64
    assert noise.dtype == torch.float32
    for part in ([3], [9, 0, 4]):
        t_part, noise_part = objective.draw(7, part, (3, 8, 8))
        assert torch.equal(t_part, t[part])
        assert torch.equal(noise_part, noise[part])
    t_other, noise_other = objective.draw(8, range(10), (3, 8, 8))
    assert not torch.equal(t, t_other)
    assert not torch.equal(noise, noise_other)


def test_timesteps_cover_the_chain_evenly():
    t, _ = Objective(DiffusionConfig(num_train_timesteps=10)).draw(0, range(20_000), ())
    counts = torch.bincount(t, minlength=10)
    assert counts.shape == (10,)
    assert (counts - 2000).abs().max() < 5 * math.sqrt(20_000 * 0.1 * 0.9)


def test_a_weighting_that_is_not_positive_is_refused():
    with pytest.raises(UserError, match="min_snr_gamma"):
        Objective(DiffusionConfig(min_snr_gamma=0.0))

"""Variances that a network predicts: the loss that teaches them, and the steps that use them."""

import diffusers
import pytest
import torch
from ddpm_unet.diffusion.conditions import SelfConditioning
from ddpm_unet.diffusion.guidance import beside_another, guided
from ddpm_unet.diffusion.objective import Objective
from torch import nn

from ddpm_unet.config import DiffusionConfig
from ddpm_unet.diffusion.editing import Inversion
from ddpm_unet.diffusion.linear_steps import LinearSteps
from ddpm_unet.diffusion.samplers import SAMPLERS, make_scheduler
from ddpm_unet.diffusion.sampling import sample
from ddpm_unet.diffusion.tiled import tiled

LEARNED = DiffusionConfig(variance_type="learned_range")
SHAPE = (2, 3, 4, 4)


class OwnStep(diffusers.DDPMScheduler):
    """Not known to `LinearSteps`, so it steps for itself."""


def both(x, t):
    """A prediction with variances."""
    return torch.cat([0.1 * x, torch.sin(3 * x)], dim=1)


def means(x, t):
    return 0.1 * x


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_steps_are_those_of_diffusers(kind, spacing):
    scheduler = diffusers.DDPMScheduler(
        prediction_type=kind, timestep_spacing=spacing, variance_type="learned_range"
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    for steps in (50, 33):
        ours = LinearSteps(scheduler, steps, 0.0, "cpu")
        for i, t in enumerate(scheduler.timesteps):
            x, prediction, variances = torch.randn(3, *SHAPE, dtype=torch.float64)
            output = torch.cat([prediction, variances], dim=1)
            first, second = (torch.Generator().manual_seed(i) for _ in range(2))
            expected = scheduler.step(output, t, x, generator=first)

            def noise(std, generator=second):
                return std * torch.randn(SHAPE, generator=generator, dtype=torch.float64)

            new, image = ours.step(i, x, output, noise)
            torch.testing.assert_close(new, expected.prev_sample, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(image, expected.pred_original_sample, rtol=1e-9, atol=1e-9)


def test_a_scheduler_that_steps_for_itself_is_given_the_variances():
    options = {"indices": range(2), "seed": 0, "steps": 50}
    settings = {"timestep_spacing": "linspace", "variance_type": "learned_range"}
    table = sample(both, diffusers.DDPMScheduler(**settings), SHAPE[1:], **options)
    stepped = sample(both, OwnStep(**settings), SHAPE[1:], **options)
    torch.testing.assert_close(table, stepped, rtol=1e-3, atol=1e-3)
    fixed = sample(means, make_scheduler("ddpm", DiffusionConfig()), SHAPE[1:], **options)
    assert not torch.allclose(table, fixed, atol=1e-2)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ddpm"])
@pytest.mark.parametrize("saved", [False, True])
def test_other_samplers_use_the_mean_alone(name, saved):
    config = make_scheduler("ddpm", LEARNED).config if saved else LEARNED
    options = {"seed": 0, "indices": [0], "steps": 5}
    with_variances, without = (
        sample(denoiser, make_scheduler(name, config), SHAPE[1:], **options)
        for denoiser in (both, means)
    )
    assert torch.equal(with_variances, without)


def test_inversion_uses_the_mean_alone():
    images = torch.rand(SHAPE) * 2 - 1
    scheduler = make_scheduler("ddim", LEARNED)
    first, second = (Inversion(d, scheduler, 10).to_noise(images) for d in (both, means))
    assert torch.equal(first, second)


def test_guidance_leaves_the_variances():
    x, t = torch.randn(SHAPE), torch.zeros(2)

    def weaker(x, t):
        return -both(x, t)

    told = guided(both, beside_another(both, weaker), 3.0)(x, t)
    torch.testing.assert_close(told[:, :3], -0.1 * x + 3 * 0.2 * x)
    assert torch.equal(told[:, 3:], both(x, t)[:, 3:])


def test_the_estimate_is_of_the_image():
    def denoiser(x, t, estimate):
        return both(x, t)

    def plain(x, t, estimate):
        return means(x, t)

    noisy, t = torch.randn(SHAPE), torch.tensor([3, 700])
    estimates = [
        SelfConditioning(LEARNED).estimate(d, noisy, t, 0, range(2)) for d in (denoiser, plain)
    ]
    assert torch.equal(*estimates)


def test_tiles_keep_the_variances():
    x = torch.randn(1, 3, 12, 12)
    told = tiled(both, 8, 4)(x, torch.tensor([5]))
    torch.testing.assert_close(told, both(x, None), rtol=1e-5, atol=1e-6)


class Outputs(nn.Module):
    """Predicts what it learns, whatever it is shown."""

    def __init__(self, *shape):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.output = nn.Parameter(0.3 * torch.randn(shape, generator=generator))

    def forward(self, x, t):
        return self.output[:, : 2 * x.shape[1]]


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_bound_moves_the_variances_and_the_simple_loss_the_mean(kind):
    images = torch.rand(4, 3, 5, 5) * 2 - 1
    t, noise = torch.tensor([0, 1, 400, 999]), torch.randn(images.shape)
    gradients, values = [], []
    for weight, variance in (
        (0.001, "fixed_small"),
        (0.001, "learned_range"),
        (1, "learned_range"),
    ):
        config = DiffusionConfig(prediction_type=kind, variance_type=variance, vlb_weight=weight)
        model = Outputs(4, 6, 5, 5)
        denoiser = model if variance == "learned_range" else lambda x, t, m=model: m(x, t)[:, :3]
        losses = Objective(config).losses(denoiser, images, t, noise)
        losses.sum().backward()
        gradients.append(model.output.grad)
        values.append(losses.detach())
    plain, hybrid, heavy = gradients
    assert torch.equal(hybrid[:, :3], plain[:, :3])
    assert torch.equal(heavy[:, :3], plain[:, :3])
    assert hybrid[:, 3:].abs().amin() > 0
    assert torch.isfinite(heavy).all()
    torch.testing.assert_close(heavy[:, 3:], 1000 * hybrid[:, 3:])
    bound = (values[1] - values[0]) / 1  # 0.001 times 1000 timesteps
    torch.testing.assert_close(values[2] - values[0], 1000 * bound, rtol=1e-2, atol=1e-2)


def test_fixed_variances_are_not_in_the_loss():
    images, noise = torch.rand(2, 2, 3, 4, 4)
    t = torch.tensor([0, 5])
    losses = [
        Objective(DiffusionConfig(variance_type=kind)).losses(means, images, t, noise)
        for kind in ("fixed_small", "fixed_large")
    ]
    assert torch.equal(*losses)

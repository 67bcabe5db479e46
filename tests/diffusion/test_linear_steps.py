from itertools import pairwise

import diffusers
import pytest
import torch

from ddpm_unet.diffusion.linear_steps import LinearSteps, inference_timesteps, previous_timesteps

TYPES = ["epsilon", "sample", "v_prediction"]
SHAPE = (2, 3, 4, 4)


def peer(scheduler_class, **settings):
    """diffusers' scheduler, computing in float64 so that agreement can be asked to the digit."""
    scheduler = scheduler_class(**settings)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if isinstance(scheduler, diffusers.DDIMScheduler):
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    return scheduler


def largest_difference(scheduler, steps, eta=0.0, but_last=False):
    """Over all steps, from random states and predictions that clipping bites on."""
    ours = LinearSteps(scheduler, steps, eta, "cpu")
    assert ours.timesteps.tolist() == scheduler.timesteps.tolist()
    options = {"eta": eta} if isinstance(scheduler, diffusers.DDIMScheduler) else {}
    worst = 0.0
    for i, t in enumerate(scheduler.timesteps[: -1 if but_last else None]):
        x, prediction = torch.randn(2, *SHAPE, dtype=torch.float64)
        generators = [torch.Generator().manual_seed(i) for _ in range(2)]
        expected = scheduler.step(prediction, t, x, generator=generators[0], **options)

        def noise(std, generator=generators[1]):
            return std * torch.randn(SHAPE, generator=generator, dtype=torch.float64)

        new, image = ours.step(i, x, prediction, noise)
        scale = 1 + expected.prev_sample.abs().max()
        worst = max(worst, float((new - expected.prev_sample).abs().max() / scale))
        gap = (image - expected.pred_original_sample).abs() / (1 + image.abs())
        worst = max(worst, float(gap.max()))
    return worst


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_steps_are_those_of_diffusers(kind, clip, spacing, variance):
    scheduler = peer(
        diffusers.DDPMScheduler,
        prediction_type=kind,
        clip_sample=clip,
        timestep_spacing=spacing,
        variance_type=variance,
        beta_schedule="squaredcos_cap_v2" if clip else "linear",
    )
    for steps in (50, 33):
        # to the clean image diffusers adds noise when "trailing" meets fixed_large
        but_last = spacing == "trailing" and variance == "fixed_large"
        assert largest_difference(scheduler, steps, but_last=but_last) < 1e-9


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("spacing", "steps"), [("leading", 50), ("trailing", 50), ("linspace", 100)]
)
def test_ddim_steps_are_those_of_diffusers(kind, clip, eta, spacing, steps):
    scheduler = peer(
        diffusers.DDIMScheduler,
        # where its t - T // steps is the next timestep: with linspace, only at steps = T
        num_train_timesteps=100,
        beta_end=0.2,
        prediction_type=kind,
        clip_sample=clip,
        timestep_spacing=spacing,
        set_alpha_to_one=clip,
    )
    assert largest_difference(scheduler, steps, eta) < 1e-9


def test_ddim_with_full_noise_is_ddpm():
    settings = {"clip_sample": False, "timestep_spacing": "linspace"}
    plans = [
        LinearSteps(peer(diffusers.DDPMScheduler, **settings), 40, 0.0, "cpu"),
        LinearSteps(peer(diffusers.DDIMScheduler, **settings), 40, 1.0, "cpu"),
    ]
    x, prediction, noise = torch.randn(3, *SHAPE, dtype=torch.float64)
    for i in range(40):
        ddpm, ddim = (p.step(i, x, prediction, lambda std: std * noise)[0] for p in plans)
        torch.testing.assert_close(ddpm, ddim, rtol=1e-9, atol=1e-9)


def test_no_noise_is_added_to_the_finished_image():
    settings = {"timestep_spacing": "trailing", "variance_type": "fixed_large"}
    plan = LinearSteps(diffusers.DDPMScheduler(**settings), 50, 0.0, "cpu")
    x = torch.zeros(SHAPE)
    new, image = plan.step(49, x, x, lambda std: pytest.fail("noise was drawn"))
    assert torch.equal(new, image)


@pytest.mark.parametrize("scheduler_class", [diffusers.DDPMScheduler, diffusers.DDIMScheduler])
def test_any_number_of_steps_gives_falling_timesteps(scheduler_class):
    for spacing in ("leading", "trailing", "linspace"):
        scheduler = scheduler_class(timestep_spacing=spacing)
        for steps in range(1, 1001):
            times = inference_timesteps(scheduler, steps)
            assert len(times) == steps
            assert all(a > b >= 0 for a, b in pairwise(times))
        assert inference_timesteps(scheduler, 1) == [999]


def test_steps_lead_from_one_timestep_to_the_next():
    assert previous_timesteps([999, 500, 0]) == [500, 0, -1]


def test_only_steps_of_this_form_are_taken():
    assert LinearSteps.supports(diffusers.DDPMScheduler(variance_type="fixed_large"))
    assert LinearSteps.supports(diffusers.DDIMScheduler())
    assert LinearSteps.supports(diffusers.DDPMScheduler(variance_type="learned_range"))
    assert not LinearSteps.supports(diffusers.DDPMScheduler(variance_type="learned"))
    assert not LinearSteps.supports(diffusers.DDPMScheduler(thresholding=True))
    assert not LinearSteps.supports(diffusers.EulerDiscreteScheduler())

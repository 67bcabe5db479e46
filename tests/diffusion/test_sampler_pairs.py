"""Samplers and denoisers that go together, and those that do not, on Gaussians in closed form."""

import diffusers
import pytest
import sampler_table
import torch
from ddpm_unet.diffusion.objective import Objective
from ddpm_unet.diffusion.schedule import alphas_cumprod, betas
from sampler_table import distilled_scheduler, draw, settings

from ddpm_unet.config import DiffusionConfig
from ddpm_unet.diffusion.linear_steps import LinearSteps
from ddpm_unet.diffusion.samplers import SAMPLERS, make_scheduler, saved_scheduler
from ddpm_unet.errors import UserError

TYPES = ["epsilon", "sample", "v_prediction"]
RIGHT = [
    (name, kind, zero_snr)
    for name in SAMPLERS
    for kind in TYPES
    for zero_snr in (False, True)
    if not (zero_snr and (kind == "epsilon" or name == "heun"))
]
# least and most of a standard deviation drawn, over that of the data, by number of steps
SPREADS = {
    "ddpm": {10: (0.18, 1.0), 20: (0.27, 1.0), 50: (0.45, 1.0), 1000: (0.88, 1.05)},
    "ddim": {10: (0.27, 1.0), 20: (0.40, 1.0), 50: (0.60, 1.05), 1000: (0.94, 1.05)},
    "dpm++": {10: (0.86, 1.08), 20: (0.94, 1.07), 50: (0.94, 1.06), 1000: (0.94, 1.06)},
    "dpm++sde": {10: (0.76, 1.08), 20: (0.92, 1.1), 50: (0.9, 1.08), 1000: (0.92, 1.07)},
    "unipc": {10: (0.88, 1.12), 20: (0.94, 1.11), 50: (0.94, 1.1), 1000: (0.94, 1.09)},
    "euler": {10: (0.64, 0.9), 20: (0.78, 0.95), 50: (0.87, 1.02), 1000: (0.94, 1.06)},
    "heun": {10: (0.94, 1.25), 20: (0.94, 1.1), 50: (0.94, 1.06), 1000: (0.94, 1.06)},
}


@pytest.fixture(autouse=True)
def fewer_numbers(monkeypatch):
    monkeypatch.setattr(sampler_table, "SIDE", 36)


def check(name, kind, zero_snr, steps):
    config = settings(kind, zero_snr)
    found = draw(config, make_scheduler(name, config), steps)
    low, high = SPREADS[name][steps]
    assert found.mean_error < 0.12
    assert low < min(found.spreads) <= max(found.spreads) < high


@pytest.mark.parametrize(("name", "kind", "zero_snr"), RIGHT)
def test_right_pairs_draw_the_data(name, kind, zero_snr):
    for steps in (10, 20, 50):
        check(name, kind, zero_snr, steps)


@pytest.mark.parametrize("name", SAMPLERS)
def test_in_a_thousand_steps_nothing_is_lost(name):
    check(name, "v_prediction", name != "heun", 1000)


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_is_not_predicted_where_there_is_nothing_else(name):
    config = settings("epsilon", True)
    with pytest.raises(UserError, match="with prediction_type epsilon the last timestep says"):
        make_scheduler(name, config)
    with pytest.raises(UserError, match="with prediction_type epsilon the last timestep says"):
        make_scheduler(name, {"rescale_betas_zero_snr": True})
    with pytest.raises(UserError, match="with prediction_type epsilon the last timestep says"):
        betas(config)


def test_heun_is_refused_and_would_be_wrong():
    """diffusers' scheduler drops the setting: the more steps, the surer it misses."""
    config = settings("v_prediction", True)
    with pytest.raises(UserError, match=r"^sampler heun: .*; take dpm\+\+ or unipc$"):
        make_scheduler("heun", config)
    forced = make_scheduler("heun", settings("v_prediction", False))
    forced = type(forced).from_config({**forced.config, "beta_end": config.beta_end})
    found = draw(config, forced, 100)
    assert max(found.mean_error, *(abs(s - 1) for s in found.spreads)) > 0.12


def test_leading_timesteps_are_refused_and_would_be_wrong(monkeypatch):
    """Begun too late, the mean of the data is missing from the noise."""
    monkeypatch.setattr(sampler_table, "MEANS", (0.9, 0.9, 0.9))
    monkeypatch.setattr(sampler_table, "STDS", (1.0, 1.0, 1.0))
    config = settings("v_prediction", True)
    saved = {"_class_name": "DDIMScheduler", "timestep_spacing": "leading"}
    with pytest.raises(UserError, match="timestep_spacing leading, which never asks the last"):
        saved_scheduler(config, saved)
    forced = saved_scheduler(config, {**saved, "timestep_spacing": "trailing"})[1]
    assert draw(config, forced, 4).mean_error < 0.07
    forced = type(forced).from_config({**forced.config, "timestep_spacing": "leading"})
    assert draw(config, forced, 4).mean_error > 0.14


@pytest.mark.parametrize("kind", TYPES)
def test_lcm_is_for_models_distilled_for_it(kind):
    config = settings(kind, False)
    for steps in (1, 4, 50):
        found = draw(config, distilled_scheduler(config), steps, distilled=True)
        assert found.mean_error < 0.12
        assert all(0.94 < spread < 1.06 for spread in found.spreads)
    with pytest.raises(UserError, match=r"1000 steps of LCMScheduler"):
        draw(config, distilled_scheduler(config), 1000, distilled=True)
    with pytest.raises(UserError, match="sampler lcm: needs a model distilled for it"):
        make_scheduler("lcm", config)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "logistic"])
def test_the_last_timestep_is_noise_alone(schedule):
    """As diffusers rescales it."""
    plain = DiffusionConfig(beta_schedule=schedule, prediction_type="sample")
    config = DiffusionConfig(
        beta_schedule=schedule, prediction_type="sample", rescale_betas_zero_snr=True
    )
    abar = alphas_cumprod(config)
    assert abar[-1] == 0
    assert abar[0] == pytest.approx(float(alphas_cumprod(plain)[0]), rel=1e-9)
    theirs = make_scheduler("ddpm", config).alphas_cumprod
    torch.testing.assert_close(abar, theirs.double(), rtol=2e-3, atol=1e-6)
    objective = Objective(config)
    noise = torch.randn(1, 3, 4, 4)
    assert torch.equal(
        objective.add_noise(torch.ones(1, 3, 4, 4), torch.tensor([999]), noise), noise
    )


def test_steps_from_nothing_are_those_of_diffusers():
    scheduler = diffusers.DDPMScheduler(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    ours = LinearSteps(scheduler, 10, 0.0, "cpu")
    for i, t in enumerate(scheduler.timesteps):
        x, prediction = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
        first, second = (torch.Generator().manual_seed(i) for _ in range(2))
        expected = scheduler.step(prediction, t, x, generator=first).prev_sample

        def noise(std, generator=second):
            return std * torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64)

        torch.testing.assert_close(ours.step(i, x, prediction, noise)[0], expected)


def test_a_weighting_that_forgets_the_last_timestep_is_refused():
    config = DiffusionConfig(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, min_snr_gamma=5.0
    )
    with pytest.raises(UserError, match="min_snr_gamma 5: would give the last timestep"):
        Objective(config)

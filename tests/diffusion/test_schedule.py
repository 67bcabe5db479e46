import math

import diffusers
import pytest
import torch

from ddpm_unet.config import DiffusionConfig
from ddpm_unet.diffusion import schedule
from ddpm_unet.diffusion.samplers import make_scheduler
from ddpm_unet.errors import UserError

SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1000, 100])
def test_schedules_are_those_of_diffusers(name, steps):
    config = DiffusionConfig(beta_schedule=name, num_train_timesteps=steps)
    scheduler = diffusers.DDPMScheduler(beta_schedule=name, num_train_timesteps=steps)
    betas, abar = schedule.betas(config), schedule.alphas_cumprod(config)
    assert betas.dtype == abar.dtype == torch.float64
    torch.testing.assert_close(betas, scheduler.betas.double(), rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(abar, scheduler.alphas_cumprod.double(), rtol=1e-4, atol=1e-9)


def test_end_points():
    betas = schedule.betas(DiffusionConfig())
    assert betas[0] == 1e-4
    assert betas[-1] == 0.02
    abar = schedule.alphas_cumprod(DiffusionConfig())
    assert abar[0] == 1 - 1e-4
    assert abar[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)  # Ho 2020: L_T is about 1e-5
    cosine = schedule.alphas_cumprod(DiffusionConfig(beta_schedule="squaredcos_cap_v2"))
    assert abar.diff().max() < 0
    assert cosine.diff().max() < 0
    assert cosine[499].item() == pytest.approx(0.4938, abs=1e-4)  # cos^2 of nearly 45 degrees
    assert 0 < cosine[-1] < 1e-8


def test_logistic_schedule():
    """Jabri 2022, algorithm 1: symmetric about the middle; diffusers is told the betas."""
    config = DiffusionConfig(beta_schedule="logistic", num_train_timesteps=501)
    abar = schedule.alphas_cumprod(config)
    time = torch.arange(1, 501, dtype=torch.float64) / 501
    curve = (torch.sigmoid(3 - 6 * time) - 1 / (1 + math.exp(3))) / math.tanh(1.5)
    torch.testing.assert_close(abar[:-1], curve, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(abar[:-1] + abar[:-1].flip(0), torch.ones_like(curve))
    scheduler = make_scheduler("dpm++", config)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), abar, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_snr_round_trip(name):
    abar = schedule.alphas_cumprod(DiffusionConfig(beta_schedule=name))
    log_snr = schedule.log_snr(abar)
    torch.testing.assert_close(log_snr.exp(), schedule.snr(abar), rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.alphas_cumprod_at(log_snr), abar, rtol=1e-12, atol=0)
    assert log_snr.diff().max() < 0


@pytest.mark.parametrize(
    "config",
    [
        DiffusionConfig(num_train_timesteps=0),
        DiffusionConfig(beta_start=0.0),
        DiffusionConfig(beta_start=0.1, beta_end=0.01),
        DiffusionConfig(beta_end=1.0),
        DiffusionConfig(beta_schedule="sigmoid"),
    ],
)
def test_impossible_schedules_are_refused(config):
    with pytest.raises(UserError):
        schedule.betas(config)

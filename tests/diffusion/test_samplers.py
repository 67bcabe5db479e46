import subprocess
import sys

import diffusers
import pytest
import torch
from ddpm_unet.diffusion.schedule import alphas_cumprod

from ddpm_unet.config import DiffusionConfig
from ddpm_unet.diffusion.samplers import SAMPLERS, make_scheduler
from ddpm_unet.diffusion.sampling import Noise, sample
from ddpm_unet.errors import UserError

CONFIG = DiffusionConfig(
    num_train_timesteps=500,
    beta_schedule="scaled_linear",
    beta_end=0.03,
    prediction_type="v_prediction",
)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_scheduler_has_the_forward_process_of_the_model(name):
    scheduler = make_scheduler(name, CONFIG)
    assert scheduler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(
        scheduler.alphas_cumprod.double(), alphas_cumprod(CONFIG), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_saved_scheduler_is_as_good_as_the_settings(name, tmp_path):
    make_scheduler("ddpm", CONFIG).save_pretrained(tmp_path)
    saved = diffusers.DDPMScheduler.from_pretrained(tmp_path)
    first, second = make_scheduler(name, CONFIG), make_scheduler(name, saved.config)
    assert second.config.prediction_type == "v_prediction"
    assert torch.equal(first.alphas_cumprod, second.alphas_cumprod)
    for scheduler in (first, second):
        scheduler.set_timesteps(10)
    assert torch.equal(first.timesteps, second.timesteps)


def test_settings_that_a_saved_scheduler_held_by_default_can_be_changed():
    saved = {**diffusers.DDPMScheduler().config, "prediction_type": "sample"}
    assert make_scheduler("ddim", saved).config.prediction_type == "sample"


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"'dpm\+'.*'dpm\+\+'"):
        make_scheduler("dpm+", CONFIG)


def test_training_and_help_do_not_wait_for_diffusers():
    modules = "objective, sampling, samplers"
    code = (
        f"import sys; from ddpm_unet.diffusion import {modules}; print('diffusers' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clip", [True, False])
def test_images_are_clipped_on_the_way_as_thresholding_at_one_does(prediction, clip):
    """diffusers' dynamic thresholding with a largest value of 1 is a clip to [-1, 1]."""
    config = DiffusionConfig(prediction_type=prediction, clip_sample=clip)

    def overshooting(x, t, **conditions):
        return 1.5 * torch.tanh(x * (1 + t.reshape(-1, 1, 1, 1) / 1000))

    ours = make_scheduler("dpm++", config)
    reference = type(ours).from_config(ours.config, thresholding=clip, sample_max_value=1.0)
    job = {"seed": 0, "indices": [0, 1], "steps": 12}
    drawn = sample(overshooting, ours, (3, 4, 4), **job)
    noise = Noise(0, [0, 1], (3, 4, 4), "cpu")
    reference.set_timesteps(12)
    x = noise.draw(float(reference.init_noise_sigma))
    for t in reference.timesteps:
        x = reference.step(overshooting(x, t.expand(2)), t, x).prev_sample
    torch.testing.assert_close(drawn, x, rtol=1e-4, atol=1e-4)
    assert not clip or drawn.abs().max() <= 1 + 1e-5

"""Trainings that begin from a denoiser, and runs that get more steps than they had."""

from dataclasses import replace

import pytest
import torch
import yaml
from diffusers import DDPMPipeline
from runs import build, run

from ddpm_unet.config import DiffusionConfig
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.errors import UserError
from ddpm_unet.inference.pipeline import read_pipeline, write_pipeline
from ddpm_unet.models import UNet


@pytest.fixture
def denoiser(settings, tmp_path):
    """A denoiser of another size and process than those of the settings."""
    torch.manual_seed(3)
    model = {**settings.model.__dict__, "block_out_channels": (12, 24), "sample_size": 16}
    model |= {"in_channels": 3, "out_channels": 3, "dims": 2, "norm_num_groups": 4}
    unet = UNet(**model)
    process = GaussianDiffusion(
        num_timesteps=50, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )
    write_pipeline(tmp_path / "denoiser", unet, process)
    return tmp_path / "denoiser", unet


@pytest.mark.parametrize("of", ["ours", "diffusers'"])
def test_a_denoiser_is_trained_further(settings, denoiser, tmp_path, of):
    folder, unet = denoiser
    if of != "ours":
        pipeline = DDPMPipeline.from_pretrained(folder)
        folder = tmp_path / "pipeline"
        pipeline.save_pretrained(folder)
    settings.init, settings.train.steps, settings.train.lr = str(folder), 2, 1e-12
    finished = run(settings)
    trained, process = read_pipeline(finished.model)
    for name, tensor in unet.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    assert trained.config == replace(unet.config, sample_size=8)
    assert (process.num_timesteps, process.prediction_type) == (50, "v_prediction")
    said = yaml.safe_load((finished.path / "config.yaml").read_text())
    assert said["model"]["block_out_channels"] == [12, 24]
    assert said["diffusion"]["prediction_type"] == "v_prediction"
    settings.train.steps, settings.train.lr_schedule = 4, "linear"
    with pytest.raises(UserError, match=r"train\.lr_schedule = cosine, not linear"):
        run(settings)


def test_a_denoiser_of_something_else_is_refused(settings, denoiser):
    folder, _ = denoiser
    settings.init, settings.self_conditioning = str(folder), True
    with pytest.raises(UserError, match="has self_conditioning False, these settings have True"):
        build(settings)
    (folder / "vae").mkdir()
    settings.self_conditioning = False
    with pytest.raises(UserError, match=r"denoises latents, and latent\.autoencoder says"):
        build(settings)


def test_more_steps_and_a_jump_of_the_rate_are_said(settings, capsys):
    settings.diffusion = DiffusionConfig(num_train_timesteps=20)
    settings.train.steps, settings.train.warmup_steps = 6, 0
    run(settings)
    assert "jumps" not in capsys.readouterr().out
    settings.train.steps = 12
    run(settings)
    said = capsys.readouterr().out
    assert "train.steps is 12, was 6" in said
    assert "the learning rate jumps from 6.7e-05 to 0.0005, as its cosine schedule is" in said

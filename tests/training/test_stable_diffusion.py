"""The recipe of Stable Diffusion 1.x: its network is the published one, and it learns."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from PIL import Image
from short_runs import run
from small import AUTOENCODER

from ddpm_unet.cli import read_settings
from ddpm_unet.config import DenoiseConfig
from ddpm_unet.inference.pipeline import read_pipeline
from ddpm_unet.models import UNet
from ddpm_unet.training.from_config import build_denoise_job

CONFIG = Path(__file__).parents[2] / "configs" / "stable_diffusion.yaml"
SMALL = """--data.source pictures --data.context vectors --data.size 16
--latent.autoencoder autoencoder --latent.cache cache
--model.block_out_channels [8,8,16,16] --model.norm_num_groups 4
--model.layers_per_block 1 --train.steps 40 --train.batch_size 8 --train.micro_batch 0
--train.lr 5e-3 --train.warmup_steps 5 --train.ema_decay 0.8
--train.gradient_checkpointing false --train.checkpoint_every 1000
--train.sample_every 0 --train.validate_every 0 --run run"""


def test_the_network_is_that_of_stable_diffusion():
    settings, _ = read_settings(DenoiseConfig, CONFIG, [])
    with torch.device("meta"):
        unet = UNet(settings.model.filled(in_channels=4, out_channels=4, dims=2))
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    assert settings.diffusion.beta_schedule == "scaled_linear"
    assert (settings.diffusion.beta_start, settings.diffusion.beta_end) == (0.00085, 0.012)


@pytest.fixture
def eight(tmp_path, monkeypatch):
    """Eight pictures of a colour each, a context for each, and an autoencoder."""
    monkeypatch.chdir(tmp_path)
    for folder in ("pictures", "vectors"):
        Path(folder).mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        colour = rng.integers(0, 256, 3, dtype=np.uint8)
        Image.fromarray(np.full((16, 16, 3), colour)).save(f"pictures/{i}.png")
        np.save(f"vectors/{i}.npy", rng.normal(size=(3, 768)))
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(**AUTOENCODER, scaling_factor=3.0)
    with torch.no_grad():
        autoencoder.quant_conv.bias[4:] -= 14  # logarithms of variances
    autoencoder.save_pretrained("autoencoder")


def test_it_learns_eight_images(eight):
    """The loss of the same images at the same timesteps and noise, before and after."""
    settings, _ = read_settings(DenoiseConfig, CONFIG, SMALL.split())
    job = build_denoise_job(settings)
    untrained = job.build_model()
    folder = run(settings, job).model
    trained, _ = read_pipeline(folder)
    windows = job.stream(untrained, Accelerator(cpu=True))
    batch = windows.__getitems__(range(64))
    assert batch["image"].shape == (64, 4, 8, 8)
    assert batch["context"].shape == (64, 3, 768)
    with torch.no_grad():
        first, last = (float(job.losses(unet, batch).mean()) for unet in (untrained, trained))
    assert 0.9 < first < 1.1
    assert last < 0.5 * first
    assert (folder / "vae/config.json").is_file()

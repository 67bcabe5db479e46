"""An autoencoder learns by the loop of the other jobs, and a denoiser takes it."""

import pytest
import short_runs
import torch
from diffusers import AutoencoderKL

from ddpm_unet.config import AutoencodeConfig, AutoencoderConfig
from ddpm_unet.data.stream import to_model_range
from ddpm_unet.errors import UserError
from ddpm_unet.models.autoencoder import Autoencoder
from ddpm_unet.training.autoencode import AutoencodeJob


@pytest.fixture
def autoencode(settings):
    """Settings of an autoencoder training of seconds."""
    settings.train.steps, settings.train.lr, settings.train.ema_decay = 40, 5e-3, 0.8
    settings.train.validate_every = settings.train.sample_every = 20
    settings.train.checkpoint_every = 40
    network = AutoencoderConfig(3, (8, 16), 1, 4)
    own = {name: getattr(settings, name) for name in ("run", "data", "train", "preview")}
    return AutoencodeConfig(model=network, **own)


def test_it_learns_and_its_latents_spread_like_noise(autoencode):
    job = AutoencodeJob(autoencode)
    run = short_runs.run(autoencode, job)
    losses = [line["val_loss"] for line in run.read_metrics() if "val_loss" in line]
    first, *_ = (line["loss"] for line in run.read_metrics() if "loss" in line)
    assert losses[-1] < 0.5 * first
    assert (run.samples / "00000040.png").is_file()
    found = Autoencoder(run.model)
    assert (found.channels, found.latent_channels, found.factor) == (3, 3, 2)
    images = to_model_range(job.windows.__getitems__(range(300, 500))["image"])
    mean, deviation = found.encode(images)
    spread = float((mean + deviation * torch.randn_like(mean)).std())
    assert 0.8 < spread < 1.25
    assert float((found.decode(mean) - images).abs().mean()) < 0.5 * first
    peer = AutoencoderKL.from_pretrained(run.model, local_files_only=True)
    with torch.no_grad():
        theirs = peer.decode(mean / peer.config.scaling_factor).sample
    torch.testing.assert_close(found.decode(mean), theirs)


def test_the_divergence_is_that_of_torch(autoencode):
    job = AutoencodeJob(autoencode)
    network = job.build_model()
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    again, divergence = network(images, torch.zeros(3, 3, 4, 4))
    found = network.encode(images).latent_dist
    ours = torch.distributions.Normal(found.mean, found.std)
    standard = torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence(ours, standard).flatten(1).mean(1)
    torch.testing.assert_close(divergence, kl)
    torch.testing.assert_close(again, network.decode(found.mode()).sample)


def test_the_split_of_a_batch_changes_nothing_but_rounding(autoencode):
    job = AutoencodeJob(autoencode)
    network = job.build_model()
    with torch.no_grad():
        whole = job.losses(network, job.windows.__getitems__(range(6)))
        parts = [job.losses(network, job.windows.__getitems__([i])) for i in range(6)]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_impossible_settings(autoencode):
    autoencode.data.size = 7
    with pytest.raises(UserError, match=r"data\.size 7, .*multiples of 2; change data\.size"):
        AutoencodeJob(autoencode)
    autoencode.data.size, autoencode.model.norm_num_groups = 8, 5
    with pytest.raises(UserError, match=r"block_out_channels 8: must be a multiple of .* 5"):
        AutoencodeJob(autoencode)

"""Denoising in latents: the same job and loop, with windows encoded once."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline
from PIL import Image
from short_runs import change, files, kill, run
from small import AUTOENCODER

from ddpm_unet.data.stream import Stream, to_model_range
from ddpm_unet.data.windows import order
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import make_sampler
from ddpm_unet.diffusion.sampling import Noise, sample
from ddpm_unet.errors import UserError
from ddpm_unet.inference.pipeline import read_pipeline, write_pipeline
from ddpm_unet.models import UNet
from ddpm_unet.models.autoencoder import Autoencoder, autoencoder_of
from ddpm_unet.training.from_config import build_denoise_job


@pytest.fixture(scope="module")
def peer():
    torch.manual_seed(0)
    peer = AutoencoderKL(
        **AUTOENCODER,
        latent_channels=5,
        scaling_factor=40.0,  # so that latents leave [-1, 1]
    ).eval()
    with torch.no_grad():
        peer.quant_conv.bias[5:] -= 14  # logarithms of variances
    return peer


@pytest.fixture
def latent(settings, peer, tmp_path):
    """The settings of a training in latents of 5 x 4 x 4."""
    peer.save_pretrained(tmp_path / "autoencoder")
    settings.latent.autoencoder = str(tmp_path / "autoencoder")
    settings.latent.cache = str(tmp_path / "cache")
    settings.latent.epochs = 2
    settings.model.in_channels = settings.model.out_channels = 5
    settings.train.steps = 8
    return settings


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def encoded(settings, accelerator):
    job = build_denoise_job(settings)
    return job.latent.training(job.windows, accelerator)


def test_windows_are_what_the_autoencoder_makes_of_them(latent, peer, accelerator):
    job = build_denoise_job(latent)
    stream = job.latent.training(job.windows, accelerator)
    pixels = Stream(job.windows.images, flips=True, rot90=True, seed=0)
    assert len(stream) == 2 * pixels.epoch_length
    batch = stream.__getitems__(range(len(stream)))
    means, deviations = [], []
    for number in range(len(stream)):
        with torch.no_grad():
            found = peer.encode(to_model_range(pixels[number]["image"][None])).latent_dist
        means.append(40 * found.mean[0])
        deviations.append(40 * found.std[0])
    mean, deviation = torch.stack(means), torch.stack(deviations)
    # Each window once, in an order of its own, and noise of the window's own deviation.
    numbers = torch.from_numpy(order(latent.seed, np.arange(len(stream)), len(stream)))
    noise = (batch["image"] - mean[numbers]) / deviation[numbers]
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.05
    assert stream.name(0) == pixels.name(int(numbers[0]))
    stream.sample = False
    modes = stream.__getitems__(range(len(stream)))["image"]
    torch.testing.assert_close(modes, mean[numbers], rtol=1e-4, atol=1e-3)


def test_windows_are_encoded_once_for_what_they_are(latent, accelerator, monkeypatch):
    cache = Path(latent.latent.cache)
    seen = []
    encode = Autoencoder.encode

    def watched(self, images):
        seen.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(Autoencoder, "encode", watched)

    def files_after(**changes):
        for name, value in changes.items():
            setattr(latent.data, name, value)
        encoded(latent, accelerator)
        return len(list(cache.iterdir()))

    assert files_after() == 1
    count = len(seen)
    latent.seed = 5
    assert files_after(workers=3) == 1
    assert len(seen) == count, "encoded again"
    assert files_after(flips=False) == 2
    assert files_after(memory_limit=0) == 3  # of pictures read as needed no pixel is compared
    assert files_after() == 3
    for path in cache.iterdir():
        assert np.load(path).shape[1:] == (2, 5, 4, 4)


def test_a_run_ends_the_same_killed_or_not(latent, tmp_path):
    latent.train.validate_every = latent.train.sample_every = 4
    latent.self_conditioning, latent.model.in_channels = True, 10
    whole = run(latent)
    with Image.open(whole.samples / "00000008.png") as picture:
        assert picture.size == (16 * 22, 16 * 22)  # two by two images of 8 x 8
    assert any("val_loss" in line for line in whole.read_metrics())
    latent.run = str(tmp_path / "killed")
    kill(latent, 13)
    assert files(run(latent)) == files(whole)


def assert_drawn_alike(pipeline, diffusion, folder, ours, atol, **told):
    """A pipeline of diffusers draws the images of our latents."""
    pipeline.scheduler = DDIMScheduler.from_config(diffusion.scheduler_config())
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(output_type="np", **told).images
    found = autoencoder_of(folder).decode(ours) / 2 + 0.5
    np.testing.assert_allclose(found.clamp(0, 1).permute(0, 2, 3, 1), theirs, atol=atol)


def test_diffusers_draws_what_we_draw(latent, peer, monkeypatch):
    latent.diffusion.num_train_timesteps = 20
    folder = run(latent).model
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert type(pipeline).__name__ == "LDMPipeline"
    assert not pipeline.scheduler.config.clip_sample
    for name, value in pipeline.vqvae.state_dict().items():
        assert torch.equal(value, peer.state_dict()[name])
    unet, diffusion = read_pipeline(folder)
    assert diffusion.config == {**diffusion.config, "clip_sample": False}
    noise = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(Noise, "draw", lambda self, std: std * noise)
    latents = sample(
        unet, make_sampler("ddim", diffusion), (5, 4, 4), seed=0, indices=[0, 1], steps=20
    )
    assert latents.abs().max() > 1.5
    told = {"batch_size": 2, "generator": torch.Generator().manual_seed(3)}
    assert_drawn_alike(pipeline, diffusion, folder, latents, 1e-4, num_inference_steps=20, **told)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent.autoencoder": "nowhere"}, "nowhere does not exist; name the folder"),
        ({"data.size": 9}, "size 9: the autoencoder makes one latent of 2 x 2 pixels; give a"),
        ({"data.channels": 1}, "is for images of 3 channels, and these have 1; set channels to 3"),
        ({"model.in_channels": 3, "model.out_channels": 3}, "the latents' 5 channels; set"),
        ({"data.condition": "lower:2"}, "latents are denoised without condition"),
    ],
)
def test_what_cannot_be(latent, changes, message):
    change(latent, changes)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        run(latent)
    assert "\n" not in str(caught.value)
    assert not Path(latent.run).exists()


def test_a_damaged_file_is_named(latent, accelerator):
    encoded(latent, accelerator)
    (path,) = Path(latent.latent.cache).iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"is damaged .* delete it, to encode anew"):
        encoded(latent, accelerator)


def test_a_network_with_a_context_is_a_stable_diffusion_pipeline(peer, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from diffusers import StableDiffusionPipeline

    peer.save_pretrained(tmp_path / "autoencoder")
    unet = UNet(
        in_channels=5, out_channels=5, sample_size=4, block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn", cross_attention_dim=6, attention_head_dim=2,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    diffusion = GaussianDiffusion(num_timesteps=10, clip_sample=False)
    folder = tmp_path / "model"
    write_pipeline(folder, unet, diffusion, autoencoder=Autoencoder(tmp_path / "autoencoder"))
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, local_files_only=True, text_encoder=None, tokenizer=None
    )
    noise = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(3))
    context = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(Noise, "draw", lambda self, std: std * noise)
    latents = sample(
        partial(unet, context=context), make_sampler("ddim", diffusion), (5, 4, 4),
        seed=0, indices=[0, 1], steps=10,
    )  # fmt: skip
    assert_drawn_alike(
        pipeline, diffusion, folder, latents, 1e-3, prompt_embeds=context, guidance_scale=1.0,
        latents=noise, num_inference_steps=10, height=8, width=8,
    )  # fmt: skip

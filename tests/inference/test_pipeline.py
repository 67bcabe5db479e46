import json
from dataclasses import replace

import diffusers
import pytest
import small
import torch

from ddpm_unet import randomness
from ddpm_unet.config import UNetConfig
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import LinearSampler, SchedulerSampler, make_sampler
from ddpm_unet.diffusion.sampling import sample
from ddpm_unet.errors import UserError
from ddpm_unet.inference.pipeline import (
    image_shape,
    read_diffusion,
    read_pipeline,
    read_sampler,
    write_pipeline,
)
from ddpm_unet.models import UNet

SMALL = UNetConfig(**small.SMALL, sample_size=8)
DIFFUSION = GaussianDiffusion(
    num_timesteps=500, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
)


@pytest.fixture
def folder(tmp_path):
    write_pipeline(tmp_path / "model", UNet(SMALL), DIFFUSION)
    return tmp_path / "model"


def test_a_pipeline_is_read_as_it_was_written(folder, tmp_path):
    unet, diffusion = read_pipeline(folder)
    assert unet.config == SMALL
    assert diffusion.config == DIFFUSION.config
    assert read_diffusion(folder / "unet").config == DIFFUSION.config
    write_pipeline(tmp_path / "again", unet, diffusion)
    for path in folder.rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no scheduler/scheduler_config.json; give"),
        ("{", "is not readable"),
        ("[]", "holds no settings"),
        (json.dumps({"trained_betas": [0.1]}), "trained_betas"),
    ],
)
def test_a_folder_without_a_forward_process_is_named(folder, text, message):
    path = folder / "scheduler" / "scheduler_config.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_pipeline(folder)


def test_learned_variances_are_those_of_the_diffusers_pipeline(tmp_path):
    """The same folder, the same noise, the same images, in as many steps as there are."""
    from diffusers import DDPMPipeline

    learned = GaussianDiffusion(
        **{**DIFFUSION.config, "num_timesteps": 20, "variance_type": "learned_range"}
    )
    unet = UNet(replace(SMALL, out_channels=6))
    torch.nn.init.normal_(unet.conv_out.weight, std=0.2)
    write_pipeline(tmp_path / "m", unet, learned)
    unet, read = read_pipeline(tmp_path / "m")
    assert read.config == learned.config
    job = {"shape": image_shape(unet.config), "seed": 3, "indices": range(2), "steps": 20}
    ours = sample(unet, make_sampler("ddpm", read), **job)
    generators = randomness.generators(3, "sample", range(2))
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "m")
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(2, generator=generators, num_inference_steps=20, output_type="np").images
    theirs = torch.from_numpy(theirs).movedim(-1, 1) * 2 - 1
    torch.testing.assert_close(ours.clamp(-1, 1), theirs, rtol=1e-3, atol=1e-3)
    fixed = sample(unet, LinearSampler(read, "ddpm", variance_type="fixed_small"), **job)
    assert not torch.allclose(fixed, ours, atol=1e-2)


@pytest.mark.parametrize(
    ("written", "read"),
    [("fixed_large", "fixed_large"), ("fixed_small_log", "fixed_small"), (None, "fixed_small")],
)
def test_the_kind_of_variance_is_read(folder, written, read):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"variance_type": written}))
    assert read_diffusion(folder).variance_type == read


def test_a_network_without_the_variances_of_its_scheduler_is_refused(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"variance_type": "learned_range"}))
    with pytest.raises(UserError, match="predicts 3 channels, so no variances"):
        read_pipeline(folder)


def test_a_folder_keeps_its_scheduler(folder):
    sampler = read_sampler(folder)
    assert (sampler.name, sampler.timestep_spacing) == ("ddpm", "linspace")
    theirs = diffusers.EulerDiscreteScheduler(
        500, prediction_type="v_prediction", use_karras_sigmas=True, timestep_spacing="trailing"
    )
    theirs.save_pretrained(folder / "scheduler")
    sampler = read_sampler(folder)
    assert isinstance(sampler, SchedulerSampler)
    for each in (theirs, sampler.scheduler):
        each.set_timesteps(9)
    assert torch.equal(sampler.scheduler.sigmas, theirs.sigmas)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"_class_name": "IPNDMScheduler"},
            "which is no sampler of such a model here; give --samp",
        ),
        (
            {"_class_name": "HeunDiscreteScheduler", "rescale_betas_zero_snr": True},
            "HeunDiscreteScheduler does not know zero terminal SNR",
        ),
        (
            {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace"}
            | {"use_karras_sigmas": True, "use_exponential_sigmas": True},
            r"model: scheduler_config\.json: diffusers refuses it",
        ),
    ],
)
def test_a_scheduler_that_cannot_be_used_is_named(folder, settings, message):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(UserError, match=message):
        read_sampler(folder)


def test_zero_terminal_snr_is_written_for_diffusers(tmp_path):
    process = GaussianDiffusion(**{**DIFFUSION.config, "rescale_betas_zero_snr": True})
    write_pipeline(tmp_path / "m", UNet(SMALL), process)
    assert read_diffusion(tmp_path / "m").config == process.config
    scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path / "m", subfolder="scheduler")
    assert scheduler.alphas_cumprod[-1] == 0
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[0] == 499
    own = read_sampler(tmp_path / "m")
    assert (own.name, own.diffusion.rescale_betas_zero_snr) == ("ddpm", True)


def test_image_shape():
    assert image_shape(SMALL) == (3, 8, 8)
    assert image_shape(SMALL, [12]) == (3, 12, 12)
    assert image_shape(SMALL, [48, 80]) == (3, 48, 80)
    assert image_shape(replace(SMALL, sample_size=(4, 6))) == (3, 4, 6)
    assert image_shape(replace(SMALL, dims=3)) == (3, 8, 8, 8)


@pytest.mark.parametrize("size", [[0], [1, 2, 3], [-4, 4]])
def test_impossible_sizes(size):
    with pytest.raises(UserError, match="give one positive number, or 2"):
        image_shape(SMALL, size)
    with pytest.raises(UserError, match="give size"):
        image_shape(replace(SMALL, sample_size=None))


@pytest.mark.parametrize("kind", ["DDIM", "DDPM", "DPMSolverMultistep", "UniPCMultistep", "LCM"])
@pytest.mark.parametrize("written", [{}, {"clip_sample": True}, {"thresholding": True}])
def test_latents_are_never_clipped(folder, kind, written):
    """An exact denoiser of N(0, 2^2), whatever the file says, or leaves out."""
    (folder / "vae").mkdir()
    said = {"_class_name": f"{kind}Scheduler", "_diffusers_version": "0.30.0", **written}
    said |= {"beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(said))
    table = read_diffusion(folder).alphas_cumprod_float64.float()

    def noise(x, t):
        abar = table[t.long()].reshape(-1, 1, 1, 1)
        return x * (1 - abar).sqrt() / (4 * abar + 1 - abar)

    drawn = sample(noise, read_sampler(folder), (4, 16, 16), seed=0, indices=[0], steps=20)
    assert drawn.std() > (1.3 if kind == "LCM" else 1.7)

"""`--sampler` of sample.py: a name, none, or the folder's own."""

import numpy as np
import pytest
from diffusers import DDIMScheduler
from in_process import run
from PIL import Image

from ddpm_unet.commands import sample
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import SAMPLERS
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.models import UNet


@pytest.fixture
def home(tmp_path, monkeypatch, small_unet):
    monkeypatch.chdir(tmp_path)
    write_pipeline(tmp_path / "model", UNet(small_unet), GaussianDiffusion())
    return tmp_path


def picture(home, *flags):
    outcome = run("sample.py", ["--model", "model", "--steps", 4, "--num_images", 1, *flags])
    assert outcome.status == 0, outcome.err
    return outcome.out, np.asarray(Image.open(home / "generated" / "00000.png"))


def test_without_a_name_they_are_listed(home):
    outcome = run("sample.py", ["--sampler"])
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    assert [line.split()[0] for line in lines] == [*SAMPLERS, "lcm"]


def test_a_folder_is_sampled_with_its_own(home):
    said, drawn = picture(home)
    assert ", 4 ddpm steps" in said
    assert np.array_equal(drawn, picture(home, "--sampler", "ddpm")[1])
    ddim = picture(home, "--sampler", "ddim")[1]
    assert not np.array_equal(drawn, ddim)
    DDIMScheduler(timestep_spacing="linspace").save_pretrained(home / "model" / "scheduler")
    said, drawn = picture(home)
    assert ", 4 ddim steps" in said
    assert np.array_equal(drawn, ddim)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), ", 20 dpm++ steps"),
        (("--sampler", "ddpm"), ", 30 ddpm steps"),
        (("--sampler", "heun"), ", 20 heun steps"),
        (("--sampler", "ddim"), ", 15 ddim steps"),
        (("--init_image", "generated/00000.png"), ", 30 ddpm steps"),
    ],
)
def test_without_steps_they_are_the_usual_ones(home, monkeypatch, flags, said):
    monkeypatch.setitem(sample.USUAL_STEPS, "ddpm", 30)
    monkeypatch.setitem(sample.USUAL_STEPS, "ddim", 15)
    picture(home)
    outcome = run("sample.py", ["--model", "model", "--num_images", 1, *flags])
    assert outcome.status == 0, outcome.err
    assert said in outcome.out

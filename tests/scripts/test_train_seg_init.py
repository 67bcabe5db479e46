"""`train_seg.py` without --init: which denoiser it takes, and what it says of the others."""

import os
import shutil
from dataclasses import replace

import pytest
import yaml
from in_process import run

from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.models import UNet

FLAGS = (
    "--data.images pictures --data.masks masks --data.size 8 --data.scale 1 --run seg "
    "--data.augment.elastic_sigma 0 --data.split.validation 0 --train.steps 1 --train.batch_size 2 "
    "--train.warmup_steps 0 --train.sample_every 0 --train.validate_every 0"
)


@pytest.fixture
def home(tmp_path, small_pictures, small_unet):
    """RGB pictures and masks, a run of RGB pictures, and a newer one of latents."""
    for age, (name, channels) in enumerate([("latents", 4), ("colours", 3)]):
        model = tmp_path / "runs" / name / "model"
        unet = replace(small_unet, in_channels=channels, out_channels=channels)
        write_pipeline(model, UNet(unet), GaussianDiffusion())
        if channels == 4:
            (model / "vqvae").mkdir()
        os.utime(model, (1e9 - age, 1e9 - age))
    return tmp_path


def test_the_newest_that_fits_is_taken_and_kept(home):
    outcome = run("train_seg.py", FLAGS.split())
    assert outcome.status == 0, outcome.err
    told = "starting from runs/colours/model; passed over: runs/latents/model (denoises latents)"
    assert told in outcome.out
    assert yaml.safe_load((home / "seg/config.yaml").read_text())["init"] == "runs/colours/model"
    os.utime(home / "runs" / "latents" / "model")
    again = run("train_seg.py", FLAGS.split())
    assert (again.status, "starting from" in again.out) == (0, False)


def test_without_one_that_fits_it_begins_from_scratch_and_says_why(home):
    outcome = run("train_seg.py", [*FLAGS.split(), "--data.channels", "1"])
    assert outcome.status == 0, outcome.err
    for said in (
        "runs/latents/model (denoises latents), ",
        "runs/colours/model (takes 3 channels, the images have 1), ",
        "histology64/model (takes 3 channels, the images have 1)",
        "architecture: classic",
    ):
        assert said in outcome.out


def test_without_a_plan_all_are_named_in_one_line(home):
    """A recipe that is given says what is wanted."""
    (home / "own.yaml").write_text("architecture: unet\n")
    outcome = run("train_seg.py", [*FLAGS.split(), "--data.channels=1", "--config=own.yaml"])
    assert outcome.status == 2
    assert outcome.err.count("\n") == 1
    for said in (
        "no denoiser to start from: runs/latents/model (denoises latents), ",
        "runs/colours/model (takes 3 channels, the images have 1), ",
        "histology64/model (takes 3 channels, the images have 1); set head.repeat_grey true",
        "or give --init DIR or --init scratch",
    ):
        assert said in outcome.err
    assert not (home / "seg").exists()


def test_without_a_run_of_ones_own_and_other_images_than_the_shipped_it_starts_at_random(home):
    shutil.rmtree(home / "runs")
    (home / "own.yaml").write_text("architecture: unet\n")
    outcome = run("train_seg.py", [*FLAGS.split(), "--data.channels=1", "--config=own.yaml"])
    assert outcome.status == 0, outcome.err
    assert outcome.out.splitlines()[0].startswith("starting from random weights: no denoiser of")
    assert yaml.safe_load((home / "seg/config.yaml").read_text())["init"] == "scratch"

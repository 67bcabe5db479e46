import json

import pytest
import torch
from in_process import run
from small import Means, write_images
from torch import nn

from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.evaluation import extractors
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.models import UNet


@pytest.fixture
def home(tmp_path, monkeypatch, small_unet):
    """A run, real images in `real`, and generated ones in `made`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(extractors.EXTRACTORS, "means", Means)
    for kind in ("real", "made"):
        write_images(tmp_path / kind, 20, 8, 8, 3)
    write_images(tmp_path / "made", 19, 8, 8, 3)
    torch.manual_seed(0)
    write_pipeline(tmp_path / "run" / "model", UNet(small_unet), GaussianDiffusion())
    (tmp_path / "run" / "config.yaml").write_text("data: {source: real, size: 8}\n")
    return tmp_path


JOB = ["--extractor", "means", "--num_images", 10, "--batch_size", 4]
MODEL = ["--model", "run/model", "--steps", 2]


def scores(folder):
    return json.loads((folder / "scores.json").read_text())["scores"]


def test_a_model_is_compared_with_its_training_data_and_goes_on_where_it_stopped(home):
    outcome = run("evaluate.py", [*JOB, *MODEL, "made=made"])
    assert outcome.status == 0, outcome.err
    assert "| drawn |" in outcome.out
    found = scores(home / "evaluation")
    assert set(found) == {"real", "drawn", "made"}
    assert (home / "evaluation" / "page.png").exists()
    (home / "evaluation" / "parts" / "000004-000008.safetensors").unlink()
    again = run("evaluate.py", [*JOB, *MODEL, "made=made"])
    assert again.out.count("images drawn") == 1
    assert scores(home / "evaluation") == found
    more = run("evaluate.py", [*JOB, *MODEL, "--num_images", 9])
    assert more.out.count("images drawn") == 1
    other = run("evaluate.py", [*JOB, *MODEL, "--seed", 1])
    assert other.out.count("images drawn") == 3


def test_a_guide_changes_what_is_drawn_and_only_at_a_scale_other_than_1(home, small_unet):
    weak = UNet(small_unet)
    nn.init.constant_(weak.conv_out.bias, 0.3)
    write_pipeline(home / "weak", weak, GaussianDiffusion())
    found = []
    for flags in ([], ["--guidance", 1, "--guide", "weak"], ["--guidance", 3, "--guide", "weak"]):
        outcome = run("evaluate.py", [*JOB, *MODEL, *flags])
        assert outcome.status == 0, outcome.err
        assert outcome.out.count("images drawn") == 3
        found.append(scores(home / "evaluation")["drawn"]["fd"])
    assert found[0] == pytest.approx(found[1])
    assert abs(found[2] - found[0]) > 1e-3


def test_folders_are_compared(home):
    outcome = run("evaluate.py", [*JOB, "made=made", "same=real", "--reference", "real"])
    assert outcome.status == 0, outcome.err
    found = scores(home / "evaluation")
    assert found["made"]["fd"] > 0
    assert found["same"]["copying"] < 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([*MODEL, "--extractor", "vgg"], "extractor vgg: is none of"),
        ([*MODEL, "--held_out", "--num_images", 8], "images out, and 16 are wanted"),
        (["made=nowhere"], "made=nowhere: give name=folder"),
        (["made=made", "--num_images", 21], "made: has 20 images; give --num_images 20"),
        (["made=made", "--reference", "real", "--num_images", 11], "give --num_images 10"),
        (["made=made", "--data.source", "real", "--data.size", 4], "made: images of (3, 8, 8)"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(home, flags, message):
    outcome = run("evaluate.py", [*JOB, *flags])
    assert outcome.status == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1

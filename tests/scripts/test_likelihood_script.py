import json
from dataclasses import replace

import pytest
from in_process import run
from small import write_images

from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.models import UNet


@pytest.fixture
def home(tmp_path, monkeypatch, small_unet):
    """Pictures, and a run of a network with learned variances that knows their size."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "pictures", 5, 16, 16, 3)
    learned = GaussianDiffusion(num_timesteps=20, variance_type="learned_range")
    write_pipeline(tmp_path / "run" / "model", UNet(replace(small_unet, out_channels=6)), learned)
    (tmp_path / "run" / "config.yaml").write_text(
        "data: {source: pictures, size: 8}\ndiffusion: {num_train_timesteps: 30}\n"
        "preview: {steps: 5}\n"
    )
    return tmp_path


def test_the_data_are_those_of_the_run(home):
    flags = ["--model", "run/model", "--images", 6, "--parts", 4, "--all", "--out", "found"]
    outcome = run("likelihood.py", [*flags, "--precision", "bf16"])
    assert outcome.status == 0, outcome.err
    assert "bits per dimension of 6 images, learned_range variances: L_0" in outcome.out
    found = json.loads((home / "found" / "likelihood.json").read_text())
    assert found["images"] == 6
    assert found["parts"][-1]["last"] == 19
    assert (home / "found" / "likelihood.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "data.source pictures: holds no image out; give --all"),
        (["--data.channels", 1, "--all"], "has images of 1 channels, run/model is of 3; set"),
        (["--images", 1], "no whole number between 2 and"),
        (["--data.sizes", 8], "--data.sizes: no such setting; did you mean data.size?"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(home, flags, message):
    outcome = run("likelihood.py", ["--model", "run/model", *flags])
    assert outcome.status == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1

"""Averages of another length, of a denoiser and of segmenters, from the command line."""

import pytest
import torch
from in_process import run

from ddpm_unet.inference.pipeline import read_pipeline
from ddpm_unet.models.segmenter import load_segmentation_model

KEPT = ["--train.ema_sigma_rel", "[0.05,0.1]", "--train.ema_every", 2, "--train.steps", 6]
SMALL = """
data: {size: 8}
model:
  block_out_channels: [8]
  down_block_types: [DownBlock2D]
  up_block_types: [UpBlock2D]
  layers_per_block: 1
  norm_num_groups: 4
train: {batch_size: 2, warmup_steps: 0, lr: 0.01, sample_every: 0, validate_every: 0}
"""


@pytest.fixture
def home(tmp_path, small_pictures):
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


def average(home, name, length, *flags):
    outcome = run("ema.py", ["--run", f"runs/{name}", "--length", length, *flags])
    assert outcome.status == 0, outcome.err
    return outcome.out


def test_of_a_denoiser(home):
    flags = ["--config", "small.yaml", "--run", "runs/d", "--data.source", "pictures", *KEPT]
    outcome = run("train_ddpm.py", flags)
    assert outcome.status == 0, outcome.err
    said = average(home, "d", 0.07)
    assert said.startswith("average of length 0.07 at step 6 from 3 snapshots, its profile met to")
    average(home, "d", 0.1, "--step", 4, "--out", "early")
    trained, made, early = (
        read_pipeline(home / path)[0].state_dict()
        for path in ("runs/d/model", "runs/d/model-0.07", "early")
    )
    card = (home / "runs/d/model-0.07/README.md").read_text()
    assert "Its weights are the average of length 0.07 at step 6. It draws" in card
    assert "windows of 8 pixels" in card
    assert made.keys() == trained.keys()
    assert not torch.equal(made["conv_in.weight"], trained["conv_in.weight"])
    assert not torch.equal(made["conv_in.weight"], early["conv_in.weight"])
    torch.testing.assert_close(made["conv_in.weight"], trained["conv_in.weight"], atol=0.1, rtol=0)
    drawn = run("sample.py", ["--model", "early", "--steps", 2, "--num_images", 1])
    assert drawn.status == 0, drawn.err


@pytest.mark.parametrize("architecture", ["unet", "classic"])
def test_of_a_segmenter(home, architecture):
    text = SMALL.replace("data: {size: 8}", "data: {size: 16, images: pictures, masks: masks}")
    text += "init: scratch\nclassic: {padding: same, norm: batch, depth: 2, base_width: 4}\n"
    (home / "seg.yaml").write_text(text)
    flags = ["--config", "seg.yaml", "--run", "runs/s", "--architecture", architecture, *KEPT]
    outcome = run("train_seg.py", flags)
    assert outcome.status == 0, outcome.err
    average(home, "s", 0.07)
    trained, made = (
        load_segmentation_model(home / "runs" / "s" / name) for name in ("model", "model-0.07")
    )
    differing = 0
    for (name, a), b in zip(trained.named_parameters(), made.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0.2, rtol=0, msg=name)
        differing += not torch.equal(a, b)
    assert differing > 5
    for a, b in zip(trained.buffers(), made.buffers(), strict=True):
        assert torch.equal(a, b)
    assert (home / "runs" / "s" / "model-0.07" / "preprocessing.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--run nowhere --length 0.1", "nowhere/averages: has no averages; train with --train.ema"),
        ("--length 0.1", "no run in runs/ has averages; train one with --train.ema_sigma_rel, or"),
        ("--length 0.5", "is no number between 0.01 and 0.28"),
    ],
)
def test_what_cannot_be_averaged_is_refused_in_one_line(home, flags, message):
    outcome = run("ema.py", flags.split())
    assert outcome.status == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1

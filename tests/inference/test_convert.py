"""The command that makes folders of other toolkits' checkpoints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors.torch import load_file, save_file
from small import monai_name

from ddpm_unet.commands import convert
from ddpm_unet.config import CheckpointHints, ProcessHints
from ddpm_unet.errors import UserError
from ddpm_unet.inference.pipeline import read_pipeline
from ddpm_unet.models import UNet

TOLD = CheckpointHints(heads=1, norm_num_groups=4, norm_eps=1e-6)
LINEAR: dict[str, Any] = {
    "size": 8,
    "prediction_type": "epsilon",
    "num_train_timesteps": 100,
    "beta_schedule": "linear",
    "beta_start": 1e-3,
    "beta_end": 0.1,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A network of one level by MONAI's names."""
    unet = UNet(block_out_channels=(8,), layers_per_block=1, norm_num_groups=4)
    torch.nn.init.normal_(unet.conv_out.weight)
    weights = {monai_name(name): tensor for name, tensor in unet.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_the_network_alone(file: Path, tmp_path: Path) -> None:
    unet, diffusion = convert.convert(file, tmp_path / "out", TOLD, ProcessHints())
    assert diffusion is None
    again = UNet.from_pretrained(tmp_path / "out")
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(unet(x, 5), again(x, 5))
    with pytest.raises(UserError, match="has files in it; name a new folder"):
        convert.convert(file, tmp_path / "out", TOLD, ProcessHints())


def test_a_pipeline(file: Path, tmp_path: Path) -> None:
    _, diffusion = convert.convert(file, tmp_path / "out", TOLD, ProcessHints(**LINEAR))
    unet, read = read_pipeline(tmp_path / "out")
    assert read.config == diffusion.config
    assert (read.beta_end, read.num_timesteps, unet.config.sample_size) == (0.1, 100, 8)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Converted from {file.name}. Of the data" in card
    theirs = DDPMPipeline.from_pretrained(tmp_path / "out")
    drawn = theirs(batch_size=1, num_inference_steps=2, output_type="np").images
    assert drawn.shape == (1, 8, 8, 3)


def test_all_that_is_not_told_of_the_noise_is_asked_for_at_once(file: Path) -> None:
    with pytest.raises(UserError) as caught:
        convert.forward_process(file, ProcessHints(size=8))
    for name in LINEAR:
        assert (f"--{name}" in str(caught.value)) == (name != "size")
    cosine = ProcessHints(
        size=8, prediction_type="sample", num_train_timesteps=10, beta_schedule="squaredcos_cap_v2"
    )
    assert convert.forward_process(file, cosine)["beta_schedule"] == "squaredcos_cap_v2"


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_betas_in_the_file_say_the_schedule(schedule: str, tmp_path: Path) -> None:
    """As diffusers computes them, in float32."""
    file = tmp_path / "betas.safetensors"
    theirs = DDPMScheduler(500, 0.00085, 0.012, schedule)
    save_file({"model.betas": theirs.betas}, file)
    told = ProcessHints(size=8, prediction_type="v_prediction")
    found = convert.forward_process(file, told)
    assert (found["beta_schedule"], found["num_timesteps"]) == (schedule, 500)
    if schedule != "squaredcos_cap_v2":
        assert (found["beta_start"], found["beta_end"]) == (0.00085, 0.012)
    assert found["prediction_type"] == "v_prediction"
    contrary = ProcessHints(size=8, prediction_type="epsilon", num_train_timesteps=1000)
    with pytest.raises(UserError, match="its betas have num_train_timesteps 500, not 1000"):
        convert.forward_process(file, contrary)


def test_the_sigmoid_schedule_of_denoising_diffusion_pytorch(file: Path, tmp_path: Path) -> None:
    """Its formula, in its precision; the pipeline's folder tells diffusers the betas."""
    time = torch.linspace(0, 200, 201, dtype=torch.float64) / 200
    first, last = torch.tensor(-3.0).sigmoid(), torch.tensor(3.0).sigmoid()
    abar = (last - (6 * time - 3).sigmoid()) / (last - first)
    theirs = (1 - abar[1:] / abar[:-1]).clip(0, 0.999).float()
    weights = {f"model.{name}": tensor for name, tensor in load_file(file).items()}
    save_file(weights | {"betas": theirs}, tmp_path / "both.safetensors")
    told = ProcessHints(size=8, prediction_type="v_prediction")
    convert.convert(tmp_path / "both.safetensors", tmp_path / "out", TOLD, told)
    _, diffusion = read_pipeline(tmp_path / "out")
    assert (diffusion.beta_schedule, diffusion.num_timesteps) == ("logistic", 200)
    scheduler = DDPMPipeline.from_pretrained(tmp_path / "out").scheduler
    kept = scheduler.alphas_cumprod
    torch.testing.assert_close(kept, (1 - theirs).cumprod(0), rtol=0, atol=1e-5)
    path = tmp_path / "out" / "scheduler" / "scheduler_config.json"
    settings = json.loads(path.read_text())
    settings["trained_betas"][3] *= 1.1
    path.write_text(json.dumps(settings))
    with pytest.raises(UserError, match="lists betas of its own"):
        read_pipeline(tmp_path / "out")


def test_betas_of_another_schedule_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "betas.safetensors"
    save_file({"betas": torch.linspace(0.01, 0.1, 50) ** 3 * 100}, file)
    with pytest.raises(UserError, match="of no known schedule"):
        convert.forward_process(file, ProcessHints(size=8))


def test_the_command_says_what_it_did(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--heads", "1", "--norm_num_groups", "4", "--norm_eps", "1e-6"]
    monkeypatch.setattr(sys, "argv", ["convert", str(file), str(tmp_path / "out"), *told])
    convert.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("MONAI: 3 to 3 channels, levels of 8, ")
    assert lines[1].endswith("nothing was said of the noise")
    monkeypatch.setattr(sys, "argv", ["convert", str(file), str(tmp_path / "other")])
    with pytest.raises(UserError):
        convert.main()


def test_a_network_that_predicts_variances(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It samples with them; without them, it predicts the rest as before."""
    weights = load_file(file)
    for name in ("out.2.conv.weight", "out.2.conv.bias"):
        weights[name] = torch.cat([weights[name], torch.randn_like(weights[name])])
    save_file(weights, tmp_path / "both.safetensors")
    whole = ProcessHints(**LINEAR)
    _, process = convert.convert(tmp_path / "both.safetensors", tmp_path / "whole", TOLD, whole)
    unet, read = read_pipeline(tmp_path / "whole")
    assert process.config == read.config
    assert (unet.config.out_channels, read.variance_type) == (6, "learned_range")
    theirs = DDPMPipeline.from_pretrained(tmp_path / "whole")
    assert theirs.scheduler.config.variance_type == "learned_range"
    told = ProcessHints(**LINEAR, drop_variance=True)
    convert.convert(tmp_path / "both.safetensors", tmp_path / "out", TOLD, told)
    unet, _ = read_pipeline(tmp_path / "out")
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(unet(x, 5), UNet.from_pretrained(file, TOLD)(x, 5))
    alone = ProcessHints(drop_variance=True)
    with pytest.raises(UserError, match="predicts no variances"):
        convert.convert(file, tmp_path / "none", TOLD, alone)
    unet, process = convert.convert(tmp_path / "both.safetensors", tmp_path / "alone", TOLD, alone)
    assert (unet.config.out_channels, process) == (3, None)

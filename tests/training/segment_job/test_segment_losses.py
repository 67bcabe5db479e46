"""What is minimised: the configured loss, its weights, and denoising in the same steps."""

from pathlib import Path

import pytest
import torch
from small_cells import DIFFUSION, changed, first_batch
from torch import nn

from ddpm_unet.config import DiffusionConfig, SegmentLossConfig
from ddpm_unet.errors import UserError
from ddpm_unet.training.from_config import build_pixel_job
from ddpm_unet.training.losses import segmentation_loss


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (SegmentLossConfig(class_weights=(1.0,)), "1 numbers for 2 classes"),
        (SegmentLossConfig("border", class_weights=(1.0, 2.0)), "leave one of the two out"),
    ],
)
def test_class_weights_that_fit_nothing(settings, loss, message):
    settings.loss = loss
    with pytest.raises(UserError, match=message):
        build_pixel_job(settings)


@pytest.mark.parametrize("name", ["cross_entropy+dice", "border"])
def test_the_loss_is_the_configured_one_with_its_weights(settings, name):
    settings.loss.name = name
    weights = None
    if name != "border":
        settings.loss.class_weights = (0.25, 4.0)
        weights = torch.tensor([0.25, 4.0])
    job = build_pixel_job(settings)
    model = job.build_model().eval()
    batch = first_batch(job, model)
    assert ("weight" in batch) == (name == "border")
    expected = segmentation_loss(
        name,
        model(batch["image"]),
        batch["mask"],
        class_weights=weights,
        pixel_weights=batch.get("weight"),
    )
    torch.testing.assert_close(job.losses(model, batch), expected)


def joint_job(settings):
    settings.head.transfer = "joint"
    return build_pixel_job(settings)


def test_joint_training_adds_the_denoising_loss_of_the_denoisers_own_process(settings):
    settings.loss.denoise_weight = 0.3
    settings.diffusion.min_snr_gamma = 5.0
    job = joint_job(settings)
    model = job.build_model().eval()
    for parameter in model.unet.parameters():  # those that begin at 0 hide what goes in
        nn.init.normal_(parameter, std=0.2)
    batch = first_batch(job, model)
    images = batch["unlabelled"].float() / 127.5 - 1
    timesteps, noise = DIFFUSION.draw(0, batch["position"], images.shape[1:])
    denoising = DIFFUSION.losses(model.unet, images, timesteps, noise, weighting="min_snr")
    segmenting = segmentation_loss("cross_entropy+dice", model(batch["image"]), batch["mask"])
    assert denoising.min() > 0.01
    torch.testing.assert_close(job.losses(model, batch), segmenting + 0.3 * denoising)


def test_unlabelled_images_are_as_fine_as_the_labelled_ones(settings):
    settings.data.scale, settings.unlabelled.scale = 0.5, 0.8
    settings.data.value_range = (0.0, 200.0)
    joint = joint_job(settings).joint
    fit = joint.windows.images.fit
    assert fit.scale == pytest.approx(0.4)
    assert (fit.size, fit.channels) == (16, 3)
    assert fit.value_range == (0.0, 200.0)


def test_joint_training_from_scratch_has_the_configured_process(settings):
    settings.init, settings.diffusion = "scratch", DiffusionConfig(num_train_timesteps=50)
    assert len(joint_job(settings).joint.diffusion.draw(0, [0], (1,), "cpu")[0]) == 1
    settings.init = str(Path(settings.init) / "nowhere")
    with pytest.raises(UserError, match=r"has no scheduler/scheduler_config\.json"):
        joint_job(settings)


def test_under_deep_supervision_every_output_is_taught(settings):
    settings = changed(settings, "nested")
    settings.classic.depth = 3
    job = build_pixel_job(settings)
    model = job.build_model().train()
    model.encoder.dropout.p = 0.0
    batch = first_batch(job, model)
    outputs = model(batch["image"])
    assert len(outputs) == 2
    losses = [segmentation_loss(settings.loss.name, x, batch["mask"]) for x in outputs]
    assert (losses[0] != losses[1]).all()
    torch.testing.assert_close(job.losses(model, batch), (losses[0] + losses[1]) / 2)

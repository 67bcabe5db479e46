"""The network of the job: its channels, windows, dimensions and first weights."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from short_runs import run
from small_cells import UNET, first_batch, pair_data, records
from torchvision import models

from ddpm_unet.config import ClassicConfig
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.errors import UserError
from ddpm_unet.models.segmenter import load_segmentation_model
from ddpm_unet.training.from_config import build_pixel_job


def test_grey_images_and_a_denoiser_of_colours(settings, grey_cells):
    settings.data = pair_data(grey_cells)
    with pytest.raises(UserError, match="set repeat_grey to repeat the grey channel"):
        run(settings)
    settings.run += " of grey"
    settings.head.repeat_grey, settings.head.transfer = True, "joint"
    settings.unlabelled.source = f"{grey_cells}/images"
    folder = run(settings)
    model = load_segmentation_model(folder.model)
    assert Preprocessing.read(folder.model, model.in_channels).channels == 1
    assert records(folder, "mean_dice")


def test_windows_that_a_network_without_padding_cannot_give(settings):
    settings.architecture, settings.init, settings.data.size = "classic", None, 17
    with pytest.raises(UserError, match=r"data\.size 17: .* next that fits is 18"):
        build_pixel_job(settings).build_model()


def test_the_published_windows(settings):
    """388 x 388 labelled pixels from 572 x 572 of a picture mirrored at its borders."""
    settings.architecture, settings.init, settings.data.size = "classic", None, 388
    settings.classic = ClassicConfig(base_width=1)
    settings.train.batch_size = 1
    job = build_pixel_job(settings)
    model = job.build_model()
    batch = first_batch(job, model, 1)
    assert batch["image"].shape == (1, 3, 572, 572)
    assert batch["mask"].shape == (1, 388, 388)
    assert job.losses(model, batch).shape == (1,)


def test_a_network_from_scratch_has_the_dimensions_of_the_data(settings):
    settings.init, settings.model = "scratch", replace(UNET, dims=3)
    with pytest.raises(UserError, match=r"model\.dims = 3: .* data\.dims 2; set it to 2"):
        build_pixel_job(settings).build_model()
    settings.model = replace(UNET, dims=None)
    assert build_pixel_job(settings).build_model().unet.config.dims == 2


def test_an_encoder_of_torchvision_starts_from_given_weights(settings, tmp_path):
    settings.architecture = "classic"
    settings.classic = ClassicConfig(
        encoder="resnet18", decoder="ternaus", depth=2, base_width=2, padding="same"
    )
    torch.manual_seed(3)
    weights = models.resnet18().state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    settings.init = str(tmp_path / "weights.safetensors")
    model = build_pixel_job(settings).build_model()
    assert torch.equal(model.encoder.network.conv1.weight, weights["conv1.weight"])

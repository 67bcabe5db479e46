import json
from dataclasses import replace

import pytest
import torch

from ddpm_unet.config import DiffusionConfig, UNetConfig
from ddpm_unet.errors import UserError
from ddpm_unet.inference.pipeline import (
    image_shape,
    read_diffusion,
    read_pipeline,
    write_pipeline,
)
from ddpm_unet.models import UNet

SMALL = UNetConfig(
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
    sample_size=8,
)
DIFFUSION = DiffusionConfig(
    num_train_timesteps=500, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
)


@pytest.fixture
def folder(tmp_path):
    write_pipeline(tmp_path / "model", UNet(SMALL), DIFFUSION)
    return tmp_path / "model"


def test_a_pipeline_is_read_as_it_was_written(folder, tmp_path):
    unet, diffusion = read_pipeline(folder)
    assert unet.config == SMALL
    assert diffusion == DIFFUSION
    assert read_diffusion(folder / "unet") == DIFFUSION
    write_pipeline(tmp_path / "again", unet, diffusion)
    for path in folder.rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_other_weights_can_be_written(folder, tmp_path):
    unet, _ = read_pipeline(folder)
    doubled = {name: 2 * value for name, value in unet.state_dict().items()}
    write_pipeline(tmp_path / "doubled", unet, DIFFUSION, doubled)
    read, _ = read_pipeline(tmp_path / "doubled")
    assert all(torch.equal(value, doubled[name]) for name, value in read.state_dict().items())


def test_diffusers_reads_the_forward_process(folder):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    assert len(scheduler.alphas_cumprod) == 500
    assert scheduler.config.variance_type == "fixed_small"


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


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        read_pipeline(tmp_path / "nowhere")


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
    with pytest.raises(UserError, match="give --size"):
        image_shape(replace(SMALL, sample_size=None))

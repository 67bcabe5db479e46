from dataclasses import replace

import pytest
import torch
from small_cells import CLASSIC, DIFFUSION, UNET, pair_data, write_cells

from ddpm_unet.config import HeadConfig, ImageDataConfig, PredictConfig, SegmentConfig, TrainConfig
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.models.unet import UNet


@pytest.fixture(scope="session")
def cells(tmp_path_factory):
    return write_cells(tmp_path_factory.mktemp("cells"), 3)


@pytest.fixture(scope="session")
def grey_cells(tmp_path_factory):
    return write_cells(tmp_path_factory.mktemp("grey"), 1)


@pytest.fixture(scope="session")
def denoiser(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("denoiser") / "model"
    write_pipeline(folder, UNet(UNET), DIFFUSION)
    return folder


@pytest.fixture
def settings(cells, denoiser, tmp_path):
    """A training that takes a second."""
    return SegmentConfig(
        run=str(tmp_path / "run"),
        init=str(denoiser),
        data=pair_data(cells),
        unlabelled=ImageDataConfig(source=f"{cells}/images"),
        model=UNET,
        head=HeadConfig(feature_timesteps=(20, 60), feature_widths=(16, 8)),
        classic=replace(CLASSIC),
        predict=PredictConfig(tile=96),
        train=TrainConfig(
            steps=14, batch_size=4, lr=5e-3, warmup_steps=2, ema_decay=0.9, checkpoint_every=6,
            validate_every=4, sample_every=0, log_every=2,
        ),
    )  # fmt: skip

"""Both jobs on volumes: they learn, from a few labelled slices too, and resume exactly."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from short_runs import files, kill, run
from small import SMALL

from ddpm_unet.config import (
    ClassicConfig,
    DenoiseConfig,
    HeadConfig,
    ImageDataConfig,
    PairDataConfig,
    PredictConfig,
    PreviewConfig,
    SegmentConfig,
    SplitConfig,
    TrainConfig,
    UNetConfig,
)
from ddpm_unet.data.folder import with_dims
from ddpm_unet.data.masks import IGNORE_INDEX
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.errors import UserError
from ddpm_unet.inference.pipeline import image_shape, read_pipeline
from ddpm_unet.models.segmenter import load_segmentation_model
from ddpm_unet.training.from_config import build_denoise_job, build_pixel_job

UNET = UNetConfig(in_channels=1, out_channels=1, dims=3, **SMALL)
STEPS = {"lr": 5e-3, "warmup_steps": 2, "ema_decay": 0.9, "checkpoint_every": 3, "log_every": 2,
         "channels_last": True}  # fmt: skip


@pytest.fixture(scope="module")
def balls(tmp_path_factory) -> Path:
    """Noisy volumes with bright balls and their masks, in "sparse" only of every fourth slice."""
    root = tmp_path_factory.mktemp("balls")
    rng = np.random.default_rng(0)
    places = np.stack(np.mgrid[:14, :18, :12], axis=-1)
    for name in ("images", "masks", "sparse"):
        (root / name).mkdir()
    for number in range(5):
        ball = np.zeros((14, 18, 12), np.uint8)
        for _ in range(2):
            ball |= ((places - rng.uniform(4, 10, 3)) ** 2).sum(-1) < 14
        image = 500.0 * ball + rng.normal(1000, 80, ball.shape)
        sparse = np.where(np.arange(12) % 4 == 1, ball, 9).astype(np.uint8)
        arrays = {"images": image.astype(np.float32), "masks": ball, "sparse": sparse}
        for name, array in arrays.items():
            nibabel.Nifti1Image(array, np.eye(4)).to_filename(root / name / f"{number}.nii.gz")
    return root


@pytest.fixture
def segmenting(balls, tmp_path) -> SegmentConfig:
    """A training that takes a second."""
    settings = SegmentConfig(
        run=str(tmp_path / "run"),
        init="scratch",
        architecture="classic",
        data=PairDataConfig(
            dims=3, images=f"{balls}/images", masks=f"{balls}/masks", num_classes=2, size=8,
            value_range="percentiles", split=SplitConfig(validation=1, test=1),
        ),
        unlabelled=ImageDataConfig(source=f"{balls}/images"),
        model=UNET,
        classic=ClassicConfig(
            depth=2, base_width=4, padding="same", norm="batch", doubling="before_pooling"
        ),
        predict=PredictConfig(tile=24, overlap=4, margin=4),
        train=TrainConfig(steps=6, batch_size=2, validate_every=4, sample_every=4, **STEPS),
    )  # fmt: skip
    settings.data.augment.elastic_sigma = 1.0
    return settings


@pytest.fixture
def denoising(balls, tmp_path) -> DenoiseConfig:
    """A training that takes a second."""
    return DenoiseConfig(
        run=str(tmp_path / "denoiser"),
        data=ImageDataConfig(
            source=f"{balls}/images", dims=3, size=8, value_range="percentiles", channels=1
        ),
        model=UNET,
        train=TrainConfig(steps=6, batch_size=2, validate_every=0, sample_every=6, **STEPS),
        preview=PreviewConfig(num_images=2, steps=2),
    )


@pytest.mark.parametrize("kind", ["segmenting", "denoising"])
def test_killed_and_resumed_ends_bit_for_bit_the_same(kind, request, tmp_path):
    settings = request.getfixturevalue(kind)
    whole = run(settings)
    settings.run = str(tmp_path / "killed")
    kill(settings, 5)
    assert files(run(settings)) == files(whole)


def test_balls_are_found_though_a_few_slices_are_labelled(segmenting, balls):
    segmenting.data.masks = f"{balls}/sparse"
    segmenting.data.ignore_value = 9
    settings = segmenting.train
    settings.steps = settings.validate_every = settings.log_every = 36
    settings.checkpoint_every, settings.sample_every = 36, 0
    job = build_pixel_job(segmenting)
    assert (job.windows(0).images[0]["mask"] == IGNORE_INDEX).float().mean() == 0.75
    folder = run(segmenting, job)
    segmenting.data.masks, segmenting.data.ignore_value = f"{balls}/masks", None
    assert (
        build_pixel_job(segmenting).score_test(folder, torch.device("cpu"))["dice_class 1"] > 0.75
    )
    model = load_segmentation_model(folder.model)
    assert model.config.dims == 3
    assert Preprocessing.read(folder.model, model.in_channels).value_range == "percentiles"
    picture = Image.open(folder.path / "test.png")
    assert picture.size == (2 * 14 * (256 // 18), 4 * 18 * (256 // 18))


def test_a_segmenter_from_a_denoiser_of_volumes(denoising, segmenting):
    denoiser = run(denoising)
    shape = image_shape(read_pipeline(denoiser.model)[0].config)
    assert shape == (1, 8, 8, 8)
    segmenting.architecture, segmenting.init = "unet", str(denoiser.model)
    segmenting.head = HeadConfig(transfer="joint")
    segmenting.train.steps = segmenting.train.validate_every = 2
    folder = run(segmenting)
    assert "mean_dice" in folder.read_metrics()[-1]
    segmenting.data.dims = None
    assert with_dims(segmenting.data, segmenting.data.images).dims == 3  # by the files


def test_dimensions_must_agree(denoising):
    denoising.model = replace(denoising.model, dims=2)
    with pytest.raises(UserError, match=r"model\.dims = 2: data\.dims is 3"):
        build_denoise_job(denoising).build_model()

"""Images denoised with their masks, and what a segmenter makes of such pairs."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from short_runs import change, run

from ddpm_unet.config import (
    ClassicConfig,
    ExtraPairsConfig,
    PairDataConfig,
    SegmentConfig,
    SplitConfig,
)
from ddpm_unet.data.check import check_pairs
from ddpm_unet.data.labelled import LabelledSet, WithExtra, pair_stream
from ddpm_unet.data.sources import open_stream
from ddpm_unet.diffusion.samplers import make_sampler
from ddpm_unet.diffusion.sampling import sample
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.plots import to_uint8
from ddpm_unet.inference.conditioning import Conditioning
from ddpm_unet.inference.pipeline import read_pipeline
from ddpm_unet.inference.writers import save_masks
from ddpm_unet.training.from_config import build_denoise_job, build_pixel_job


def write(folder, count, bright, rng):
    """Pictures whose right or left half is of another grey, and masks that say which."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        mask = np.zeros((8, 8), np.uint8)
        mask[:, : 4 if i % 2 else 8] = 1
        mask = mask if i % 3 else 1 - mask
        grey = np.where(mask, bright, 40) + rng.integers(0, 9, (8, 8))
        Image.fromarray(grey.astype(np.uint8)[..., None].repeat(3, 2)).save(
            folder / f"images/{i}.png"
        )
        Image.fromarray(mask).save(folder / f"masks/{i}.png")


@pytest.fixture
def joint(settings, tmp_path):
    """Settings of a training on grey pictures whose bright pixels are class 1."""
    write(tmp_path / "pairs", 12, 210, np.random.default_rng(0))
    data = settings.data
    data.source, data.condition = str(tmp_path / "pairs/images"), str(tmp_path / "pairs/masks")
    data.condition_classes, data.joint_masks = 2, True
    settings.model.in_channels = settings.model.out_channels = 5
    settings.diffusion.prediction_type = "sample"
    settings.model.dropout = 0.0
    quick = settings.train
    quick.steps, quick.batch_size, quick.micro_batch, quick.lr = 80, 12, 0, 1e-2
    quick.checkpoint_every, quick.validate_every, quick.sample_every = 1000, 0, 80
    quick.ema_decay = 0.8
    settings.preview.num_images = 4
    return settings


def test_what_is_denoised_is_the_image_and_its_mask(joint):
    job = build_denoise_job(joint)
    positions = range(6)
    batch = open_stream(joint.data, joint.seed, job.windows.images).__getitems__(positions)
    seen = []

    def network(x, t):
        seen.append(x)
        return torch.zeros_like(x)

    losses = job.losses(network, batch | {"position": torch.arange(6)})
    image = batch["image"].float() / 127.5 - 1
    mask = torch.where(batch["condition"] == torch.arange(2)[:, None, None], 1.0, -1.0)
    clean = torch.cat([image, mask], dim=1)
    timesteps, noise = job.diffusion.draw(joint.seed, positions, clean.shape[1:])
    torch.testing.assert_close(seen[0], job.diffusion.add_noise(clean, timesteps, noise))
    torch.testing.assert_close(losses, clean.square().flatten(1).mean(1))


def test_pairs_are_drawn_and_train_a_segmenter(joint, tmp_path, monkeypatch):
    folder = run(joint)
    assert (folder.samples / "00000080.png").is_file()
    told = Conditioning.read(folder.model)
    assert told == Conditioning(image_channels=3, mask_classes=2)
    unet, diffusion = read_pipeline(folder.model)
    scheduler = make_sampler("ddim", diffusion)
    drawn = sample(unet, scheduler, (5, 8, 8), seed=0, indices=range(8), steps=12)
    images, masks = told.split(drawn)
    assert ((images.mean(1) > 0) == masks).float().mean() > 0.9, "masks of other images"
    assert 0.2 < masks.float().mean() < 0.8
    monkeypatch.chdir(tmp_path)
    for name in ("images", "masks"):
        Path("drawn", name).mkdir(parents=True)
    for i, image in enumerate(to_uint8(images)):
        Image.fromarray(image.squeeze()).save(f"drawn/images/{i:05d}.png")
    save_masks(masks.numpy(), 2, [Path(f"drawn/masks/{i:05d}.png") for i in range(8)])
    data = PairDataConfig(
        images="pairs/images", masks="pairs/masks", size=8,
        extra=ExtraPairsConfig("drawn/images", "drawn/masks"),
    )  # fmt: skip
    report = check_pairs(data)
    report.stop_at_faults()
    assert report.extra is not None
    assert len(report.extra.pairs) == 8
    assert len(report.pairs) == 12
    assert "in training only, 50% of the windows:" in str(report)


@pytest.fixture
def mixed(tmp_path):
    """A stream of dark pictures with a third of bright ones, and the two of them."""
    write(tmp_path / "own", 5, 110, np.random.default_rng(0))
    write(tmp_path / "further", 7, 240, np.random.default_rng(0))
    places = {name: str(tmp_path / name) for name in ("own/images", "own/masks")}
    further = ExtraPairsConfig(
        str(tmp_path / "further/images"), str(tmp_path / "further/masks"), share=1 / 3
    )
    data = PairDataConfig(
        images=places["own/images"], masks=places["own/masks"], size=8, extra=further
    )
    report = check_pairs(data)
    streams = [pair_stream(LabelledSet(part), seed=3) for part in (report, report.extra)]
    return WithExtra(*streams, 1 / 3), *streams


def test_a_position_has_a_window_of_one_of_the_streams(mixed):
    both, own, further = mixed
    positions = np.random.default_rng(1).permutation(300)
    batch = both.__getitems__(positions)
    assert batch["position"].tolist() == positions.tolist()
    names = [both.name(int(position)) for position in positions]
    chosen = np.array(["further" in name for name in names])
    assert 70 < chosen.sum() < 130
    for place in range(0, 300, 29):
        position = int(positions[place])
        alone = (further if chosen[place] else own)[position]
        for key, value in alone.items():
            assert torch.equal(value, batch[key][place]), key
        assert torch.equal(both[position]["image"], alone["image"])
    for share, source in ((0.0, own), (1.0, further)):
        only = WithExtra(own, further, share).__getitems__(range(5))
        assert torch.equal(only["image"], source.__getitems__(range(5))["image"])


def test_further_pairs_only_train(tmp_path, mixed):
    data = mixed[1].images.config
    data.split = SplitConfig(validation=1, test=1)
    config = SegmentConfig(
        architecture="classic",
        data=data,
        classic=ClassicConfig(depth=2, base_width=4, padding="same"),
    )
    job = build_pixel_job(config)
    parts = [part for name in ("train", "validation", "test") for part in job.split[name]]
    assert len(parts) == 5
    network = job.build_model()
    batch = job.stream(network, Accelerator(cpu=True)).__getitems__(range(32))
    assert batch["image"].amax(dim=(1, 2, 3)).gt(0.5).any(), "no further pair trains"
    assert "and on further 7 labelled images" in job.describe()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.condition_classes": None}, "there are no masks to denoise; set data"),
        (
            {"model.in_channels": 3, "model.out_channels": 3},
            "the images with their masks' 5 channels; set it to 5",
        ),
    ],
)
def test_denoisers_that_cannot_be(joint, changes, message):
    change(joint, changes)
    with pytest.raises(UserError, match=re.escape(message)):
        build_denoise_job(joint).build_model()


def test_faults_of_further_pairs_are_found(tmp_path, mixed):
    data = mixed[1].images.config
    mask = tmp_path / "further/masks/3.png"
    Image.fromarray(np.full((8, 8), 2, np.uint8)).save(mask)
    with pytest.raises(UserError, match=re.escape(str(mask.parent))):
        check_pairs(data).stop_at_faults()
    mask.unlink()
    with pytest.raises(UserError, match=r"3\.png: has no mask in"):
        check_pairs(data).stop_at_faults()
    data.extra.masks = None
    with pytest.raises(UserError, match=r"data\.extra: give a folder for both"):
        check_pairs(data)

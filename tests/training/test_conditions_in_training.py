"""Denoisers that are told something: they learn to go by it, and go on exactly after a kill."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from short_runs import change, files, kill, run

from ddpm_unet.data.sources import open_stream
from ddpm_unet.diffusion.conditioning import concat_cond, draw_dropped
from ddpm_unet.errors import UserError
from ddpm_unet.inference.conditioning import Conditioning
from ddpm_unet.inference.pipeline import read_pipeline
from ddpm_unet.training.from_config import build_denoise_job

GREYS = {"bright": 0.7, "dark": -0.9}  # classes 0 and 1, and their grey


def quickly(settings):
    """Train fast instead of often."""
    train = settings.train
    train.steps, train.batch_size, train.micro_batch, train.lr = 25, 12, 0, 1e-2
    train.checkpoint_every, train.validate_every, train.ema_decay = 1000, 0, 0.8
    settings.model.dropout = 0.0
    settings.diffusion.prediction_type = "sample"
    return settings


@pytest.fixture
def told(settings, tmp_path):
    """Settings of a training on dark and bright pictures, and what lies beside these."""
    for name, grey in GREYS.items():
        for folder in ("images", "masks", "vectors"):
            (tmp_path / folder / name).mkdir(parents=True)
        for i in range(12):
            rng = np.random.default_rng(i)
            level = round(127.5 * (1 + grey))
            pixels = rng.integers(level - 10, level + 10, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"images/{name}/{i}.png")
            mask = np.full((8, 8), name == "dark", np.uint8)
            Image.fromarray(mask).save(tmp_path / f"masks/{name}/{i}.png")
            sign = 1 if name == "dark" else -1
            np.save(tmp_path / f"vectors/{name}/{i}.npy", np.full((1 + i % 3, 6), sign))
    settings.data.source = str(tmp_path / "images")
    settings.preview.num_images = 4
    return settings


def by_class(settings):
    settings.data.class_labels = True
    settings.model.num_class_embeds = 2 + (settings.condition_dropout > 0)
    return settings


def by_mask(settings):
    settings.data.condition = str(Path(settings.data.source).parent / "masks")
    settings.data.condition_classes = 2
    settings.model.in_channels = 5
    return settings


def by_context(settings):
    settings.data.context = str(Path(settings.data.source).parent / "vectors")
    model = settings.model
    model.cross_attention_dim, model.attention_head_dim = 6, 2
    model.down_block_types = ("DownBlock2D", "CrossAttnDownBlock2D")
    model.mid_block_type = None
    model.up_block_types = ("CrossAttnUpBlock2D", "UpBlock2D")
    return settings


def conditions(kind, label, count):
    """What says that an image is bright (0) or dark (1)."""
    if kind is by_class:
        return {"class_labels": torch.full((count,), label)}
    if kind is by_mask:
        planes = torch.zeros(count, 2, 8, 8)
        planes[:, label] = 1
        return {"concat_cond": planes}
    context = torch.full((count, 3, 6), 2.0 * label - 1)
    return {"context": context, "context_mask": torch.tensor([[True, False, False]] * count)}


def error(unet, diffusion, label, told):
    """Of the image that is predicted from mere noise, when it is said to be something."""
    images = torch.full((32, 3, 8, 8), list(GREYS.values())[label])
    _, noise = diffusion.draw(0, range(32), (3, 8, 8))
    with torch.inference_mode():
        denoiser = concat_cond(unet)
        return diffusion.losses(denoiser, images, torch.full((32,), 999), noise, **told).mean()


@pytest.mark.parametrize("kind", [by_mask, by_context])
def test_a_denoiser_goes_by_what_it_is_told(told, kind):
    unet, diffusion = read_pipeline(run(quickly(kind(told))).model)
    for label in (0, 1):
        right, wrong = (
            error(unet, diffusion, label, conditions(kind, said, 32)) for said in (label, 1 - label)
        )
        assert right < 0.7 * wrong


def test_the_null_class_stands_between_the_classes(told):
    told.condition_dropout, told.data.include_held_out = 0.3, True
    folder = run(quickly(by_class(told)))
    assert Conditioning.read(folder.model) == Conditioning(
        image_channels=3, class_names=("bright", "dark"), cond_dropout=True
    )
    unet, diffusion = read_pipeline(folder.model)
    for label in (0, 1):
        right, null, wrong = (
            error(unet, diffusion, label, conditions(by_class, said, 32))
            for said in (label, 2, 1 - label)
        )
        assert right < 0.8 * null < 0.8**2 * wrong


def test_labels_are_withheld_by_position_and_never_in_validation(told, monkeypatch):
    told.condition_dropout = 0.4
    job = build_denoise_job(by_class(told))
    seen = []

    def network(x, t, class_labels):
        seen.append(class_labels)
        return x

    positions = torch.arange(30, 70)
    batch = open_stream(told.data, told.seed, job.windows.images).__getitems__(positions)
    job.losses(network, batch)
    dropped = draw_dropped(told.seed, positions, 0.4)
    assert 5 < dropped.sum() < 30
    assert torch.equal(seen[0], torch.where(dropped, 2, batch["label"]))
    seen.clear()
    job.held_out = open_stream(told.data, 0, job.windows.images)
    monkeypatch.setattr(type(job.held_out), "__len__", lambda self: 24, raising=False)
    job.validate(network, Accelerator(cpu=True))
    assert seen
    assert not (torch.cat(seen) == 2).any()


def test_all_conditions_at_once_and_an_exact_resume(told, tmp_path):
    told.condition_dropout, told.self_conditioning = 0.25, True
    settings = by_context(by_mask(by_class(told)))
    settings.model.in_channels = 3 + 3 + 2
    settings.train.steps = settings.train.sample_every = 8
    whole = run(settings)
    assert (whole.samples / "00000008.png").is_file()
    settings.run = str(tmp_path / "killed")
    kill(settings, 13)
    resumed = run(settings)
    assert files(resumed) == files(whole)
    saved = json.loads((resumed.model / "conditioning.json").read_text())
    assert saved == {
        "image_channels": 3,
        "class_names": ["bright", "dark"],
        "cond_dropout": True,
        "concat_cond": {"kind": "classes", "channels": 2, "factor": 1},
        "text_encoder": None,
        "self_conditioning": True,
        "mask_classes": 0,
        "guidance": None,
    }
    assert Conditioning.read(resumed.model / "unet") == Conditioning.read(resumed.model)


def test_gradients_reach_every_weight_after_the_estimate(told):
    """Autocast must not keep the weights that it cast where no gradient is asked for."""
    told.self_conditioning = True
    told.model.in_channels = 6
    job = build_denoise_job(told)
    model = job.build_model()
    for parameter in model.parameters():  # zeros at first, which pass no gradient on
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    batch = open_stream(told.data, 0, job.windows.images).__getitems__(torch.arange(8))
    in_bf16 = torch.autocast("cpu", torch.bfloat16)(model.forward)  # as accelerate does
    job.losses(in_bf16, batch).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("condition", ["lower:2", "hole"])
def test_conditions_made_of_the_images(told, condition):
    told.data.condition = condition
    told.model.in_channels = 6 if condition == "lower:2" else 7
    told.train.steps, told.train.sample_every = 2, 2
    folder = run(told)
    assert (folder.samples / "00000002.png").is_file()
    planes = Conditioning.read(folder.model).concat_cond
    assert planes is not None
    assert planes.channels == told.model.in_channels - 3


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (by_mask, {"model.in_channels": 3}, "3, the condition's 2 channels; set it to 5"),
        (None, {"self_conditioning": True}, "an estimate's 3 channels; set it to 6"),
        (None, {"condition_dropout": 0.1}, "the images come without a class"),
        (by_class, {"condition_dropout": 0.1}, "2 classes and one for none; set it to 3"),
        (by_context, {"data.context": None}, "attends to a context; set data"),
        (by_context, {"model.cross_attention_dim": 8}, "vectors of data.context have 6"),
    ],
)
def test_networks_that_cannot_be_told(told, kind, changes, message):
    change(kind(told) if kind else told, changes)
    with pytest.raises(UserError, match=re.escape(message)):
        run(told)
    assert not Path(told.run).exists()

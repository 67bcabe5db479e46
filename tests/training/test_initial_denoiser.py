"""A segmenter starts from the newest denoiser that sees what it sees."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ddpm_unet.config import HeadConfig, PairDataConfig, SegmentConfig
from ddpm_unet.data.conditioning import ConcatCondition
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.errors import UserError
from ddpm_unet.inference.conditioning import Conditioning
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.models import UNet
from ddpm_unet.training.planned import channels_of, choose_denoiser


@pytest.fixture
def write(settings, tmp_path):
    """Write a denoiser with other settings than those that fit RGB pictures."""

    def write(name, told=None, latents=False, **changes):
        folder = tmp_path / name
        write_pipeline(folder, UNet(replace(settings.model, **changes)), GaussianDiffusion())
        if told:
            told.write(folder)
        if latents:
            (folder / "vqvae").mkdir()
        return folder

    return write


@pytest.fixture
def rgb(blobs, tmp_path):
    """The settings of a set of RGB pictures and their masks."""
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in blobs.iterdir():
        Image.fromarray(np.eye(16, dtype=np.uint8)).save(masks / path.name)
    return SegmentConfig(data=PairDataConfig(images=str(blobs), masks=str(masks)))


def choose(config, *folders):
    return choose_denoiser(config, channels_of(config.data), folders)


UNFIT = {
    "latents": ({"latents": True}, "denoises latents"),
    "grey": ({"in_channels": 1, "out_channels": 1}, "takes 1 channel, the images have 3"),
    "joint": (
        {"in_channels": 3, "out_channels": 3, "told": Conditioning(1, mask_classes=2)},
        "denoises images with their masks",
    ),
    "masks": (
        {"out_channels": 1, "told": Conditioning(1, concat_cond=ConcatCondition("classes", 2))},
        "is conditioned on an image",
    ),
    "self": (
        {"in_channels": 6, "told": Conditioning(self_conditioning=True)},
        "is self-conditioned",
    ),
    "classes": (
        {"num_class_embeds": 4},
        "is conditioned on classes, and head.class_label is not set",
    ),
    "volumes": ({"dims": 3}, "is of 3 dimensions, data.dims is 2"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_one_that_sees_something_else_is_passed_over(kind, write, rgb):
    changes, why = UNFIT[kind]
    other, fit = write(kind, **changes), write("fit")
    assert choose(rgb, fit, other) == (fit, f"starting from {fit}")
    assert choose(rgb, other, fit) == (fit, f"starting from {fit}; passed over: {other} ({why})")
    assert choose(rgb, other) == (None, f"{other} ({why})")
    assert choose(rgb) == (None, "there is none")


def test_the_settings_of_the_head_count(write, rgb):
    classes, colour, grey = (
        write("classes", num_class_embeds=4),
        write("colour"),
        write("grey", in_channels=1, out_channels=1),
    )
    assert choose(replace(rgb, head=HeadConfig(class_label=2)), classes)[0] == classes
    rgb.data.channels = 1
    assert choose(rgb, colour, grey)[0] == grey
    assert choose(rgb, colour) == (None, f"{colour} (takes 3 channels, the images have 1)")
    assert choose(replace(rgb, head=HeadConfig(repeat_grey=True)), colour, grey)[0] == colour


def test_of_many_that_do_not_fit_the_newest_are_named(write, rgb):
    folders = [write(f"grey{i}", in_channels=1, out_channels=1) for i in range(6)]
    assert re.search(r"grey3 \(takes 1 channel.*\) and 2 more$", choose(rgb, *folders)[1])


def test_a_damaged_one_is_named(write, rgb):
    newest, fit = write("newest"), write("fit")
    (newest / "unet" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"newest/unet/config\.json: is not readable"):
        choose(rgb, newest, fit)


def test_images_at_fault_are_left_to_the_check(write, rgb, tmp_path):
    assert channels_of(rgb.data) == 3
    rgb.data.images = str(tmp_path / "nowhere")
    assert channels_of(rgb.data) is None
    grey = write("grey", in_channels=1, out_channels=1)
    assert choose(rgb, grey)[0] == grey

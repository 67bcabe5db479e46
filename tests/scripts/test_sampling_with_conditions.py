"""`sample.py` for a model that is told everything there is to tell."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from in_process import run
from PIL import Image
from safetensors.torch import save_file
from small import AUTOENCODER, TINY

from ddpm_unet.data.conditioning import ConcatCondition
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.inference.conditioning import Conditioning
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.models import UNet
from ddpm_unet.models.autoencoder import Autoencoder

TOLD = ["--class", "b", "--context", "vectors.npy", "--condition", "mask.png"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model of random weights, a checkpoint of it, and files to tell it."""
    home = tmp_path_factory.mktemp("home")
    unet = UNet(
        in_channels=3 + 3 + 2, sample_size=8, block_out_channels=(8, 16), mid_block_type=None,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), layers_per_block=1,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=4,
        attention_head_dim=2, cross_attention_dim=6, num_class_embeds=3,
    )  # fmt: skip
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    write_pipeline(home / "model", unet, GaussianDiffusion())
    Conditioning(3, ("a", "b"), True, ConcatCondition("classes", 2), None, True).write(
        home / "model"
    )
    (home / "early").mkdir()
    earlier = {name: 0.5 * value.detach() for name, value in unet.state_dict().items()}
    save_file(earlier, home / "early/ema.safetensors")
    np.save(home / "vectors.npy", np.ones((2, 6)))
    Image.fromarray(np.eye(12, 8, dtype=np.uint8)).save(home / "mask.png")
    return home


def sample(*flags):
    job = ["--model", "model", "--steps", 3, "--num_images", 3, "--batch_size", 3]
    return run("sample.py", [*map(str, job), *flags])


def pictures(folder):
    files = sorted(folder.glob("0*.png"))
    assert len(files) == 3
    return np.stack([np.asarray(Image.open(file)) for file in files]).astype(int)


def test_it_goes_by_what_it_is_told_and_is_guided(home, monkeypatch):
    monkeypatch.chdir(home)
    drawn = {}
    for name, flags in {
        "plain": [],
        "alone": ["--batch_size", "1"],
        "other": ["--class", "0"],
        "guided": ["--guidance", "4"],
        "never": ["--guidance", "4", "--guidance_interval", "2000", "3000"],
        "auto": ["--guidance", "2", "--guide", "early"],
    }.items():
        outcome = sample(*TOLD, *flags, "--out", name)
        assert outcome.status == 0, outcome.err
        assert "3 images of 3x12x8 from model" in outcome.out
        drawn[name] = pictures(home / name)
    assert np.abs(drawn["alone"] - drawn["plain"]).max() <= 1
    assert (drawn["never"] == drawn["plain"]).all()
    for name in ("other", "guided", "auto"):
        assert (drawn[name] != drawn["plain"]).any()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (TOLD[:2], "condition: is missing, the model is conditioned on a mask of 2"),
        (TOLD[4:], "the model attends to a context; give context, files"),
        ([*TOLD, "--class", "c"], "class c: the model has classes 0 to 1 (a, b)"),
        ([*TOLD, "--guide", "early"], "guide: does nothing without guidance"),
        ([*TOLD, "--guidance", "2", "--guide", "nowhere"], "nowhere does not exist"),
        ([*TOLD, "--prompt", "text"], "has no text encoder; give context files instead"),
    ],
)
def test_what_is_missing_is_said_in_one_line(home, flags, message, monkeypatch):
    monkeypatch.chdir(home)
    outcome = sample(*flags, "--out", "none")
    assert outcome.status == 2
    (line,) = outcome.err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (home / "none").exists()


def small(channels):
    unet = UNet(
        in_channels=channels, out_channels=channels, sample_size=8, attention_head_dim=4, **TINY
    )
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    return unet


def test_images_and_their_masks_are_written_as_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pipeline(tmp_path / "model", small(5), GaussianDiffusion())
    Conditioning(3, mask_classes=2).write(tmp_path / "model")
    outcome = sample("--film", "2", "--out", "drawn")
    assert outcome.status == 0, outcome.err
    assert "3 images of 3x8x8 with masks of 2 classes" in outcome.out
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {
        "images", "masks", "grid.png", "film.png", "settings.json",
    }  # fmt: skip
    assert pictures(tmp_path / "drawn/images").shape == (3, 8, 8, 3)
    masks = pictures(tmp_path / "drawn/masks")
    assert set(np.unique(masks)) <= {0, 1}
    assert Image.open(tmp_path / "drawn/masks/00000.png").mode == "P"


def test_latents_become_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    AutoencoderKL(**AUTOENCODER, latent_channels=5).save_pretrained("autoencoder")
    autoencoder = Autoencoder("autoencoder")
    write_pipeline(
        tmp_path / "model", small(5), GaussianDiffusion(clip_sample=False), autoencoder=autoencoder
    )
    outcome = sample("--film", "2", "--out", "drawn")
    assert outcome.status == 0, outcome.err
    assert "3 images of 3x16x16" in outcome.out
    drawn = pictures(tmp_path / "drawn")
    assert drawn.shape == (3, 16, 16, 3)
    Image.fromarray(drawn[0].astype(np.uint8)).save("begin.png")
    for flags in (
        ["--size", "20", "16"],
        ["--tile", "16", "--size", "32"],
        ["--init_image", "begin.png"],
        ["--interpolate", "begin.png", "drawn/00001.png"],
    ):
        outcome = sample(*flags, "--out", flags[0].strip("-"))
        assert outcome.status == 0, outcome.err
    assert pictures(tmp_path / "size").shape == (3, 20, 16, 3)
    for flags, message in (
        (["--size", "17"], "size 17: the autoencoder makes one latent of 2 x 2 pixels"),
        (["--init_image", "begin.png", "--mask", "begin.png"], "mask: the model draws latents"),
    ):
        outcome = sample(*flags, "--out", "none")
        assert outcome.status == 2
        assert message in outcome.err

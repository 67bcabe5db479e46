import numpy as np
import pytest
import torch
from accelerate import Accelerator
from ddpm_unet.inference.editing import Edit, read_images
from PIL import Image

from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import make_scheduler
from ddpm_unet.errors import UserError
from ddpm_unet.inference.denoiser import generate


def grey_pixels(x, t):
    """The best prediction of noise where every image is grey: x_0 = 0."""
    abar = make_scheduler("ddpm", GaussianDiffusion()).alphas_cumprod[t.long()]
    return x / (1 - abar).sqrt().reshape(-1, 1, 1, 1)


def save(path, array):
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return save(tmp_path / "a.png", pixels)


def drawn(edit, num_images=3, sampler="ddpm", steps=20, denoiser=grey_pixels):
    pictures = edit.pictures(3, None)
    batches = generate(
        denoiser,
        make_scheduler(sampler, GaussianDiffusion()),
        pictures.shape[1:],
        num_images,
        seed=0,
        steps=steps,
        batch_size=2,
        accelerator=Accelerator(cpu=True),
        **edit.options(pictures, num_images, told=False, self_conditioning=False),
    )
    return pictures, torch.cat([images for _, images in batches])


def test_a_hole_is_painted_and_the_rest_stays(tmp_path, picture):
    white = np.zeros((12, 16), np.uint8)
    white[3:7, 5:9] = 255
    mask = save(tmp_path / "mask.png", white)
    pictures, images = drawn(Edit(image=picture, mask=mask, resamplings=2))
    hole = torch.from_numpy(white > 0)
    assert torch.equal(images[..., ~hole], pictures[..., ~hole].expand(3, -1, -1))
    assert images[..., hole].abs().max() < 0.05


def test_strength_is_how_much_is_forgotten(picture):
    pictures, little = drawn(Edit(image=picture, strength=0.05), denoiser=lambda x, t: 0 * x)
    _, much = drawn(Edit(image=picture, strength=1.0))
    assert (little - pictures).abs().mean() < 0.1
    assert much.abs().max() < 0.05


def test_the_ends_of_an_interpolation_are_its_pictures(tmp_path, picture):
    other = save(tmp_path / "b.png", np.full((12, 16, 3), 200, np.uint8))
    pictures, images = drawn(
        Edit(ends=[picture, other]), 4, "ddim", 200, denoiser=lambda x, t: 0.2 * x
    )
    torch.testing.assert_close(images[0], pictures[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(images[-1], pictures[1], atol=1e-3, rtol=0)
    distances = (images - images[0]).flatten(1).norm(dim=1)
    assert (distances.diff() > 0).all()


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ({"mask": "m.png"}, "--init_image"),
        ({"strength": 0.3}, "--init_image"),
        ({"image": "a.png", "mask": "m.png", "strength": 0.3}, "--strength"),
        ({"image": "a.png", "ends": ["a.png", "b.png"]}, "--interpolate"),
    ],
)
def test_flags_that_do_not_go_together(flags, word):
    with pytest.raises(UserError, match=word):
        Edit(**flags)


def test_models_that_are_told_more_are_refused(picture):
    edit = Edit(ends=[picture, picture])
    with pytest.raises(UserError, match="conditions"):
        edit.options(edit.pictures(3, None), 4, told=True, self_conditioning=False)
    with pytest.raises(UserError, match="2 or more"):
        edit.options(edit.pictures(3, None), 1, told=False, self_conditioning=False)


def test_pictures_have_one_size(tmp_path, picture):
    other = save(tmp_path / "b.png", np.zeros((12, 15, 3), np.uint8))
    with pytest.raises(UserError, match="12 x 15 pixels, not 12 x 16"):
        read_images([picture, other], 3)
    black = save(tmp_path / "m.png", np.zeros((12, 16), np.uint8))
    edit = Edit(image=picture, mask=black)
    pictures = edit.pictures(3, None)
    with pytest.raises(UserError, match="black everywhere"):
        edit.options(pictures, 1, told=False, self_conditioning=False)

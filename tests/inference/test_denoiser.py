"""Jobs of many images: shared, edited, and in the units of the training."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import tifffile
import torch
from accelerate import Accelerator
from PIL import Image

from ddpm_unet import Denoiser, UNet, sample
from ddpm_unet.config import UNetConfig
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import make_sampler
from ddpm_unet.errors import UserError
from ddpm_unet.inference.conditioning import Conditioning
from ddpm_unet.inference.denoiser import check_edit, generate_together
from ddpm_unet.inference.readers import read_hole, read_images

SMALL = {
    "block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8,
    "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",),
}  # fmt: skip


def small(channels=1):
    return UNet(UNetConfig(in_channels=channels, out_channels=channels, **SMALL))


def denoiser(network=None, channels=1, **options):
    made = Denoiser(small(channels), GaussianDiffusion(), **options)
    made.network = network or (lambda x, t: 0.5 * x + t.view(-1, 1, 1, 1) / 1000)
    return made


def grey_pixels(x, t):
    """The best prediction of noise where every image is grey: x_0 = 0."""
    abar = GaussianDiffusion().alphas_cumprod[t.long()]
    return x / (1 - abar).sqrt().reshape(-1, 1, 1, 1)


def drawn(number=7, batch_size=3, **options):
    job = denoiser().job(number, seed=5, steps=4, batch_size=batch_size, size=(4, 6), **options)
    return {
        index: image
        for indices, batch, _ in job
        for index, image in zip(indices, batch, strict=True)
    }


def test_every_image_is_drawn_once_and_is_the_same_in_any_batch():
    first = drawn()
    assert sorted(first) == list(range(7))
    for other in (drawn(batch_size=1), drawn(batch_size=64), drawn(number=2)):
        for index, image in other.items():
            torch.testing.assert_close(image, first[index])
    assert len({tuple(image.flatten().tolist()) for image in first.values()}) == 7


def test_processes_share_the_job_bit_for_bit():
    alone = drawn()
    parts = [drawn(shard=(rank, 2)) for rank in range(2)]
    assert [sorted(part) for part in parts] == [[0, 1, 2, 6], [3, 4, 5]]
    assert all(torch.equal(image, alone[i]) for part in parts for i, image in part.items())
    assert drawn(shard=(4, 5)) == {}


def test_the_callback_sees_the_first_batch_only():
    seen = []
    drawn(callback=lambda info: seen.append((info.step, len(info.x0))))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


class Process:
    """One of several processes."""

    device = torch.device("cpu")

    def __init__(self, process_index, num_processes):
        self.process_index, self.num_processes = process_index, num_processes

    def gather(self, images):
        return torch.cat([images] * self.num_processes)


def test_all_processes_together_draw_the_first_images():
    def together(process):
        sampler = make_sampler("ddpm", GaussianDiffusion())
        network, shape = denoiser().network, (1, 4, 6)
        return generate_together(network, sampler, shape, 5, seed=5, steps=4, accelerator=process)

    alone = together(Accelerator(cpu=True))
    torch.testing.assert_close(alone, torch.stack(list(drawn(number=5).values())))
    parts = [together(Process(rank, 2)) for rank in range(2)]
    torch.testing.assert_close(parts[0][:3], alone[:3])
    torch.testing.assert_close(parts[1][:2], alone[3:5])


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_samples_are_pixels_of_all_channels(channels):
    unet = small(channels)
    images = sample(unet, GaussianDiffusion(), 3, steps=2, sampler="ddim", size=(8, 16))
    assert (images.shape, images.dtype) == ((3, 8, 16, channels), np.uint8)
    unit = torch.cat(
        [x for _, x, _ in Denoiser(unet, GaussianDiffusion()).job(
            3, steps=2, sampler="ddim", size=(8, 16)
        )]
    )  # fmt: skip
    want = ((unit.clamp(-1, 1) + 1) * 127.5).movedim(1, -1).numpy()
    np.testing.assert_allclose(images, want, atol=0.51)


def test_samples_are_in_the_units_of_the_training(tmp_path):
    own = Preprocessing(1, value_range=(-1000.0, 3000.0), dtype="float32", spacing=(2.0, 0.5))
    made = Denoiser(small(), GaussianDiffusion(), preprocessing=own)
    made.save_pretrained(tmp_path / "model")
    again = Denoiser.from_pretrained(tmp_path / "model")
    assert again.preprocessing == own
    images = again.sample(2, steps=2)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, made.sample(2, steps=2))
    unit = torch.cat([x for _, x, _ in again.job(2, steps=2)]).clamp(-1, 1)
    np.testing.assert_allclose(images[..., 0], unit[:, 0] * 2000 + 1000, atol=1e-2)


def by_euler(denoise, x, sigmas, order=1):
    """As a user writes it."""
    for sigma, following in pairwise(sigmas.tolist()):
        x = x + (following - sigma) * (x - denoise(x, sigma)) / sigma
    return x


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("ddim", make_sampler("ddim", GaussianDiffusion())),
        ("euler", by_euler),
        ("euler", partial(by_euler, order=1)),
    ],
)
def test_a_sampler_is_a_name_a_function_or_an_object(name, same):
    by_name = denoiser(sampler=name).sample(2, steps=3)
    for made in (
        denoiser().sample(2, steps=3, sampler=same),
        denoiser(sampler=same).sample(2, steps=3),
    ):
        assert np.abs(made.astype(int) - by_name).max() <= 1
    assert not np.array_equal(denoiser().sample(2, steps=3), by_name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 0}, "give at least 1"),
        ({"batch_size": 0}, "give at least 1"),
        ({"steps": 1001}, "1001 sampling steps: give 1 to 1000"),
        ({"size": 0}, "give one positive number"),
        ({"class_labels": 1}, "class 1: the model has no classes"),
        ({"class_labels": [1]}, "class 1: the model has no classes"),
        ({"tile": 16}, "tile 16: the images are smaller"),
        ({"guidance": 2.0}, "trained without condition dropout"),
        ({"init_image": torch.zeros(1, 1, 4, 4), "size": 8}, "1 x 4 x 4, not 1 x 8 x 8; resize"),
    ],
)
def test_what_cannot_be_drawn_is_named_before_work(options, message):
    with pytest.raises(UserError, match=message):
        denoiser().job(**{"num_images": 1, "steps": 2, **options})


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 12, 16)).astype(np.float32)
    return torch.from_numpy(pixels / 127.5 - 1)


def edited(network=grey_pixels, count=3, steps=20, graph=None, **options):
    made = denoiser(network, channels=3)
    made.graph = graph
    job = made.job(count, steps=steps, batch_size=2, **options)
    return torch.cat([images for _, images, _ in job])


def test_a_hole_is_painted_and_the_rest_stays(image):
    hole = torch.zeros(12, 16, dtype=torch.bool)
    hole[3:7, 5:9] = True
    images = edited(init_image=image, mask=hole[None, None], resamplings=2)
    assert torch.equal(images[..., ~hole], image[..., ~hole].expand(3, -1, -1))
    assert images[..., hole].abs().max() < 0.05


@pytest.mark.parametrize("way", ["whole", "begun", "tiled", "hole", "between"])
def test_graphs_draw_the_same(image, way):
    made = []

    def backend(module, inputs):
        made.append(module)
        return module.forward

    hole = torch.ones(1, 1, 12, 16, dtype=torch.bool).tril()
    options = {
        "whole": {"sampler": "dpm++"},
        "begun": {"sampler": "euler", "init_image": image},
        "tiled": {"sampler": "ddim", "size": 12, "tile": 8},
        "hole": {"init_image": image, "mask": hole, "resamplings": 2},
        "between": {"sampler": "ddim", "interpolate": torch.cat([image, -image])},
    }[way]
    torch.compiler.reset()
    graph = partial(torch.compile, backend=backend, fullgraph=True)
    found = edited(lambda x, t: 0.2 * x.tanh(), 3, 4, graph, **options)
    assert torch.equal(found, edited(lambda x, t: 0.2 * x.tanh(), 3, 4, **options))
    assert len(made) == 1 or way not in ("whole", "begun")


def test_strength_is_how_much_is_forgotten(image):
    little = edited(lambda x, t: 0 * x, init_image=image, strength=0.05)
    assert (little - image).abs().mean() < 0.1
    assert edited(init_image=image, strength=1.0).abs().max() < 0.05


def test_the_ends_of_an_interpolation_are_its_images(image):
    ends = torch.cat([image, torch.full_like(image, 0.5)])
    images = edited(lambda x, t: 0.2 * x, 4, 200, sampler="ddim", interpolate=ends)
    torch.testing.assert_close(images[0], ends[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(images[-1], ends[1], atol=1e-3, rtol=0)
    assert ((images - images[0]).flatten(1).norm(dim=1).diff() > 0).all()
    itself = Denoiser(
        UNet(UNetConfig(in_channels=6, **SMALL)),
        GaussianDiffusion(),
        conditioning=Conditioning(3, self_conditioning=True),
    )
    with pytest.raises(UserError, match="interpolate: the denoiser needs its own estimate"):
        itself.job(4, steps=2, interpolate=ends)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None, "m.png", None, 1), "mask: needs an image to begin with"),
        ((None, 0.3, None, None, 1), "strength: needs an image to begin with"),
        (("a.png", 0.3, "m.png", None, 1), "strength: a hole is painted"),
        (("a.png", None, None, ["a.png", "b.png"], 4), "interpolate: goes between its own"),
        ((None, None, None, ["a.png", "b.png"], 1), "give 2 or more"),
    ],
)
def test_ways_to_begin_that_contradict_each_other(arguments, message):
    with pytest.raises(UserError, match=message):
        check_edit(*arguments)


def test_images_to_begin_with_have_one_size(tmp_path):
    for name, shape in {"a.png": (12, 16, 3), "b.png": (12, 15, 3), "m.png": (12, 16)}.items():
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / name)
    assert read_images([tmp_path / "a.png"], 1).shape == (1, 1, 12, 16)
    tifffile.imwrite(tmp_path / "deep.tif", np.full((12, 16), 4095, np.uint16))
    deep = Preprocessing(1, value_range=(0, 4095), dtype="uint16")
    assert read_images([tmp_path / "deep.tif"], deep).unique().tolist() == [1]
    with pytest.raises(UserError, match="uint8, the model was trained on uint16"):
        read_images([tmp_path / "a.png"], deep)
    with pytest.raises(UserError, match="12 x 15 pixels, not 12 x 16"):
        read_images([tmp_path / "a.png", tmp_path / "b.png"], 3)
    with pytest.raises(UserError, match="black everywhere"):
        read_hole(tmp_path / "m.png", (12, 16))

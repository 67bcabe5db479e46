"""What a model's folder says that it must be told, telling it, and its guides."""

import re
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small import SMALL

from ddpm_unet.config import UNetConfig
from ddpm_unet.data.conditioning import ConcatCondition
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.errors import UserError
from ddpm_unet.inference.conditioning import (
    Conditioning,
    read_concat_cond,
    read_context,
)
from ddpm_unet.inference.denoiser import Denoiser, check_guidance, read_guide
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.models import UNet

PLAIN = SMALL | {"attention_head_dim": 2, "sample_size": 8}
CROSS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "mid_block_type": None,
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 6,
}
ALL = Conditioning(3, ("a", "b"), True, ConcatCondition("classes", 2), None, True)


def network(seed=0, **settings):
    """With random weights, the last layers' too."""
    cross = CROSS if "cross_attention_dim" in settings else {}
    unet = UNet(UNetConfig(**PLAIN | cross | settings))
    generator = torch.Generator().manual_seed(seed)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return unet.eval()


def full(seed=0):
    """A network that is told everything there is."""
    return network(seed, in_channels=3 + 3 + 2, num_class_embeds=3, cross_attention_dim=6)


def of(unet):
    return Denoiser(unet, GaussianDiffusion(), conditioning=ALL)


@pytest.fixture
def files(tmp_path):
    for number in range(3):
        mask = np.full((8, 8), number % 2, np.uint8)
        Image.fromarray(mask).save(tmp_path / f"mask{number}.png")
        np.save(tmp_path / f"vectors{number}.npy", np.full((1 + number, 6), number - 1.0))
    return tmp_path


def draw(unet, files, batch_size, label=None, **guidance):
    drawn = Denoiser(unet, GaussianDiffusion(), conditioning=ALL).job(
        5,
        steps=3,
        batch_size=batch_size,
        class_labels=label,
        context=read_context(ALL, unet.config, [files], None),
        concat_cond=read_concat_cond(ALL, [files], 2, None),
        **guidance,
    )
    return torch.cat([images for _, images, _ in drawn])


@pytest.mark.parametrize("guidance", [{}, {"guidance": 2.0}, {"guidance": 2.0, "guide": full(1)}])
def test_an_image_is_the_same_in_any_batch(files, guidance):
    unet = full()
    together = draw(unet, files, 8, **guidance)
    assert together.shape == (5, 3, 8, 8)
    torch.testing.assert_close(draw(unet, files, 2, **guidance), together, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(draw(unet, files, 8, label=0), draw(unet, files, 8, label=1))
    if guidance:
        assert not torch.allclose(draw(unet, files, 8), together, atol=1e-3)


def test_scale_one_is_no_guidance_bit_for_bit(files):
    unet = full()
    plain = draw(unet, files, 8)
    assert torch.equal(draw(unet, files, 8, guidance=1.0), plain)
    assert torch.equal(draw(unet, files, 8, guidance=1.0, guide=full(1)), plain)
    assert torch.equal(draw(unet, files, 8, guidance=3.0, guidance_interval=(1000, 2000)), plain)
    assert torch.allclose(draw(unet, files, 8, guidance=5.0, guide=unet), plain, atol=1e-5)
    assert not torch.equal(draw(unet, files, 8, guidance=1.5), plain)


def test_smaller_pictures_are_enlarged_to_the_size_asked_for(files):
    assert read_concat_cond(ALL, [files], 2, [16]).shape == (3, 2, 16, 16)
    with pytest.raises(UserError, match=r"mask0\.png: makes images of 16 x 16, not of 16 x 12"):
        read_concat_cond(ALL, [files], 2, [16, 12])
    Image.new("RGB", (4, 6)).save(files / "low.png")
    low = Conditioning(concat_cond=ConcatCondition("lower", 3, 4))
    assert read_concat_cond(low, [files / "low.png"], 2, None).shape == (1, 3, 24, 16)


def test_what_is_written_is_read(tmp_path):
    assert Conditioning.read(tmp_path) == Conditioning()
    (tmp_path / "unet").mkdir()
    for told in (
        ALL,
        Conditioning(text_encoder="clip"),
        Conditioning(concat_cond=ConcatCondition("lower", 3, 4)),
    ):
        told.write(tmp_path)
        assert Conditioning.read(tmp_path) == Conditioning.read(tmp_path / "unet") == told
    for text, message in (
        ("{", "is not readable"),
        ('{"cond_dropout": 3}', "cond_dropout is 3; it must be true or false"),
        ('{"planes": {"kind": "picture"}}', "concat_cond: .* 'channels'; copy the model again"),
        ('{"planes": {"kind": "x", "channels": 1}}', "concat_cond: kind is 'x'; it must be"),
    ):
        (tmp_path / "conditioning.json").write_text(text)
        with pytest.raises(UserError, match=rf"conditioning\.json: {message}"):
            Conditioning.read(tmp_path)


def test_folders_of_earlier_runs_are_read(tmp_path):
    (tmp_path / "unet").mkdir()
    earlier = '{"withheld": true, "planes": {"kind": "lower", "channels": 3, "factor": 4}}'
    (tmp_path / "conditions.json").write_text(earlier)
    found = Conditioning(cond_dropout=True, concat_cond=ConcatCondition("lower", 3, 4))
    assert Conditioning.read(tmp_path) == found


NONE = Conditioning()
TEXT = Conditioning(text_encoder="clip")
CONTEXT = UNetConfig(**(PLAIN | CROSS))
MASKED = Conditioning(concat_cond=ConcatCondition("classes", 2))


def planes(told, *names):
    return lambda f: read_concat_cond(told, [f / name for name in names], 2, None)


def context(told, config, names, prompts):
    return lambda f: read_context(told, config, [f / name for name in names], prompts)


def guidance(told, *flags):
    return lambda f: check_guidance(told, *flags)


PAINTING = UNetConfig(in_channels=9, out_channels=4)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (planes(MASKED), "conditioned on a mask of 2 classes; give files"),
        (planes(NONE, "a.png"), "condition: the model has no image conditioning; leave it out"),
        (planes(MASKED, "x.png"), "x.png: no such file"),
        (context(NONE, CONTEXT, [], None), "attends to a context; give context"),
        (context(TEXT, CONTEXT, [], None), "attends to a context; give prompt"),
        (context(TEXT, CONTEXT, ["a"], ["a"]), "one context; give context or prompt"),
        (context(NONE, CONTEXT, [], ["a"]), "has no text encoder; give context"),
        (context(NONE, UNetConfig(), ["a"], None), "the model attends to no context; leave it out"),
        (context(NONE, UNetConfig(), [], ["a"]), "the model attends to no context; leave it out"),
        (context(NONE, CONTEXT, ["x.npy"], None), "x.npy: is missing or damaged"),
        (lambda f: NONE.class_numbers("1", UNetConfig()), "class 1: the model has no classes"),
        (
            lambda f: ALL.class_numbers("2", full().config),
            "class 2: the model has classes 0 to 1 (",
        ),
        (
            lambda f: ALL.class_numbers(["c"], full().config),
            "class c: the model has classes 0 to 1 (a, b",
        ),
        (lambda f: NONE.check(PAINTING, Path("m")), "m: takes 9 channels for images of 4"),
        (guidance(NONE, 2.0, None, None), "guidance: the model was trained without"),
        (guidance(ALL, float("nan"), None, None), "guidance nan: give a finite number"),
        (guidance(ALL, None, (0, 1), None), "guidance_interval: does nothing without guidance"),
        (guidance(ALL, None, None, Path("g")), "guide: does nothing without guidance"),
        (guidance(ALL, 2.0, (5, 1), None), "guidance_interval 5 1: give the lower timestep first"),
    ],
)
def test_what_is_missing_or_superfluous_is_named(files, ask, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        ask(files)
    assert "\n" not in str(error.value)


def test_classes_have_numbers_and_names():
    config = full().config
    assert ALL.class_numbers(("a", "b", "0", 1), config) == [0, 1, 0, 1]
    assert ALL.class_numbers("b", config) == [1]
    assert ALL.class_numbers(None, config) == [0, 1]
    assert (ALL.classes(config), ALL.null_class(config)) == (2, 2)
    unnamed = Conditioning()
    assert unnamed.class_numbers("2", config) == [2]
    assert (unnamed.classes(config), unnamed.null_class(config)) == (3, None)


def test_a_guide_is_a_checkpoint_of_the_run_or_a_model(tmp_path):
    unet, earlier = full(), full(1)
    save_file(earlier.state_dict(), tmp_path / "ema.safetensors")
    guide = read_guide(tmp_path, of(unet))
    for name, value in earlier.state_dict().items():
        assert torch.equal(guide.state_dict()[name], value)
    assert not guide.training

    smaller = network(
        2, in_channels=8, num_class_embeds=3, cross_attention_dim=6, norm_num_groups=8
    )
    write_pipeline(tmp_path / "model", smaller, GaussianDiffusion())
    ALL.write(tmp_path / "model")
    guide = read_guide(tmp_path / "model", of(unet))
    assert guide.config.norm_num_groups == 8


def test_a_model_keeps_its_guide_and_scale(tmp_path):
    """Its folder draws as with the guide and the scale given, and diffusers reads it as before."""
    diffusion = GaussianDiffusion(num_timesteps=10)
    denoiser, guide = Denoiser(network(), diffusion), network(1)
    settings = {"steps": 3, "sampler": "ddim"}
    plain = denoiser.sample(2, **settings)
    given = denoiser.sample(2, guide=guide, guidance=1.5, **settings)
    denoiser.save_pretrained(tmp_path / "better")
    write_pipeline(tmp_path / "weaker", guide, diffusion)
    options = {"guide": tmp_path / "weaker", "guidance": 1.5}
    denoiser = Denoiser.from_pretrained(tmp_path / "better", **options)
    denoiser.save_pretrained(tmp_path)
    read = Denoiser.from_pretrained(tmp_path)
    assert not np.array_equal(plain, given)
    for each in (denoiser, read):
        np.testing.assert_array_equal(each.sample(2, **settings), given)
        np.testing.assert_array_equal(each.sample(2, guidance=1, **settings), plain)
    assert diffusers.DDPMPipeline.from_pretrained(tmp_path).unet.config.sample_size
    read.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/guide/unet/config.json").is_file()


@pytest.mark.parametrize(
    ("other", "process", "told", "message"),
    [
        (full(), GaussianDiffusion(prediction_type="sample"), ALL, "model in prediction_type"),
        (full(), GaussianDiffusion(), NONE, r"differs from the model in its conditioning"),
        (network(in_channels=8), GaussianDiffusion(), ALL, "differs from the model in num_class"),
    ],
)
def test_a_guide_must_be_told_and_predict_the_same(tmp_path, other, process, told, message):
    write_pipeline(tmp_path / "m", other, process)
    told.write(tmp_path / "m")
    with pytest.raises(UserError, match=message):
        read_guide(tmp_path / "m", of(full()))


def test_checkpoints_of_other_networks_are_no_guides(tmp_path):
    save_file(network().state_dict(), tmp_path / "ema.safetensors")
    with pytest.raises(UserError, match="take a checkpoint of the model's own run"):
        read_guide(tmp_path, of(full()))
    with pytest.raises(UserError, match="nowhere does not exist"):
        read_guide(tmp_path / "nowhere", of(full()))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_guidance_of_an_exact_denoiser_stays_with_its_class(sampler):
    """Two classes of grey, in closed form: guidance towards the dark one draws no bright image."""
    diffusion, spread = GaussianDiffusion(), 0.05
    means = torch.tensor([-0.9, 0.9]).reshape(2, 1, 1, 1, 1)

    def exact(x, t, class_labels):
        abar = diffusion.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        off, variance = x - abar.sqrt() * means, abar * spread**2 + 1 - abar
        x0 = means + abar.sqrt() * spread**2 / variance * off
        label = class_labels.reshape(1, -1, 1, 1, 1)
        share = torch.where(label == 2, (-(off**2) / (2 * variance)).softmax(0), 0.0)
        share += torch.arange(2).reshape(2, 1, 1, 1, 1) == label
        return (x - abar.sqrt() * (share * x0).sum(0)) / (1 - abar).sqrt()

    unet = UNet(UNetConfig(**PLAIN | {"in_channels": 1, "out_channels": 1, "num_class_embeds": 3}))
    conditioning = Conditioning(1, ("dark", "bright"), True)
    denoiser = Denoiser(unet, diffusion, conditioning=conditioning)
    denoiser.network = exact
    for scale in (1.0, 3.0, 8.0):
        job = denoiser.job(8, steps=50, sampler=sampler, class_labels="dark", guidance=scale)
        images = torch.cat([images for _, images, _ in job])
        assert -1 <= images.mean() < -0.85
        assert images.max() < -0.7


def test_samplers_agree_on_guided_images_of_a_network():
    """Two solvers of one equation from the same noise; DDIM once drew no class at all."""
    shipped = Path(__file__).parents[2] / "samples/fashion_mnist/model"
    denoiser = Denoiser.from_pretrained(shipped)
    ways = (("ddim", 50), ("dpm++", 15))
    drawn = [
        denoiser.sample(3, steps=steps, sampler=name, guidance=2, class_labels=[1, 5, 7])
        for name, steps in ways
    ]
    first, second = (images.reshape(3, -1).astype(float) for images in drawn)
    for pair in zip(first, second, strict=True):
        assert np.corrcoef(pair)[0, 1] > 0.9

import numpy as np
import pytest
import torch
from oracles import Mixture, Oracle
from small import noise
from torch.nn.functional import conv2d, pad

from ddpm_unet.diffusion.conditioning import classifier_free_guidance
from ddpm_unet.diffusion.editing import Inversion, inpaint, slerp, tiled
from ddpm_unet.diffusion.process import GaussianDiffusion, batch_time
from ddpm_unet.diffusion.samplers import SAMPLERS, make_sampler
from ddpm_unet.diffusion.sampling import Noise, sample
from ddpm_unet.errors import UserError

CONFIG = GaussianDiffusion(clip_sample=False)
PAIR = Mixture([1.0], [[0.2, -0.1]], [[[0.09, 0.072], [0.072, 0.09]]])
"""Two channels with correlation 0.8; pixels are independent draws."""


def draws(denoiser, name="ddim", steps=50, **options):
    options |= {"seed": 0, "indices": range(2), "steps": steps, "diffusion": CONFIG}
    return sample(denoiser, name, (2, 8, 8), **options)


def images():
    generator = np.random.default_rng(0)
    pixels = generator.multivariate_normal(PAIR.means[0], PAIR.covariances[0], (2, 8, 8))
    return torch.from_numpy(pixels).float().movedim(-1, 1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_little_strength_changes_an_image_little_and_much_of_it_much(name):
    """One step in fifty sees almost no noise; at full strength the image is forgotten."""
    start, oracle = images(), Oracle(PAIR, CONFIG)
    little = draws(oracle, name, start=start, strength=0.02) - start
    much = draws(oracle, name, start=start) - start
    assert little.abs().mean() < 0.03
    assert much.abs().mean() > 0.2


def test_a_part_of_the_steps_begins_at_the_noise_of_its_first():
    seen = []

    def spy(x, t):
        seen.append((x.clone(), float(t[0])))
        return torch.zeros_like(x)

    start = torch.full((1, 2, 8, 8), 0.5)
    draws(spy, "ddpm", steps=20, start=start, strength=0.3)
    x, t = seen[0]
    abar = CONFIG.alphas_cumprod[int(t)]
    noise = (x - abar.sqrt() * start) / (1 - abar).sqrt()
    assert len(seen) == 6
    assert noise.mean().abs() < 0.2
    assert noise.std() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.1])
def test_strength_is_a_share(strength):
    with pytest.raises(UserError, match="strength"):
        draws(Oracle(PAIR, CONFIG), start=images(), strength=strength)


def test_a_hole_is_filled_as_its_surroundings_suggest():
    """E[second | first] of a Gaussian rises by 0.8; resampling is what gets near it."""
    first = torch.linspace(-0.4, 0.8, 64).reshape(8, 8)
    known = torch.stack([first, torch.full((8, 8), 9.0)])
    hole = torch.tensor([False, True]).reshape(2, 1, 1)

    def slope(resamplings):
        found = inpaint(
            Oracle(PAIR, CONFIG), make_sampler("ddpm", CONFIG), (2, 8, 8), known=known, hole=hole,
            seed=0, indices=range(24), steps=60, jump=5, resamplings=resamplings,
        )  # fmt: skip
        assert torch.equal(found[:, 0], first.expand(24, 8, 8))
        return np.polyfit(first.flatten(), found[:, 1].mean(0).flatten(), 1)[0], found[:, 1]

    once, _ = slope(1)
    often, second = slope(8)
    assert once < often - 0.15
    assert often == pytest.approx(0.8, abs=0.2)
    assert (second - second.mean(0)).std() == pytest.approx(0.3 * 0.6, rel=0.25)


def test_holes_depend_on_seed_and_index_alone():
    options = {"seed": 1, "steps": 6, "jump": 2, "resamplings": 2}
    options |= {"known": images()[0], "hole": torch.ones(1, 8, 8)}
    arguments = Oracle(PAIR, CONFIG), make_sampler("ddpm", CONFIG), (2, 8, 8)
    together = inpaint(*arguments, indices=range(3), **options)
    torch.testing.assert_close(inpaint(*arguments, indices=[2], **options)[0], together[2])


def test_holes_ask_for_ddpm():
    with pytest.raises(UserError, match="ddpm"):
        inpaint(
            Oracle(PAIR, CONFIG), make_sampler("euler", CONFIG), (2, 8, 8), known=images()[0],
            hole=torch.ones(8, 8), seed=0, indices=[0], steps=5,
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_inversion_comes_back(kind):
    config = GaussianDiffusion(prediction_type=kind)
    path = Inversion(Oracle(PAIR, config), config, 100)
    noises = [path.to_noise(images(), iterations=n) for n in (1, 3, 20)]
    once, few, many = ((path.to_images(noise) - images()).abs().max() for noise in noises)
    assert many < 1e-4 < few < once  # the iterations are what brings it back
    noise = noises[-1]
    assert noise.mean().abs() < 0.3
    assert noise.std() == pytest.approx(1, abs=0.2)


def test_inversion_comes_back_from_where_hardly_any_image_is_left():
    """A network whose image depends much on the noise; the cosine schedule ends at a = 5e-5."""
    config = GaussianDiffusion(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
    path = Inversion(lambda x, t: torch.tanh(3 * x.roll(1, -1)), config, 50)
    assert (path.to_images(path.to_noise(images())) - images()).abs().max() < 1e-3


def test_the_way_back_is_that_of_ddim():
    denoiser = Oracle(PAIR, CONFIG)
    start = Noise(0, range(2), (2, 8, 8), "cpu").draw(1.0)
    there = Inversion(denoiser, CONFIG, 50).to_images(start)
    torch.testing.assert_close(there, draws(denoiser), rtol=1e-4, atol=1e-5)


def test_slerp_keeps_the_norm():
    first, second = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    between = slerp(first, second, [0.0, 0.25, 0.5, 1.0])
    torch.testing.assert_close(between[0], first)
    torch.testing.assert_close(between[-1], second)
    norms = between.flatten(1).norm(dim=1)
    assert norms.std() / norms.mean() < 0.02
    assert torch.lerp(first, second, 0.5).norm() < 0.75 * norms[2]
    torch.testing.assert_close(slerp(first, first, [0.3])[0], first)


T = torch.tensor([500.0, 500.0])


def pointwise(x, t, **conditions):
    offset = conditions.get("image", 0) + conditions.get("level", torch.zeros(1)).reshape(
        -1, 1, 1, 1
    )
    return torch.tanh(x) + t.reshape(-1, 1, 1, 1) / 1000 + offset


def blur(x, t):
    return conv2d(pad(x, (1, 1, 1, 1)), torch.ones(1, 1, 3, 3) / 9)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (40, 25), (17, 70)])
@pytest.mark.parametrize("overlap", [0, 5, 12])
def test_what_looks_at_single_pixels_sees_no_windows(size, overlap, periodic):
    x = noise(2, 3, *size)
    conditions = {"image": noise(2, 1, *size), "level": torch.tensor([1.0, 2.0])}
    whole = tiled(pointwise, 16, overlap, periodic=periodic, batch=4)
    for t in (T, T * 0 + 3):
        found = whole(x, t, **conditions)
        torch.testing.assert_close(found, pointwise(x, t, **conditions))


def test_a_periodic_image_has_no_border():
    """Turning it round and denoising commute, on average over the grid's places."""
    x = noise(1, 1, 48, 48)
    whole = tiled(blur, 16, 8, periodic=True)
    times = torch.arange(0, 1000, 10.0)
    mean = sum(whole(x, t[None]) for t in times) / len(times)
    rolled = sum(whole(x.roll((7, 20), (2, 3)), t[None]) for t in times) / len(times)
    assert (mean.roll((7, 20), (2, 3)) - rolled).abs().max() < 0.06
    inside = pad(x, (1, 1, 1, 1), mode="circular")
    exact = conv2d(inside, torch.ones(1, 1, 3, 3) / 9)
    assert (mean - exact).abs().max() < 0.1


def test_faults_are_named():
    with pytest.raises(UserError, match="overlap"):
        tiled(blur, 16, 16)
    with pytest.raises(UserError, match="window"):
        tiled(blur, 16, 4)(noise(1, 1, 12, 40), T[:1])


def test_windows_and_guidance_pass_on_a_time_that_need_not_be_read():
    seen = []

    def network(x, t):
        seen.append((t.number, t.tolist()))
        return x

    x = torch.zeros(2, 1, 8, 8)
    inside = classifier_free_guidance(tiled(network, 4, 2), 2.0, None, (0, 999))
    outside = tiled(classifier_free_guidance(network, 2.0, None, (0, 999)), 4, 2)
    for nested in (inside, outside):
        nested(x, batch_time(x, 7.0))
    assert all(number == 7 and set(times) == {7.0} for number, times in seen)

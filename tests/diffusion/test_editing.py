import numpy as np
import pytest
import torch
from oracles import Mixture, Oracle

from ddpm_unet.diffusion.editing import Inversion, inpaint, slerp
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import SAMPLERS, make_sampler
from ddpm_unet.diffusion.sampling import Noise, sample
from ddpm_unet.errors import UserError

CONFIG = GaussianDiffusion(clip_sample=False)
PAIR = Mixture([1.0], [[0.2, -0.1]], [[[0.09, 0.072], [0.072, 0.09]]])
"""Two channels with correlation 0.8; pixels are independent draws."""


def draws(denoiser, name="ddim", steps=50, **options):
    return sample(
        denoiser,
        name,
        (2, 8, 8),
        seed=0,
        indices=range(2),
        steps=steps,
        diffusion=CONFIG,
        **options,
    )


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

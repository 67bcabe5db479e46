"""Steps of DDPM and DDIM against diffusers, and samplers against Gaussians in closed form."""

import math
import subprocess
import sys
from functools import partial
from itertools import pairwise, product

import diffusers
import pytest
import torch
from oracles import Mixture, Oracle

from ddpm_unet.diffusion.editing import Inversion, tiled
from ddpm_unet.diffusion.edm import diffusion_of_scheduler
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import (
    SAMPLERS,
    LinearSampler,
    described,
    make_sampler,
    saved_sampler,
)
from ddpm_unet.diffusion.sampling import sample
from ddpm_unet.diffusion.solvers import uni_pc
from ddpm_unet.errors import UserError

TYPES = ["epsilon", "sample", "v_prediction"]
SHAPE = (2, 3, 4, 4)


def pair(kind, **settings):
    """diffusers' scheduler in float64, so that agreement can be asked to the digit, and ours."""
    scheduler = kind(**settings)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if isinstance(scheduler, diffusers.DDIMScheduler):
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    saved = dict(scheduler.config, _class_name=kind.__name__)
    diffusion = diffusion_of_scheduler(saved)
    diffusion.alphas_cumprod_float64 = scheduler.alphas_cumprod
    return scheduler, saved_sampler(saved, diffusion)


def check_steps(scheduler, sampler, steps, eta=0.0, but_last=False, learned=False):
    """Over all steps, from random states and predictions that clipping bites on."""
    scheduler.set_timesteps(steps)
    ours = sampler.plan(steps, eta)
    assert ours.times == scheduler.timesteps.tolist()
    options = {}
    if isinstance(scheduler, diffusers.DDIMScheduler):
        options = {"eta": eta, "use_clipped_model_output": True}
    for i, t in enumerate(scheduler.timesteps[: -1 if but_last else None]):
        x, prediction, variances = torch.randn(3, *SHAPE, dtype=torch.float64)
        prediction *= (0.5, 1.0, 2.0)[i % 3]
        if learned:
            prediction = torch.cat([prediction, variances], dim=1)

        def drawn(i=i):
            return torch.Generator().manual_seed(i)

        def noise(std, generator):
            return std * torch.randn(SHAPE, generator=generator, dtype=torch.float64)

        expected = scheduler.step(prediction, t, x, generator=drawn(), **options)
        found, x0 = ours.step(i, x, prediction, partial(noise, generator=drawn()))
        torch.testing.assert_close(found, expected.prev_sample, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(x0, expected.pred_original_sample, rtol=1e-8, atol=1e-8)


CLIPS = [{}, {"clip_sample": False}, {"thresholding": True}]
SPACINGS = ["leading", "trailing", "linspace"]


def in_turn(*choices):
    """Every combination of the choices but the last, of which each takes the next."""
    numbers = product(*(range(len(values)) for values in choices[:-1]))
    return [
        (*(values[n] for values, n in zip(choices, at, strict=False)), choices[-1][sum(at) % 3])
        for at in numbers
    ]


@pytest.mark.parametrize(
    ("kind", "spacing", "variance", "clip"),
    in_turn(TYPES, SPACINGS, ["fixed_small", "fixed_large", "learned_range"], CLIPS),
)
def test_ddpm_steps_are_those_of_diffusers(kind, clip, spacing, variance):
    scheduler, sampler = pair(
        diffusers.DDPMScheduler,
        prediction_type=kind,
        timestep_spacing=spacing,
        variance_type=variance,
        beta_schedule="linear" if clip else "squaredcos_cap_v2",
        **clip,
    )
    for steps in (50, 33):
        # to the clean image diffusers adds noise when "trailing" meets other variances
        but_last = spacing == "trailing" and variance != "fixed_small"
        check_steps(scheduler, sampler, steps, 0.0, but_last, variance == "learned_range")


@pytest.mark.parametrize(
    ("kind", "spacing", "eta", "clip"),
    in_turn(TYPES, SPACINGS, [0.0, 0.5, 1.0], [*CLIPS[:2], CLIPS[2] | {"sample_max_value": 4.0}]),
)
def test_ddim_steps_are_those_of_diffusers(kind, clip, eta, spacing):
    scheduler, sampler = pair(
        diffusers.DDIMScheduler,
        # where its t - T // steps is the next timestep: with linspace, only at steps = T
        num_train_timesteps=100,
        beta_end=0.2,
        prediction_type=kind,
        timestep_spacing=spacing,
        set_alpha_to_one=not clip,
        **clip,
    )
    check_steps(scheduler, sampler, 100 if spacing == "linspace" else 50, eta)


def test_steps_from_nothing_are_those_of_diffusers():
    settings = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    check_steps(*pair(diffusers.DDPMScheduler, **settings, timestep_spacing="trailing"), 10)


def test_no_noise_is_added_to_the_finished_image():
    diffusion = GaussianDiffusion(variance_type="fixed_large")
    plan = LinearSampler(diffusion, "ddpm", timestep_spacing="trailing").plan(50, 0.0)
    x = torch.zeros(SHAPE)
    following, x0 = plan.step(49, x, x, lambda std: pytest.fail("noise was drawn"))
    assert torch.equal(following, x0)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_any_number_of_steps_gives_falling_timesteps(spacing):
    scheduler = diffusers.DDPMScheduler(timestep_spacing=spacing)
    sampler = LinearSampler(GaussianDiffusion(), "ddpm", timestep_spacing=spacing)
    assert sampler.timesteps(1) == [999]
    for steps in (*range(2, 100), *range(100, 1001, 9)):
        times = sampler.timesteps(steps)
        scheduler.set_timesteps(steps)
        assert times == [t for t in scheduler.timesteps.tolist() if t >= 0]
        assert len(times) == steps
        assert all(a > b >= 0 for a, b in pairwise(times))


def both(x, t):
    """A prediction with variances."""
    return torch.cat([0.1 * x, torch.sin(3 * x)], dim=1)


def means(x, t):
    return 0.1 * x


def test_a_scheduler_that_steps_for_itself_is_given_the_variances():
    settings = {"timestep_spacing": "linspace", "variance_type": "learned_range"}
    options = {"indices": range(2), "seed": 0, "steps": 50}
    learned = GaussianDiffusion(variance_type="learned_range")
    ours = sample(both, "ddpm", SHAPE[1:], diffusion=learned, **options)
    stepped = sample(both, diffusers.DDPMScheduler(**settings), SHAPE[1:], **options)
    torch.testing.assert_close(ours, stepped, rtol=1e-3, atol=1e-3)
    fixed = sample(means, "ddpm", SHAPE[1:], diffusion=GaussianDiffusion(), **options)
    assert not torch.allclose(ours, fixed, atol=1e-2)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ddpm"])
def test_other_samplers_use_the_mean_alone(name):
    learned = GaussianDiffusion(variance_type="learned_range")
    options = {"seed": 0, "indices": [0], "steps": 5, "diffusion": learned}
    assert torch.equal(*(sample(d, name, SHAPE[1:], **options) for d in (both, means)))


def test_inversion_and_tiles_take_variances():
    learned = GaussianDiffusion(variance_type="learned_range")
    images = torch.rand(SHAPE) * 2 - 1
    assert torch.equal(*(Inversion(d, learned, 10).to_noise(images) for d in (both, means)))
    x = torch.randn(1, 3, 12, 12)
    found = tiled(both, 8, 4)(x, torch.tensor([5]))
    torch.testing.assert_close(found, both(x, None), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_unipc_is_that_of_diffusers(steps):
    levels = torch.logspace(1.2, -1.5, steps, dtype=torch.float64)
    sigmas = torch.cat([levels, torch.zeros(1, dtype=torch.float64)])
    weight, start = torch.randn(2, 5, 5, dtype=torch.float64)

    def denoise(x, sigma):
        return torch.tanh(x @ weight) / math.sqrt(1 + sigma**2)

    theirs = diffusers.UniPCMultistepScheduler(prediction_type="sample")
    theirs.set_timesteps(steps)
    theirs.sigmas = sigmas
    theirs.set_begin_index(0)
    x = start * sigmas[0] / (1 + sigmas[0] ** 2) ** 0.5  # of variance 1
    for t, sigma in zip(theirs.timesteps, levels.tolist(), strict=True):
        prediction = denoise(x * math.sqrt(1 + sigma**2), sigma)
        x = theirs.step(prediction, t, x).prev_sample
    torch.testing.assert_close(uni_pc(denoise, start * sigmas[0], sigmas), x, rtol=1e-9, atol=1e-9)


# --- Which sampler draws which data

MEANS, STDS = [0.2, -0.8, 0.0], [0.2, 0.05, 0.4]
DATA = Mixture([1.0], [MEANS], [torch.diag(torch.tensor(STDS) ** 2).tolist()])
# least and most of a standard deviation drawn, over that of the data, by number of steps
SPREADS = {
    "ddpm": {10: (0.18, 1.0), 20: (0.27, 1.0), 50: (0.45, 1.0), 1000: (0.88, 1.06)},
    "ddim": {10: (0.27, 1.0), 20: (0.40, 1.0), 50: (0.60, 1.05), 1000: (0.94, 1.06)},
    "dpm++": {10: (0.86, 1.08), 20: (0.94, 1.07), 50: (0.94, 1.06), 1000: (0.94, 1.06)},
    "dpm++sde": {10: (0.76, 1.1), 20: (0.9, 1.1), 50: (0.9, 1.08), 1000: (0.92, 1.08)},
    "unipc": {10: (0.88, 1.12), 20: (0.94, 1.11), 50: (0.94, 1.1), 1000: (0.94, 1.09)},
    "euler": {10: (0.5, 0.9), 20: (0.75, 0.97), 50: (0.87, 1.02), 1000: (0.94, 1.06)},
    "heun": {10: (0.94, 1.3), 20: (0.94, 1.12), 50: (0.94, 1.06), 1000: (0.94, 1.06)},
    "churn": {10: (0.9, 1.4), 20: (0.9, 1.2), 50: (0.92, 1.12), 1000: (0.94, 1.08)},
}
KINDS = [("epsilon", False), ("sample", True), ("v_prediction", False)]


def check_spread(name, kind, zero_snr, steps):
    diffusion = GaussianDiffusion(
        beta_end=0.008 if zero_snr else 0.02, prediction_type=kind, clip_sample=False,
        rescale_betas_zero_snr=zero_snr,
    )  # fmt: skip
    drawn = sample(
        Oracle(DATA, diffusion), name, (3, 40, 40), diffusion=diffusion, seed=0, indices=[0],
        steps=steps,
    )  # fmt: skip
    stds = torch.tensor(STDS)
    low, high = SPREADS[name][steps]
    assert ((drawn.mean((0, 2, 3)) - torch.tensor(MEANS)) / stds).abs().max() < 0.12
    spreads = drawn.std((0, 2, 3)) / stds
    assert low < spreads.min(), spreads
    assert spreads.max() < high, spreads


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("kind", "zero_snr"), KINDS)
def test_right_pairs_draw_the_data(name, kind, zero_snr):
    for steps in (10, 20, 50):
        check_spread(name, kind, zero_snr, steps)


@pytest.mark.parametrize("name", SAMPLERS)
def test_in_a_thousand_steps_nothing_is_lost(name):
    check_spread(name, "v_prediction", True, 1000)


def test_leading_timesteps_are_refused_with_zero_terminal_snr():
    diffusion = GaussianDiffusion(prediction_type="sample", rescale_betas_zero_snr=True)
    saved = {**diffusion.scheduler_config(), "timestep_spacing": "leading"}
    with pytest.raises(UserError, match="timestep_spacing leading, which never asks the last"):
        saved_sampler(saved, diffusion)
    saved |= {"_class_name": "HeunDiscreteScheduler", "timestep_spacing": "trailing"}
    with pytest.raises(UserError, match="does not know zero terminal SNR"):
        saved_sampler(saved, diffusion)


@pytest.mark.parametrize("kind", TYPES)
def test_lcm_is_for_models_distilled_for_it(kind):
    """One that leads from any noise to the clean end of its path, in closed form."""
    diffusion = GaussianDiffusion(prediction_type=kind, clip_sample=False)
    saved = {**diffusion.scheduler_config(), "_class_name": "LCMScheduler"}
    roots = diffusion.alphas_cumprod_float64.sqrt()

    def distilled(x, t):
        a = float(roots[int(t[0])])
        s, std = math.sqrt(1 - a**2), 0.3
        image = std / math.sqrt(a**2 * std**2 + s**2) * x.double()
        noise = (x - a * image) / s
        kinds = {"epsilon": noise, "sample": image, "v_prediction": a * noise - s * image}
        return kinds[kind].float()

    for steps in (1, 4, 50):
        drawn = sample(
            distilled, saved_sampler(saved, diffusion), (1, 48, 48), seed=0, indices=[0],
            steps=steps,
        )  # fmt: skip
        assert drawn.std() == pytest.approx(0.3, rel=0.06)
    with pytest.raises(UserError, match=r"1000 steps of LCMScheduler"):
        saved_sampler(saved, diffusion).plan(1000, None, [])
    with pytest.raises(UserError, match="sampler lcm: needs a model distilled for it"):
        make_sampler("lcm", diffusion)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_by_name_clip_on_the_way_as_the_process_says(name):
    """A network that is wrong by much leads to images in range, or out of it for latents."""
    for clip in (True, False):
        diffusion = GaussianDiffusion(prediction_type="sample", clip_sample=clip)
        drawn = sample(
            lambda x, t: torch.full_like(x, 1.5), name, SHAPE[1:], diffusion=diffusion, seed=0,
            indices=[0], steps=10,
        )  # fmt: skip
        known = torch.full_like(drawn, 1.0 if clip else 1.5)
        torch.testing.assert_close(drawn, known, rtol=0, atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 3.0, 20.0])
@pytest.mark.parametrize("how", ["clip_sample", "thresholding"])
@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_guidance_by_hand_stays_with_its_class(name, how, scale):
    """Two classes of grey in closed form, guided by a formula that no sampler knows of."""
    diffusion = GaussianDiffusion()
    dark = Oracle(Mixture([1.0], [[-0.9]], [[[0.0025]]]), diffusion)
    either = Oracle(Mixture([0.5, 0.5], [[-0.9], [0.9]], [[[0.0025]], [[0.0025]]]), diffusion)

    def guided(x, t):
        return either(x, t) + scale * (dark(x, t) - either(x, t))

    sampler = LinearSampler(diffusion, name, sample_max_value=4.0, **{how: True})
    drawn = sample(guided, sampler, (1, 8, 8), seed=0, indices=range(4), steps=50)
    assert -1 <= drawn.min() < drawn.max() < -0.65
    assert drawn.mean() < -0.75


def test_names_are_explained_and_mistakes_answered():
    assert all(name in described() for name in SAMPLERS)
    with pytest.raises(UserError, match="did you mean 'dpm\\+\\+'"):
        make_sampler("dpm+", GaussianDiffusion())
    with pytest.raises(UserError, match="give diffusion, the forward process"):
        sample(means, "ddim", SHAPE[1:], seed=0, indices=[0], steps=5)


def test_sampling_by_name_does_without_diffusers():
    code = (
        "import sys, torch; from ddpm_unet.diffusion.sampling import sample\n"
        "from ddpm_unet.diffusion.process import GaussianDiffusion as G\n"
        "for name in ('ddpm', 'ddim', 'dpm++', 'heun'):\n"
        "    sample(lambda x, t: x, name, (1, 2, 2), diffusion=G(), seed=0, indices=[0], steps=3)\n"
        "print('diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

from functools import partial
from itertools import pairwise

import diffusers
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import SAMPLERS, make_sampler
from ddpm_unet.diffusion.sampling import Trajectory, sample

SHAPE, DIFFUSION = (3, 8, 8), GaussianDiffusion()


def denoiser(x, t):
    """Any smooth function that keeps images apart, row by row."""
    return torch.tanh(x) * (0.5 + t.reshape(-1, 1, 1, 1) / 2000)


def draw(name="ddpm", indices=range(4), **options):
    options = {"seed": 3, "steps": 10} | options
    return sample(denoiser, name, SHAPE, indices=indices, diffusion=DIFFUSION, **options)


@pytest.mark.parametrize(("name", "eta"), [*((name, None) for name in SAMPLERS), ("ddim", 1.0)])
def test_an_image_is_a_function_of_seed_and_index(name, eta):
    images = partial(draw, eta=eta)
    together = images(name)
    assert together.shape == (4, *SHAPE)
    assert together.dtype == torch.float32
    assert together.isfinite().all()
    apart = torch.cat([images(name, [2, 0]), images(name, [3]), images(name, [1])])
    torch.testing.assert_close(apart[[1, 3, 0, 2]], together, rtol=1e-5, atol=1e-6)
    assert torch.equal(images(name), together)
    assert not torch.allclose(images(name, seed=4), together)
    distances = torch.cdist(together.flatten(1), together.flatten(1))
    assert distances[~torch.eye(4, dtype=bool)].min() > 0.1


def test_schedulers_that_step_for_themselves_get_one_generator_an_image():
    scheduler = diffusers.DDPMScheduler(thresholding=True)
    options = {"seed": 0, "steps": 10}
    together = sample(denoiser, scheduler, SHAPE, indices=range(3), **options)
    alone = sample(denoiser, scheduler, SHAPE, indices=[2], **options)
    torch.testing.assert_close(alone[0], together[2])


class Halfway:
    """Anybody's sampler, with what `sample` needs of one: half of the way to x_0 at each step."""

    def set_timesteps(self, steps):
        self.timesteps = torch.linspace(999, 0, steps).round().long()

    def step(self, prediction, t, x):
        return ((x + prediction) / 2,)


def jump(denoise, x, sigmas):
    """Anybody's function: the image in one step."""
    return denoise(x, float(sigmas[0]))


def test_a_sampler_may_be_an_object_or_a_function():
    flat = GaussianDiffusion(prediction_type="sample", clip_sample=False)
    for own, known in ((Halfway(), 0.0), (jump, 0.25)):
        seen = []
        images = sample(
            lambda x, t: torch.full_like(x, 0.25), own, SHAPE, diffusion=flat, seed=0,
            indices=range(2), steps=40, callback=seen.append,
        )  # fmt: skip
        torch.testing.assert_close(images, torch.full_like(images, 0.25))
        assert len(seen) == (40 if known == 0 else 1)
        torch.testing.assert_close(seen[-1].x, images)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 61])
def test_any_number_of_steps(name, steps):
    seen = []

    def watched(x, t):
        assert t.shape == (2,)
        assert (t == t[0]).all()
        seen.append(t[0].item())
        return denoiser(x, t)

    scheduler = make_sampler(name, DIFFUSION)
    images = sample(watched, scheduler, SHAPE, seed=0, indices=[0, 1], steps=steps)
    assert images.isfinite().all()
    assert set(torch.tensor(scheduler.plan(steps).times).tolist()) <= set(seen) or name == "churn"
    assert len(seen) == (2 * steps - 1 if name in ("heun", "churn") else steps)
    assert seen[0] == 999
    assert min(seen) >= 0
    assert name == "churn" or all(a >= b for a, b in pairwise(seen))


@pytest.mark.parametrize("name", SAMPLERS)
def test_callback_sees_every_step(name):
    moments = []
    images = draw(name, callback=lambda m: moments.append(m._replace(x=m.x.clone())))
    assert [m.step for m in moments] == list(range(len(moments)))
    assert {m.steps for m in moments} == {len(moments)}
    assert torch.equal(moments[-1].x, images)
    torch.testing.assert_close(moments[-1].x0, images, rtol=1e-4, atol=1e-4)
    assert all(m.x0.shape == images.shape for m in moments)


@pytest.mark.parametrize(("moments", "steps"), [(1, 10), (4, 10), (10, 10), (5, 3)])
def test_trajectory(moments, steps):
    film, everything = Trajectory(moments), []
    images = draw(steps=steps, callback=lambda m: (film(m), everything.append(m.x0.clone())))
    assert len(film.images) == min(moments, steps)
    torch.testing.assert_close(film.images[-1], images)
    if moments > 1:
        assert torch.equal(film.images[0], everything[0])


def test_a_denoiser_may_hand_back_its_input():
    def echo(x, t):
        return x

    def copy(x, t):
        return x.clone()

    for name in SAMPLERS:
        scheduler = make_sampler(name, DIFFUSION)
        options = {"seed": 0, "indices": [0, 1], "steps": 5}
        echoed = sample(echo, scheduler, SHAPE, **options)
        assert torch.equal(echoed, sample(copy, scheduler, SHAPE, **options))


def test_half_precision_predictions_are_taken_in_float32():
    states = []

    def half(x, t):
        states.append(x.dtype)
        return denoiser(x, t).bfloat16()

    images = sample(half, make_sampler("ddpm", DIFFUSION), SHAPE, seed=0, indices=[0], steps=5)
    assert images.dtype == torch.float32
    assert set(states) == {torch.float32}


def test_images_are_ordinary_tensors():
    images = draw(steps=2)
    assert not images.is_inference()
    weight = torch.ones(3, requires_grad=True)
    (images * weight[:, None, None]).sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_loop_never_waits_for_the_device(name):
    """Reading a number out of a tensor would make the host wait for an accelerator."""

    aten = torch.ops.aten
    reads = {aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero}
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    def watched(x, t):
        seen.append("denoiser")
        return denoiser(x, t)

    with Watch():
        scheduler = make_sampler(name, DIFFUSION)
        options = {"seed": 0, "indices": [0, 1], "steps": 5, "eta": 0.5}
        sample(watched, scheduler, SHAPE, callback=Trajectory(3), **options)
    in_the_loop = seen[seen.index("denoiser") :]
    assert in_the_loop.count("denoiser") >= 5
    assert aten.tanh in in_the_loop
    assert reads.isdisjoint(in_the_loop)

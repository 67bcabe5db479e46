from itertools import pairwise

import diffusers
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_unet.config import DiffusionConfig
from ddpm_unet.diffusion.samplers import SAMPLERS, make_scheduler
from ddpm_unet.diffusion.sampling import FilmStrip, sample, timesteps
from ddpm_unet.errors import UserError

SHAPE = (3, 8, 8)


def denoiser(x, t):
    """Any smooth function that keeps images apart, row by row."""
    return torch.tanh(x) * (0.5 + t.reshape(-1, 1, 1, 1) / 2000)


def draw(name="ddpm", indices=range(4), **options):
    options = {"seed": 3, "steps": 10} | options
    return sample(
        denoiser, make_scheduler(name, DiffusionConfig()), SHAPE, indices=indices, **options
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_is_a_function_of_seed_and_index(name):
    together = draw(name)
    assert together.shape == (4, *SHAPE)
    assert together.dtype == torch.float32
    assert together.isfinite().all()
    apart = torch.cat([draw(name, [2, 0]), draw(name, [3]), draw(name, [1])])
    torch.testing.assert_close(apart[[1, 3, 0, 2]], together, rtol=1e-5, atol=1e-6)
    assert torch.equal(draw(name), together)
    assert not torch.allclose(draw(name, seed=4), together)
    distances = torch.cdist(together.flatten(1), together.flatten(1))
    assert distances[~torch.eye(4, dtype=bool)].min() > 0.1


def test_ddim_with_noise_is_a_function_of_seed_and_index_too():
    together = draw("ddim", eta=1.0)
    assert not torch.allclose(together, draw("ddim"))
    torch.testing.assert_close(draw("ddim", [2], eta=1.0)[0], together[2])


def test_schedulers_that_step_for_themselves_get_one_generator_an_image():
    scheduler = diffusers.DDPMScheduler(thresholding=True)
    options = {"seed": 0, "steps": 10}
    together = sample(denoiser, scheduler, SHAPE, indices=range(3), **options)
    alone = sample(denoiser, scheduler, SHAPE, indices=[2], **options)
    torch.testing.assert_close(alone[0], together[2])


def test_the_table_gives_what_the_scheduler_gives():
    """The same noise, the same image, through LinearSteps or through scheduler.step."""

    class OwnStep(diffusers.DDPMScheduler):
        pass

    options = {"indices": range(2), "seed": 0, "steps": 100}
    settings = {"timestep_spacing": "linspace"}
    table = sample(denoiser, diffusers.DDPMScheduler(**settings), SHAPE, **options)
    stepped = sample(denoiser, OwnStep(**settings), SHAPE, **options)
    torch.testing.assert_close(table, stepped, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 61])
def test_any_number_of_steps(name, steps):
    if steps == 1 and name in ("euler", "heun"):
        pytest.skip("refused, below")
    seen = []

    def watched(x, t):
        assert t.shape == (2,)
        assert (t == t[0]).all()
        seen.append(t[0].item())
        return denoiser(x, t)

    scheduler = make_scheduler(name, DiffusionConfig())
    images = sample(watched, scheduler, SHAPE, seed=0, indices=[0, 1], steps=steps)
    assert images.isfinite().all()
    assert seen == timesteps(scheduler, steps).tolist()
    assert len(seen) == (2 * steps - 1 if name == "heun" else steps)
    assert seen[0] == 999
    assert all(a >= b >= 0 for a, b in pairwise(seen))


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(UserError, match="1 to 1000"):
        draw(steps=steps)
    if steps == 0:
        with pytest.raises(UserError, match="at least 2"):
            draw("euler", steps=1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_callback_sees_every_step(name):
    moments = []
    images = draw(name, callback=lambda m: moments.append(m._replace(x=m.x.clone())))
    assert [m.step for m in moments] == list(range(len(moments)))
    assert {m.steps for m in moments} == {len(moments)}
    assert all(a.t >= b.t for a, b in pairwise(moments))
    assert torch.equal(moments[-1].x, images)
    torch.testing.assert_close(moments[-1].x0, images, rtol=1e-4, atol=1e-4)
    assert all(m.x0.shape == images.shape for m in moments)


@pytest.mark.parametrize(("moments", "steps"), [(1, 10), (4, 10), (10, 10), (5, 3)])
def test_film_strip(moments, steps):
    film, everything = FilmStrip(moments), []
    images = draw(steps=steps, callback=lambda m: (film(m), everything.append(m.x0.clone())))
    assert len(film.frames) == min(moments, steps)
    torch.testing.assert_close(film.frames[-1], images)
    if moments > 1:
        assert torch.equal(film.frames[0], everything[0])


def test_a_denoiser_may_hand_back_its_input():
    def echo(x, t):
        return x

    def copy(x, t):
        return x.clone()

    for name in SAMPLERS:
        scheduler = make_scheduler(name, DiffusionConfig())
        options = {"seed": 0, "indices": [0, 1], "steps": 5}
        echoed = sample(echo, scheduler, SHAPE, **options)
        assert torch.equal(echoed, sample(copy, scheduler, SHAPE, **options))


def test_half_precision_predictions_are_taken_in_float32():
    states = []

    def half(x, t):
        states.append(x.dtype)
        return denoiser(x, t).bfloat16()

    images = sample(
        half, make_scheduler("ddpm", DiffusionConfig()), SHAPE, seed=0, indices=[0], steps=5
    )
    assert images.dtype == torch.float32
    assert set(states) == {torch.float32}


def test_images_are_ordinary_tensors():
    images = draw(steps=2)
    assert not images.is_inference()
    weight = torch.ones(3, requires_grad=True)
    (images * weight[:, None, None]).sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
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
        scheduler = make_scheduler(name, DiffusionConfig())
        options = {"seed": 0, "indices": [0, 1], "steps": 5, "eta": 0.5}
        sample(watched, scheduler, SHAPE, callback=FilmStrip(3), **options)
    in_the_loop = seen[seen.index("denoiser") :]
    assert in_the_loop.count("denoiser") == 5
    assert aten.tanh in in_the_loop
    assert reads.isdisjoint(in_the_loop)


def test_progress_bar_is_optional(capsys):
    draw(steps=5)
    assert capsys.readouterr().err == ""
    draw(steps=5, progress=True)
    assert "5/5" in capsys.readouterr().err

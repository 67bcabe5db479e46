import pytest
import torch
from torch.nn.functional import conv2d, pad

from ddpm_unet.diffusion.conditioning import classifier_free_guidance
from ddpm_unet.diffusion.editing import tiled
from ddpm_unet.diffusion.process import batch_time
from ddpm_unet.errors import UserError

T = torch.tensor([500.0, 500.0])


def pointwise(x, t, **conditions):
    offset = conditions.get("image", 0) + conditions.get("level", torch.zeros(1)).reshape(
        -1, 1, 1, 1
    )
    return torch.tanh(x) + t.reshape(-1, 1, 1, 1) / 1000 + offset


def blur(x, t):
    return conv2d(pad(x, (1, 1, 1, 1)), torch.ones(1, 1, 3, 3) / 9)


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


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

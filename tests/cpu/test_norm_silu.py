"""Normalisation, modulation and SiLU at once against float64, and where they must stand back."""

import pytest
import torch
import torch.nn.functional as F
from small import noise

from ddpm_unet.cpu import accelerate_cpu, kernels
from ddpm_unet.models.layers import NormAct

compiled = pytest.mark.skipif(kernels.functions("norm_silu") is None, reason="no compiler here")


def reference(norm, x, scale=None, shift=None):
    parameters = (norm.weight.double(), norm.bias.double())
    y = F.group_norm(x.double(), norm.num_groups, *parameters, norm.eps)
    return F.silu(y if scale is None else y * (1 + scale.double()) + shift.double())


def layer(groups, channels):
    norm = accelerate_cpu(NormAct(groups, channels, 1e-5, "silu")).requires_grad_(False)
    norm.weight.copy_(noise(channels, seed=1))
    norm.bias.copy_(noise(channels, seed=2))
    return norm


@compiled
@pytest.mark.parametrize("modulations", [None, 1, 2])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((2, 8, 16, 16), 4),
        ((2, 6, 5, 7), 3),  # no whole vectors
        ((2, 4, 1, 1), 2),
        ((2, 4, 3, 33, 31), 1),
        ((2, 3, 70, 90), 3),
    ],
)
def test_like_float64(shape, groups, modulations):
    x, norm = noise(*shape) * 3 + 1, layer(groups, shape[1])
    modulation = ()
    if modulations is not None:
        ones = [1] * (len(shape) - 2)
        modulation = noise(modulations, 2 * shape[1], *ones, seed=3).chunk(2, dim=1)
    assert kernels.norm_silu_applies(x, norm.weight, norm.bias, *modulation)
    torch.testing.assert_close(
        norm(x, *modulation).double(), reference(norm, x, *modulation), rtol=2e-6, atol=2e-6
    )


@compiled
def test_far_from_zero_as_exact_as_torch():
    x, norm = noise(1, 4, 64, 64) + 1000, layer(1, 4)
    exact = reference(norm, x)
    ordinary = F.silu(F.group_norm(x, 1, norm.weight, norm.bias, norm.eps))
    error, usual = ((y - exact).abs().max() for y in (norm(x), ordinary))
    assert error <= 2 * usual


@compiled
def test_silu_over_all_of_its_range():
    values = torch.linspace(-200, 200, 401)
    norm = layer(401, 401)
    norm.weight.zero_()
    norm.bias.copy_(values)
    result = norm(noise(1, 401, 3))[0, :, 0]
    expected = F.silu(values.double()).float()
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-34)


@compiled
def test_an_image_does_not_depend_on_its_neighbours_or_on_threads(threads):
    x, norm = noise(5, 8, 9, 9), layer(4, 8)
    together = norm(x)
    threads(2)
    assert torch.equal(torch.cat([norm(x[i : i + 1]) for i in range(5)]), together)


@compiled
def test_elsewhere_it_is_torchs():
    norm, x = layer(2, 4), noise(1, 4, 6, 6)
    others = (norm.weight, norm.bias)
    assert not kernels.norm_silu_applies(x.to(memory_format=torch.channels_last), *others)
    assert not kernels.norm_silu_applies(x.double(), *others)
    assert not kernels.norm_silu_applies(x.clone().requires_grad_(), *others)
    assert kernels.norm_silu_applies(x, *others)
    last = norm(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, norm(x))
    assert norm(x.clone().requires_grad_()).requires_grad

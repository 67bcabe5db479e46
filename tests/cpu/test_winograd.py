"""Winograd's convolutions against float64, and where they must stand back."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small import noise
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm_unet.config import ClassicConfig
from ddpm_unet.cpu import accelerate_cpu, kernels
from ddpm_unet.cpu.modules import FastConv3x3
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import make_sampler
from ddpm_unet.diffusion.sampling import sample
from ddpm_unet.models import UNet
from ddpm_unet.models.classic import ClassicUNet

SHIPPED = Path(__file__).parents[2] / "samples" / "histology64" / "model"

compiled = pytest.mark.skipif(kernels.functions("winograd") is None, reason="no compiler here")


def fast_convolution(inputs, outputs, padding=1):
    return accelerate_cpu(nn.Conv2d(inputs, outputs, 3, padding=padding))


def case(batch, inputs, outputs, height, width):
    x = noise(batch, inputs, height, width)
    weight = noise(outputs, inputs, 3, 3, seed=1) / (9 * inputs) ** 0.5
    return x, weight, noise(outputs, seed=2), noise(batch, outputs, height, width, seed=3)


def results(function, x, weight, bias, dy):
    """The convolution and the gradients of all that goes into it."""
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    y = function(*leaves)
    return y, *torch.autograd.grad(y, leaves, dy)


def reference(x, weight, bias, dy):
    def ordinary(x, weight, bias):
        return F.conv2d(x, weight, bias, padding=1)

    return results(ordinary, *(tensor.double() for tensor in (x, weight, bias, dy)))


def error(result, expected):
    return ((result - expected).norm() / expected.norm()).item()


@compiled
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 16, 16, 8, 8),
        (2, 48, 80, 9, 17),
        (1, 256, 32, 10, 8),
        (5, 16, 48, 3, 4),
        (9, 16, 112, 23, 19),  # several rounds of tiles
        (1, 32, 16, 8, 803),  # a row of tiles that is a round
    ],
)
def test_like_float64(shape, layout):
    x, weight, bias, dy = case(*shape)
    assert kernels.winograd_applies(x, weight, bias)
    got = results(kernels.winograd, x.contiguous(memory_format=layout), weight, bias, dy)
    for result, expected in zip(got, reference(x, weight, bias, dy), strict=True):
        assert result.shape == expected.shape
        assert error(result, expected) < 2e-6
    assert all(tensor.is_contiguous(memory_format=layout) for tensor in got[:2])


@compiled
@torch.no_grad()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("outputs", [3, 17, 40])
def test_any_number_of_outputs_without_gradients(outputs, layout):
    x, weight, bias, _ = case(2, 32, outputs, 9, 17)
    assert kernels.winograd_applies(x, weight, bias)
    result = kernels.winograd(x.contiguous(memory_format=layout), weight, bias)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert error(result, exact) < 2e-6
    with torch.enable_grad():
        assert not kernels.winograd_applies(x, weight.requires_grad_(), bias)


@compiled
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_without_padding(layout):
    x, weight, bias, dy = case(2, 16, 32, 14, 9)
    layer = fast_convolution(16, 32, padding=0)
    layer.weight.data, layer.bias.data = weight, bias
    leaf = x.contiguous(memory_format=layout).requires_grad_()
    y = layer(leaf)
    assert y.is_contiguous(memory_format=layout)
    exact = [tensor.double().requires_grad_() for tensor in (x.detach(), weight, bias)]
    expected = F.conv2d(*exact)
    assert 0 < error(y, expected) < 2e-6
    dy = dy[..., 1:-1, 1:-1]
    got = torch.autograd.grad(y, (leaf, layer.weight, layer.bias), dy)
    for result, wanted in zip(got, torch.autograd.grad(expected, exact, dy.double()), strict=True):
        assert error(result, wanted) < 2e-6


@compiled
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_classic_networks(padding):
    """Forward and gradients as far from float64 as with torch's convolutions, within rounding."""
    torch.manual_seed(0)
    config = ClassicConfig(padding=padding, depth=3, base_width=16, dropout=0)
    network, x = ClassicUNet(config), noise(1, 1, 92, 92)

    def results(network, x):
        y = network(x)
        return [y, *torch.autograd.grad(y.square().mean(), network.parameters())]

    plain, exact = results(network, x), results(deepcopy(network).double(), x.double())
    fast = results(accelerate_cpu(network), x)
    assert not torch.equal(fast[0], plain[0])
    assert error(fast[0], exact[0]) < 1e-5
    for result, ordinary, wanted in zip(fast, plain, exact, strict=True):
        assert error(result, wanted) < 100 * error(ordinary, wanted) + 1e-5


@compiled
def test_the_layout_is_the_one_torch_gives():
    x, weight, bias, _ = case(2, 16, 16, 8, 9)
    last = torch.channels_last
    for image in (x, x.contiguous(memory_format=last), x.transpose(2, 3), x.expand(2, -1, -1, -1)):
        for filters in (weight, weight.contiguous(memory_format=last), weight.transpose(2, 3)):
            expected = F.conv2d(image, filters, bias, padding=1)
            result = kernels.winograd(image, filters, bias)
            torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
            assert result.stride() == expected.stride()


@compiled
def test_threads_neighbours_and_repetition_change_no_bit(threads):
    given = case(7, 32, 48, 24, 20)
    first = results(kernels.winograd, *given)
    for number in (1, 2, 3):
        threads(number)
        assert all(map(torch.equal, results(kernels.winograd, *given), first))
    x, weight, bias, dy = given
    alone = results(kernels.winograd, x[5:6], weight, bias, dy[5:6])
    assert torch.equal(alone[0], first[0][5:6])
    assert torch.equal(alone[1], first[1][5:6])


def test_only_3x3_convolutions_of_images_are_made_so():
    def made(**options):
        return type(accelerate_cpu(nn.Conv2d(16, 16, **{"kernel_size": 3, "padding": 1} | options)))

    assert made() is made(padding=0) is FastConv3x3
    for options in ({"stride": 2}, {"padding": 2}, {"kernel_size": 1}, {"groups": 2}):
        assert made(**options) is nn.Conv2d
    assert made(padding_mode="circular") is made(dilation=2) is nn.Conv2d
    assert list(accelerate_cpu(nn.Conv2d(16, 16, 3)).state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 16, 16, 8, 8), torch.float64),
        ((1, 16, 16, 8, 8), torch.bfloat16),
        ((3, 16, 16, 4, 4), torch.float32),
        ((8, 16, 16, 5, 5), torch.float32),
        ((1, 3, 16, 8, 8), torch.float32),
        ((0, 16, 16, 8, 8), torch.float32),
    ],
)
def test_elsewhere_it_is_the_ordinary_convolution(shape, dtype):
    x, weight, bias, _ = (tensor.to(dtype) for tensor in case(*shape))
    assert not kernels.winograd_applies(x, weight, bias)
    layer = fast_convolution(shape[1], shape[2]).to(dtype)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))


@compiled
def test_autocast_and_other_devices():
    layer = fast_convolution(16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(noise(1, 16, 8, 8)).dtype == torch.bfloat16
    assert layer.to("meta")(torch.empty(1, 16, 8, 8, device="meta")).is_meta


@compiled
def test_flops_are_counted():
    layer = fast_convolution(16, 32)
    with FlopCounterMode(display=False) as counter:
        layer(noise(1, 16, 8, 8)).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 64 * 9 * 16 * 32  # of y and of the weights


@compiled
def test_gradient_of_a_gradient():
    def penalty(function, x, weight, bias):
        (dx,) = torch.autograd.grad(function(x, weight, bias).pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.pow(2).sum(), (x, weight, bias))

    given = [tensor.requires_grad_() for tensor in case(2, 16, 32, 8, 9)[:3]]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    expected = penalty(lambda x, w, b: F.conv2d(x, w, b, padding=1), *exact)
    for result, wanted in zip(penalty(kernels.winograd, *given), expected, strict=True):
        assert error(result, wanted) < 1e-5


@compiled
@torch.no_grad()
def test_trained_network_and_its_samples():
    unet = UNet.from_pretrained(SHIPPED)
    x, t = noise(1, 3, 64, 64), torch.tensor([300])
    exact = deepcopy(unet).double()(x.double(), t)
    ordinary = unet(x, t)
    fast = accelerate_cpu(deepcopy(unet))
    result = fast(x, t)
    assert not torch.equal(result, ordinary)
    assert error(ordinary, exact) < 2e-6
    assert error(result, exact) < 1e-5

    def images(unet):
        scheduler = make_sampler("ddpm", GaussianDiffusion())
        return sample(unet, scheduler, (3, 64, 64), seed=0, indices=[0], steps=10)

    assert (images(fast) - images(unet)).abs().max() < 1 / 255

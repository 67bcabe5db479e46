import copy
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from ddpm_unet.cpu import accelerate_cpu
from ddpm_unet.cpu.modules import enlarge, halve
from ddpm_unet.cpu.recompute import keep_recipe
from ddpm_unet.models.layers import (
    ACTIVATIONS,
    Downsample,
    NormAct,
    ResidualBlock,
    Upsample,
    convolution,
    pad_far_side,
)


def random(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def layers(act="silu", dtype=torch.float64):
    torch.manual_seed(0)
    norm, conv = accelerate_cpu(NormAct(2, 4, 1e-5, act)), convolution(2, 4, 3)
    nn.init.normal_(norm.weight)
    return norm.to(dtype), conv.to(dtype)


def plain(norm, conv, x, scale=None, shift=None):
    h = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    if scale is not None:
        h = h * (1 + scale) + shift
    return F.conv2d(ACTIVATIONS["silu"](h) if norm.act is F.silu else norm.act(h),
                    conv.weight, conv.bias, padding=1)  # fmt: skip


def forgotten(norm, conv, x, *modulation):
    return keep_recipe(conv, norm(x, *modulation))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_gradients_are_those_of_the_plain_operations(act):
    norm, conv = layers(act)
    inputs = [random(2, 4, 5, 6), random(2, 4, 1, 1), random(2, 4, 1, 1, seed=1)]
    found = []
    for function in (forgotten, plain):
        x, scale, shift = (value.clone().requires_grad_() for value in inputs)
        output = function(norm, conv, x, scale, shift)
        leaves = [x, scale, shift, *norm.parameters(), *conv.parameters()]
        found.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_of_gradients():
    norm, conv = layers()
    x = random(1, 4, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: forgotten(norm, conv, x), x)
    assert torch.autograd.gradgradcheck(lambda x: forgotten(norm, conv, x), x)


def test_in_half_precision_as_without_forgetting():
    norm, conv = layers(dtype=torch.float32)
    found = []
    for function in (forgotten, plain):
        x = random(2, 4, 5, 6, dtype=torch.float32).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            output = function(norm, conv, x)
        (gradient,) = torch.autograd.grad(output.float().square().sum(), x)
        found.append((output, gradient))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_a_frozen_input_and_no_gradients():
    norm, conv = layers()
    x = random(2, 4, 5, 6)
    expected = plain(norm, conv, x)
    torch.testing.assert_close(forgotten(norm, conv, x), expected)
    frozen = copy.deepcopy(norm).requires_grad_(False)
    assert forgotten(frozen, conv, x).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(forgotten(norm, conv, x), expected)


def test_an_input_that_was_overwritten_is_noticed():
    norm, conv = layers()
    x = random(2, 4, 5, 6).requires_grad_() * 1
    output = forgotten(norm, conv, x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def kept(function, *inputs):
    """Shapes of the activations that are kept for the backward pass of `function`."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function(*inputs)
    assert output.requires_grad
    return sorted(tuple(x.shape) for x in seen.values() if x.shape[2:] == inputs[0].shape[2:])


def test_a_residual_block_keeps_what_its_normalisations_read():
    block = accelerate_cpu(ResidualBlock(2, 4, 6, 8, groups=2, eps=1e-5, act="silu"))
    x = random(2, 4, 7, 5, dtype=torch.float32).requires_grad_()
    emb = random(2, 8, dtype=torch.float32)
    assert kept(block, x, emb) == [(2, 4, 7, 5), (2, 6, 7, 5)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_forgotten_is_freed(checkpointing):
    block = accelerate_cpu(ResidualBlock(2, 4, 6, 8, groups=2, eps=1e-5, act="silu"))
    x = random(2, 4, 7, 5, dtype=torch.float32).requires_grad_()
    emb = random(2, 8, dtype=torch.float32)
    seen = []
    for norm in (block.norm1, block.norm2):
        norm.register_forward_hook(
            lambda norm, inputs, output: seen.append(weakref.ref(output.untyped_storage()))
        )
    run = partial(checkpoint, block, use_reentrant=False) if checkpointing else block
    output = run(x, emb)
    assert output.requires_grad
    assert [storage() for storage in seen] == [None, None]


@pytest.mark.parametrize("shape", [(2, 4, 7, 5), (1, 4, 1, 1)])
def test_a_padded_image_is_not_kept(shape):
    down = accelerate_cpu(Downsample(2, 4, padding=0))
    x = random(*shape, dtype=torch.float32).requires_grad_()
    assert kept(down, x) == [shape]
    found = torch.autograd.grad(down(x).square().sum(), x)
    expected = torch.autograd.grad(down.conv(pad_far_side(x)).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_an_enlarged_image_is_not_kept():
    up = accelerate_cpu(Upsample(2, 4))
    x = random(2, 4, 7, 5, dtype=torch.float32).requires_grad_()
    assert kept(up, x, None, (14, 10)) == [(2, 4, 7, 5)]


def test_enlarging_is_nearest_neighbour_interpolation():
    for shape in [(2, 3, 4, 6), (1, 2, 2, 3, 4)]:
        x = random(*shape).requires_grad_()
        size = [2 * n for n in shape[2:]]
        ours, theirs = enlarge(x, size), F.interpolate(x, size, mode="nearest")
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        gradient = random(*ours.shape)
        found = [torch.autograd.grad(y, x, gradient)[0] for y in (ours, theirs)]
        torch.testing.assert_close(*found)
        assert enlarge(x, [n - 1 for n in size]).shape[2:] == tuple(n - 1 for n in size)


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 3, 5, 6), (1, 2, 2, 4, 4)])
def test_halving_is_average_pooling(shape):
    x = random(*shape).requires_grad_()
    pooling = F.avg_pool2d if len(shape) == 4 else F.avg_pool3d
    ours, theirs = halve(x), pooling(x, 2)
    torch.testing.assert_close(ours, theirs)
    gradient = random(*ours.shape)
    torch.testing.assert_close(*[torch.autograd.grad(y, x, gradient)[0] for y in (ours, theirs)])

"""Accelerated networks give what plain ones do, everywhere that plain ones work."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddpm_unet.config import ClassicConfig
from ddpm_unet.cpu import accelerate_cpu
from ddpm_unet.models.classic_layers import ConvBlock, Pool


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (2, 3, 7, 9), (1, 2, 4, 8, 12)])
def test_pooling_is_torchs(shape, factor):
    x = torch.randn(shape)
    x[0, 0, ..., 0, 1] = torch.nan
    pooling = F.max_pool2d if len(shape) == 4 else F.max_pool3d
    expected = pooling(x, factor, ceil_mode=True)
    for format in (torch.contiguous_format, torch.channels_last)[: 6 - len(shape)]:
        found = accelerate_cpu(Pool(factor))(x.to(memory_format=format))
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_doubling_is_torchs_transposed_convolution():
    torch.manual_seed(0)
    up, x = accelerate_cpu(nn.ConvTranspose2d(6, 5, 2, stride=2)), torch.randn(2, 6, 7, 4)
    expected = F.conv_transpose2d(x, up.weight, up.bias, stride=2)
    with torch.no_grad():
        torch.testing.assert_close(up(x), expected)
    assert up(x).requires_grad


def test_the_normalisation_is_part_of_the_weights_where_nothing_is_trained():
    torch.manual_seed(0)
    block = ConvBlock(ClassicConfig(norm="batch", padding="same"), 16, 16, 3)
    for _ in range(3):
        block(torch.randn(4, 16, 9, 9) * 2 + 1)  # statistics, other than at first
    for norm in (block[1], block[4]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 16, 9, 9)
    exact = copy.deepcopy(block).double().eval()
    expected = nn.Sequential(*exact)(x.double())
    accelerate_cpu(block).eval()
    with torch.no_grad():
        torch.testing.assert_close(block(x).double(), expected, rtol=1e-5, atol=1e-5)
    seen = []
    block[1].register_forward_hook(lambda *_: seen.append("alone"))
    with torch.no_grad():
        block(x)
    assert not seen
    assert block(x).requires_grad
    assert seen

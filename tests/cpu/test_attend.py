"""Compiled attention against float64, and where it must stand back."""

import pytest
import torch
import torch.nn.functional as F
from small import noise

from ddpm_unet.cpu import accelerate_cpu, kernels
from ddpm_unet.models.attention import Attention

compiled = pytest.mark.skipif(kernels.functions("attend") is None, reason="no compiler here")


def case(batch, heads, tokens, keys, dim):
    sizes = (tokens, keys, keys)
    return [noise(batch, n, heads * dim, seed=i) for i, n in enumerate(sizes)]


def reference(q, k, v, heads):
    q, k, v = (x.double().unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@compiled
@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "keys", "dim"),
    [
        (1, 1, 1, 1, 8),
        (2, 3, 37, 5, 16),  # no whole panels, nor blocks of keys
        (1, 2, 64, 200, 24),
        (2, 4, 33, 129, 32),
        (1, 2, 50, 77, 64),
    ],
)
def test_like_float64(batch, heads, tokens, keys, dim):
    given = case(batch, heads, tokens, keys, dim)
    assert kernels.attend_applies(*given, heads)
    result = kernels.attend(*given, heads).double()
    torch.testing.assert_close(result, reference(*given, heads), rtol=1e-5, atol=3e-6)


@compiled
@pytest.mark.parametrize("scale", [1e-3, 40.0, 1e3])
def test_flat_and_steep_softmax(scale):
    q, k, v = case(1, 2, 20, 150, 8)
    q *= scale
    result = kernels.attend(q, k, v, 2).double()
    torch.testing.assert_close(result, reference(q, k, v, 2), rtol=1e-4, atol=1e-3)


@compiled
def test_the_largest_score_may_come_last_or_first():
    q, k, v = torch.ones(1, 1, 8), torch.zeros(1, 130, 8), noise(1, 130, 8)
    for best in (0, 70, 129):
        k.zero_()
        k[0, best] = 100
        torch.testing.assert_close(kernels.attend(q, k, v, 1), v[:, best : best + 1])


@compiled
def test_neighbours_and_threads_change_nothing(threads):
    given = case(3, 2, 40, 40, 8)
    together = kernels.attend(*given, 2)
    threads(2)
    each = [kernels.attend(*(x[i : i + 1] for x in given), 2) for i in range(3)]
    assert torch.equal(torch.cat(each), together)


@compiled
def test_elsewhere_it_is_torchs():
    q, k, v = case(1, 2, 10, 300, 8)
    assert kernels.attend_applies(q, k, v, 2)
    assert not kernels.attend_applies(q.double(), k, v, 2)
    assert not kernels.attend_applies(q.clone().requires_grad_(), k, v, 2)
    assert not kernels.attend_applies(q, k.mT.contiguous().mT, v, 2)
    assert not kernels.attend_applies(*case(1, 2, 10, 300, 12), 2)
    assert not kernels.attend_applies(*case(1, 2, 10, 300, 40), 2)
    assert not kernels.attend_applies(*case(1, 2, 10, 30, 80), 2)


@compiled
def test_the_layer_gives_the_same_with_gradients_and_without():
    torch.manual_seed(0)
    layer = accelerate_cpu(Attention(16, 2, 8, 12, bias=True))
    tokens, context = noise(2, 9, 16), noise(2, 5, 12)
    with torch.no_grad():
        without = layer(tokens, context)
        padded = torch.cat([context, noise(2, 3, 12, seed=1)], dim=1)
        bias = torch.tensor([0.0] * 5 + [-torch.inf] * 3).view(1, 1, 1, -1)
        masked = layer(tokens, padded, bias)
    for other in (layer(tokens, context), masked):
        torch.testing.assert_close(without, other, rtol=1e-5, atol=1e-6)

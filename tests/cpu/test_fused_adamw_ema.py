"""AdamW and the average at once, against torch's AdamW and the average one after the other."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from ddpm_unet.cpu import FusedAdamWEMA, kernels
from ddpm_unet.training.state import EMA

SIZES = [(3,), (40, 7), (2, 3, 5, 5), (70_001,)]

compiled = pytest.mark.skipif(kernels.functions("adamw") is None, reason="no compiler here")


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator)) for size in SIZES]


def adamw(weights, **settings):
    """Two groups, which differ in all settings."""
    return AdamW(
        [
            {"params": weights[:2], "lr": 1e-2, "weight_decay": 0.1},
            {"params": weights[2:], "lr": 3e-3, "betas": (0.5, 0.99), "eps": 1e-3},
        ],
        **settings,
    )


def gradients(weights, step):
    for number, weight in enumerate(weights):
        generator = torch.Generator().manual_seed(100 * step + number)
        weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)


def unwanted():
    raise AssertionError("torch's step was taken")


def error(result, expected):
    return ((result - expected).norm() / expected.norm()).item()


@compiled
def test_like_torch_in_float64():
    ours, exact = parameters(), [nn.Parameter(p.double()) for p in parameters()]
    optimizer, reference = adamw(ours, fused=True), adamw(exact)
    ema, average = EMA(ours, 0.9), EMA(exact, 0.9)
    update = FusedAdamWEMA(optimizer, ema)
    for step in range(12):
        for weights in (ours, exact):
            gradients(weights, step)
        update(step, unwanted if step else optimizer.step)
        reference.step()
        average.update(step)
    pairs = [*zip(ours, exact, strict=True), *zip(ema.averages, average.averages, strict=True)]
    for state in ("step", "exp_avg", "exp_avg_sq"):
        for ours_, exact_ in zip(ours, exact, strict=True):
            pairs.append((optimizer.state[ours_][state], reference.state[exact_][state]))
    for result, expected in pairs:
        assert error(result.detach(), expected.detach()) < 1e-6


@compiled
def test_the_number_of_threads_changes_nothing(threads):
    found = []
    for count in (1, 2):
        threads(count)
        weights = parameters()
        optimizer, ema = adamw(weights, fused=True), EMA(weights, 0.9)
        update = FusedAdamWEMA(optimizer, ema)
        for step in range(3):
            gradients(weights, step)
            update(step, optimizer.step)
        found.append([*weights, *ema.averages])
    assert all(map(torch.equal, *found))


def started(weights, **settings):
    optimizer, ema = adamw(weights, **settings), EMA(weights, 0.9)
    gradients(weights, 0)
    optimizer.step()
    return optimizer, ema


def test_a_step_that_is_left_out_averages_the_same_weights():
    weights = parameters()
    optimizer, ema = started(weights, fused=True)
    optimizer.found_inf = torch.tensor(1.0)
    before = copy.deepcopy((weights, optimizer.state_dict()["state"]))
    expected = EMA(weights, 0.9)
    expected.averages = [average.clone() for average in ema.averages]
    FusedAdamWEMA(optimizer, ema)(5, optimizer.step)
    expected.update(5)
    assert all(map(torch.equal, ema.averages, expected.averages))
    assert all(map(torch.equal, weights, before[0]))
    for number, state in before[1].items():
        assert all(
            map(torch.equal, optimizer.state_dict()["state"][number].values(), state.values())
        )


def without_gradient(weights):
    weights[1].grad = None


def in_another_layout(weights):
    weights[2].data = weights[2].data.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        (without_gradient, {"fused": True}),
        (in_another_layout, {"fused": True}),
        (lambda weights: None, {"amsgrad": True}),
        (lambda weights: None, {"maximize": True}),
        (lambda weights: None, None),
    ],
)
def test_where_it_stands_back(change, settings):
    """Also from AdamW of another kind, and from another optimiser (None)."""
    ours, theirs = parameters(), parameters()
    sides = []
    for weights in (ours, theirs):
        optimizer, ema = started(weights, **(settings or {}))
        optimizer = optimizer if settings else SGD(weights, lr=0.1)
        change(weights)
        sides.append((optimizer, ema))
    FusedAdamWEMA(*sides[0])(3, sides[0][0].step)
    sides[1][0].step()
    sides[1][1].update(3)
    for result, expected in zip(ours, theirs, strict=True):
        assert torch.equal(result, expected)
    assert all(map(torch.equal, sides[0][1].averages, sides[1][1].averages))

import math

import pytest
import torch
from torch import nn

from ddpm_unet.config import TrainConfig
from ddpm_unet.cpu import FusedAdamWEMA
from ddpm_unet.training.state import EMA, TrainingState, build_optimizer, learning_rate_factor


def test_the_average_follows_its_recurrence_in_float64():
    parameter = nn.Parameter(torch.tensor([0.0, 1.0]))
    ema = EMA([parameter], decay=0.5)
    expected = parameter.detach().double()
    for step in range(30):
        parameter.data = torch.randn(2)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.detach().double()
        ema.update(step)
    torch.testing.assert_close(ema.averages[0].double(), expected, rtol=1e-6, atol=1e-6)


def test_learning_rate_at_its_corners():
    config = TrainConfig(steps=110, warmup_steps=10)
    assert learning_rate_factor(0, config) == pytest.approx(0.1)
    assert learning_rate_factor(9, config) == 1.0
    assert learning_rate_factor(10, config) == 1.0
    assert learning_rate_factor(60, config) == pytest.approx(0.5)
    assert learning_rate_factor(85, config) == pytest.approx(0.5 * (1 + math.cos(0.75 * math.pi)))
    assert learning_rate_factor(110, config) == pytest.approx(0.0)


def test_constant_after_warm_up():
    config = TrainConfig(steps=110, warmup_steps=10, lr_schedule="constant")
    assert {learning_rate_factor(s, config) for s in range(10, 110)} == {1.0}
    config = TrainConfig(steps=110, warmup_steps=10, lr_schedule="linear")
    assert [learning_rate_factor(s, config) for s in (9, 10, 35, 110, 120)] == [1, 1, 0.75, 0, 0]


def test_rmsprop_is_hintons_with_momentum_and_weight_decay():
    x = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.double))
    config = TrainConfig(optimizer="rmsprop", lr=0.01, momentum=0.8, weight_decay=0.1)
    optimizer = build_optimizer([{"params": [x]}], config)
    expected, square, velocity = x.detach().clone(), 0.0, 0.0
    for _ in range(3):
        optimizer.zero_grad()
        x.pow(3).sum().backward()
        optimizer.step()
        gradient = 3 * expected**2 + 0.1 * expected
        square = 0.99 * square + 0.01 * gradient**2
        velocity = 0.8 * velocity + gradient / (square**0.5 + 1e-8)
        expected = expected - 0.01 * velocity
    torch.testing.assert_close(x.detach(), expected)


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_a_gradient_that_is_not_finite_leaves_out_the_step(name):
    network = nn.Linear(1, 2, bias=False)
    x = network.weight
    optimizer = build_optimizer([{"params": [x]}], TrainConfig(optimizer=name, lr=0.1))
    state = TrainingState(network, optimizer, 0.9, (), torch.device("cpu"))
    state.fused = FusedAdamWEMA(optimizer, state.ema)
    for gradient, bad in ((1.0, False), (math.nan, True), (1.0, False)):
        before = x.detach().clone()
        x.grad = torch.full_like(x, gradient)
        state.update(optimizer.step, torch.tensor(bad), scaled=False)
        assert torch.equal(x, before) == bad
    assert int(state.skipped) == 1
    assert all(value.isfinite().all() for value in optimizer.state[x].values())


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_state_moves_to_a_new_optimizer_exactly(name):
    torch.manual_seed(0)
    config = TrainConfig(optimizer=name, lr=0.1)

    def fresh():
        torch.manual_seed(1)
        model = nn.Linear(3, 2)
        return model, build_optimizer([{"params": list(model.parameters())}], config)

    def step(model, optimizer, x):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    xs = torch.randn(6, 4, 3)
    whole_model, whole_optimizer = fresh()
    for x in xs:
        step(whole_model, whole_optimizer, x)

    first_model, first_optimizer = fresh()
    for x in xs[:3]:
        step(first_model, first_optimizer, x)

    def state(model, optimizer):
        return TrainingState(model, optimizer, 0.9, (), torch.device("cpu"))

    first = state(first_model, first_optimizer)
    second_model, second_optimizer = fresh()
    tensors = ((g, n, t) for g, named in first.tensors(True).items() for n, t in named.items())
    state(second_model, second_optimizer).restore(tensors, first.numbers())
    for x in xs[3:]:
        step(second_model, second_optimizer, x)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole_model.parameters(), second_model.parameters(), strict=True)
    )

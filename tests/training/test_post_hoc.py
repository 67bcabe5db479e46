"""Averages made afterwards: their algebra, and against averages that were tracked directly."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch.nn import Parameter

from ddpm_unet.errors import UserError
from ddpm_unet.training.post_hoc_ema import BUFFERS, Snapshots, exponent, log_inner_product, solve
from ddpm_unet.training.state import PowerEMA

KEPT = (0.05, 0.1)


def profile(tau, t, g):
    return (g + 1) * tau**g / t ** (g + 1) * (tau <= t)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_exponent_gives_the_relative_standard_deviation(length):
    g = exponent(length)
    moments = [quad(lambda x, k=k: x**k * profile(x, 1, g), 0, 1)[0] for k in range(3)]
    assert moments[0] == pytest.approx(1)
    assert math.sqrt(moments[2] - moments[1] ** 2) == pytest.approx(length, rel=1e-5)


def test_exponents_of_the_paper():
    """Karras 2024, section 3.1: gamma 16.97 and 6.94 for 5 and 10 percent."""
    assert exponent(0.05) == pytest.approx(16.97, abs=5e-3)
    assert exponent(0.10) == pytest.approx(6.94, abs=5e-3)


@pytest.mark.parametrize("second", [(300, 6.94), (900, 16.97), (1000, 1.5)])
def test_inner_products_are_integrals(second):
    first = (700, 16.97)
    expected, _ = quad(
        lambda x: profile(x, *first) * profile(x, *second), 0, min(first[0], second[0]),
        epsabs=0, epsrel=1e-9, limit=200,
    )  # fmt: skip
    found = log_inner_product(np.array([first[0]]), np.array([first[1]]), *second)
    assert np.exp(found[0]) == pytest.approx(expected, rel=1e-6)


def test_the_factors_are_those_of_least_squares():
    """On a fine grid of times, where profiles are columns of numbers."""
    kept = [(step, length) for step in range(100, 1001, 100) for length in KEPT]
    factors, distance = solve(kept, 1000, 0.07)
    tau = (np.arange(200_000) + 0.5) / 200
    columns = np.stack([profile(tau, t, exponent(s)) for t, s in kept], axis=1)
    wanted = profile(tau, 1000, exponent(0.07))
    left = np.linalg.norm(columns @ factors - wanted) / np.linalg.norm(wanted)
    assert left == pytest.approx(distance, rel=1e-3)
    best = np.linalg.lstsq(columns, wanted, rcond=None)[0]
    least = np.linalg.norm(columns @ best - wanted) / np.linalg.norm(wanted)
    assert least <= left < 1.01 * least
    assert factors.sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("length", KEPT)
def test_what_was_kept_is_itself(length):
    kept = [(step, each) for step in range(100, 1001, 100) for each in KEPT]
    factors, distance = solve(kept, 700, length)
    assert factors[kept.index((700, length))] == pytest.approx(1, abs=1e-6)
    assert distance < 1e-5


def test_the_recurrence_has_the_profile_of_a_power():
    """The weight of a step is the profile's integral over it."""
    parameter = Parameter(torch.zeros(50, dtype=torch.float64))
    average = PowerEMA([parameter], 0.1)
    for step in range(50):
        parameter.data = torch.eye(50, dtype=torch.float64)[step]
        average.update(step)
    i, power = np.arange(51), exponent(0.1) + 1
    expected = np.diff((i / 50) ** power)
    np.testing.assert_allclose(average.averages[0].numpy(), expected, rtol=1e-9, atol=1e-15)


def path(steps):
    """Weights of a training: some drift, some settle, some shake; `float64 [steps, 40]`."""
    generator = torch.Generator().manual_seed(0)
    t = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    rates = torch.rand(40, generator=generator, dtype=torch.float64) * 9 + 1
    shake = 0.1 * torch.randn(steps, 40, generator=generator, dtype=torch.float64)
    return 3 * (1 - torch.exp(-rates * t)) + torch.sin(rates * t) + shake


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """Snapshots of a synthetic training, and averages of other lengths along it, by step."""
    steps, every = 2000, 100
    parameter = Parameter(torch.zeros(40, dtype=torch.float64))
    kept = {f"{length:g}": PowerEMA([parameter], length) for length in KEPT}
    others = {length: PowerEMA([parameter], length) for length in (0.03, 0.07, 0.15, 0.2)}
    snapshots = Snapshots(tmp_path_factory.mktemp("averages"))
    truth = {}
    for step, weights in enumerate(path(steps)):
        parameter.data = weights
        for average in (*kept.values(), *others.values()):
            average.update(step)
        if (step + 1) % every == 0:
            groups = {name: {"w": average.averages[0].clone()} for name, average in kept.items()}
            groups[BUFFERS] = {"count": torch.tensor(step + 1)}
            snapshots.write(step + 1, groups)
            truth[step + 1] = {s: a.averages[0].clone() for s, a in others.items()}
    return snapshots, truth


@pytest.mark.parametrize(
    ("length", "bound"), [(0.03, 2e-2), (0.07, 1e-3), (0.15, 1e-3), (0.2, 4e-3)]
)
@pytest.mark.parametrize("step", [1000, 2000])
def test_averages_made_afterwards_are_those_that_were_tracked(tracked, length, bound, step):
    snapshots, truth = tracked
    found, distance = snapshots.reconstruct(length, step)
    expected = truth[step][length]
    error = (found["w"] - expected).norm() / expected.norm()
    assert error < bound * (2000 / step)
    assert found["count"] == step
    last = path(2000)[step - 1]
    assert (last - expected).norm() / expected.norm() > 10 * error
    assert distance < 0.1


def test_half_precision_is_enough(tracked):
    snapshots, _ = tracked
    kept = [(step, length) for step in snapshots.steps() for length in KEPT]
    for length in (0.03, 0.07, 0.15, 0.25):
        assert np.abs(solve(kept, 2000, length)[0]).sum() < 20


def test_a_damaged_snapshot_is_named(tmp_path):
    snapshots = Snapshots(tmp_path)
    snapshots.write(10, {"0.05": {"w": torch.ones(3)}})
    file = tmp_path / "00000010.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match=r"00000010.safetensors: is damaged"):
        snapshots.reconstruct(0.07, 10)

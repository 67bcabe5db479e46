import numpy as np
import pytest
import torch

from ddpm_unet import randomness

N = 100_000


def test_bits_are_distinct_and_keyed():
    bits = randomness.bits(0, "noise", range(N))
    assert bits.dtype == np.uint64
    assert len(np.unique(bits)) == N
    for seed, purpose in ((1, "noise"), (0, "timestep")):
        assert not np.isin(randomness.bits(seed, purpose, range(1000)), bits).any()


def test_bits_are_fair_and_those_of_neighbours_unrelated():
    bits = np.unpackbits(randomness.bits(0, "noise", range(N)).view(np.uint8)).reshape(N, 64)
    tolerance = 5 / np.sqrt(N)
    signs = bits * 2.0 - 1
    assert np.abs(signs.mean(0)).max() < tolerance
    assert np.abs((signs[1:] * signs[:-1]).mean(0)).max() < tolerance
    off_diagonal = signs.T @ signs / N - np.eye(64)
    assert np.abs(off_diagonal).max() < 1.2 * tolerance


def test_uniform_moments():
    u = randomness.uniform(5, "crop", range(N))
    assert u.min() >= 0
    assert u.max() < 1
    for power in (1, 2, 3, 4):
        spread = np.sqrt((1 / (2 * power + 1) - 1 / (power + 1) ** 2) / N)
        assert abs(np.mean(u**power) - 1 / (power + 1)) < 5 * spread
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 5 / np.sqrt(N)


def test_integers_are_uniform_below_their_bounds():
    counts = np.bincount(randomness.integers(0, "timestep", range(N), 7), minlength=7)
    assert len(counts) == 7
    assert np.abs(counts - N / 7).max() < 5 * np.sqrt(N / 7)
    high = np.arange(1, 1001)
    drawn = randomness.integers(0, "crop", range(1000), high)
    assert drawn.dtype == np.int64
    assert (drawn >= 0).all()
    assert (drawn < high).all()


def test_torch_seeds_never_repeat_in_a_stream():
    assert len(set(randomness.torch_seeds(0, "noise", range(N)))) == N
    wrapped = range(2**32 - 1000, 2**32 + 1000)
    assert len(set(randomness.torch_seeds(0, "noise", wrapped))) == 2000
    assert max(randomness.torch_seeds(0, "noise", range(N))) < 2**32
    other = randomness.torch_seeds(1, "noise", range(1000))
    assert other != randomness.torch_seeds(0, "noise", range(1000))
    assert other != randomness.torch_seeds(1, "sample", range(1000))


def test_draws_are_the_same_however_the_positions_are_split():
    whole = randomness.normal(0, "noise", range(20), (3, 5))
    parts = [
        randomness.normal(0, "noise", part, (3, 5)) for part in (range(13), [13], range(14, 20))
    ]
    assert torch.equal(torch.cat(parts), whole)
    shuffled = np.random.default_rng(0).permutation(20)
    assert torch.equal(randomness.normal(0, "noise", shuffled, (3, 5)), whole[shuffled])
    bits = randomness.bits(0, "noise", range(20))
    assert np.array_equal(randomness.bits(0, "noise", shuffled), bits[shuffled])


def test_normal_moments_within_and_across_positions():
    noise = randomness.normal(0, "noise", range(2000), (64,))
    assert noise.dtype == torch.float32
    assert noise.mean().abs() < 5 / np.sqrt(noise.numel())
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / noise.numel())
    assert noise.mean(0).abs().max() < 5 / np.sqrt(2000)
    neighbours = (noise[1:] * noise[:-1]).mean()
    assert neighbours.abs() < 5 / np.sqrt(noise.numel())


def test_generators_give_the_rows_of_normal():
    noise = randomness.normal(4, "sample", [8, 9], (32,))
    for row, generator in zip(noise, randomness.generators(4, "sample", [8, 9]), strict=True):
        assert torch.equal(torch.randn(32, generator=generator), row)


def test_seeded_is_a_function_of_position_and_restores():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with randomness.seeded(1, "augment", 5):
        inside = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(10)
    with randomness.seeded(1, "augment", 5):
        assert torch.equal(torch.rand(3), inside)
    with randomness.seeded(1, "augment", 6):
        assert not torch.equal(torch.rand(3), inside)
    before = torch.get_rng_state()
    with pytest.raises(KeyError), randomness.seeded(1, "augment", 5):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_values_stay_the_same_between_versions():
    """A run resumed with a newer version of the package goes on with the same numbers."""
    assert randomness.bits(0, "noise", [0, 1]).tolist() == [
        12771593270401014139,
        4012764957083758394,
    ]
    assert randomness.torch_seeds(0, "noise", [0, 1]) == [1635862828, 3681684865]

"""Counter-based noise: Random123's test vectors, and the moments of a normal distribution."""

import pytest
import torch
from scipy.stats import kstest

from ddpm_unet import randomness
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.sampling import CounterNoise, sample

ONES = 0xFFFFFFFF
VECTORS = [  # kat_vectors of Random123, philox 4x32 10
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([ONES] * 4, (ONES, ONES), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "known"), VECTORS)
def test_philox_is_that_of_random123(counter, key, known):
    found = randomness.philox([torch.tensor([word]) for word in counter], key)
    assert [int(word) for word in found] == known


def test_noise_is_normal_and_a_function_of_seed_image_and_step():
    noise = randomness.counter_normal(3, "x", range(20), range(4), (3, 5, 7))
    assert (noise.shape, noise.dtype) == ((4, 20, 3, 5, 7), torch.float32)
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    part = randomness.counter_normal(3, "x", [7, 2**33], [2], (3, 5, 7))
    assert torch.equal(part[0, 0], noise[2, 7])
    assert not torch.equal(part[0, 1], part[0, 0])
    rows = torch.cat([noise.flatten(0, 1).flatten(1), part[0].flatten(1)[1:]])
    assert torch.corrcoef(rows).triu(1).abs().max() < 0.55
    for other in ((4, "x"), (3, "y")):
        assert not torch.equal(randomness.counter_normal(*other, [7], [2], (3, 5, 7)), part[:, :1])


def test_images_are_the_same_in_any_batch_and_chunk(monkeypatch):
    def draw(indices):
        return sample(
            lambda x, t: torch.tanh(x), "ddpm", (1, 4, 4), diffusion=GaussianDiffusion(), seed=0,
            indices=indices, steps=12,
        )  # fmt: skip

    monkeypatch.setattr("ddpm_unet.diffusion.sampling.Noise", CounterNoise)
    together = draw(range(4))
    monkeypatch.setattr(CounterNoise, "AT_ONCE", 1)
    torch.testing.assert_close(draw([2, 0]), together[[2, 0]])

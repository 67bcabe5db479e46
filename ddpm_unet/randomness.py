"""Random numbers as functions of (seed, purpose, position), with no state to save or lose.

A position is the number of an image in the training stream, or of an image to be sampled.
Two draws agree whenever these three agree: on a resumed run, on any number of processes and
however a batch is split.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

Positions = Sequence[int] | np.ndarray


def bits(seed: int, purpose: str, positions: Positions) -> np.ndarray:
    """64 random bits per position, `uint64 [N]`: SplitMix64 (Steele 2014) of a keyed counter."""
    z = np.asarray(positions, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z += _key(f"{seed}/{purpose}", "<u8")
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def uniform(seed: int, purpose: str, positions: Positions) -> np.ndarray:
    """Uniform numbers in [0, 1), `float64 [N]`."""
    return (bits(seed, purpose, positions) >> np.uint64(11)) * 2.0**-53


def integers(seed: int, purpose: str, positions: Positions, high: int | np.ndarray) -> np.ndarray:
    """Uniform integers in [0, high), `int64 [N]`; `high` is one number or one per position."""
    return (uniform(seed, purpose, positions) * high).astype(np.int64)


def on_device(values: np.ndarray, device: torch.device | str) -> Tensor:
    """The numbers as a tensor on a device, without waiting for an accelerator."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def torch_seeds(seed: int, purpose: str, positions: Positions) -> list[int]:
    """A seed per position for torch's generators, of which the CPU one reads 32 bits.

    Distinct for any 2^32 neighbouring positions: a bijection of (position + key) mod 2^32
    (the finaliser of MurmurHash3), where hashing alone would repeat one in 2^16 draws.
    """
    z = np.asarray(positions, dtype=np.uint64).astype(np.uint32)
    z = z + _key(f"{seed}/{purpose}", "<u4")
    z = (z ^ (z >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    z = (z ^ (z >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return [int(s) for s in z ^ (z >> np.uint32(16))]


@lru_cache(maxsize=64)
def _key(said: str, dtype: str) -> np.ndarray:
    """A digest of what is said, of one number."""
    size = np.dtype(dtype).itemsize
    return np.frombuffer(hashlib.blake2b(said.encode(), digest_size=size).digest(), dtype)


def generators(
    seed: int, purpose: str, positions: Positions, device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """One torch generator per position, on `device`."""
    return [torch.Generator(device).manual_seed(s) for s in torch_seeds(seed, purpose, positions)]


def normal(
    seed: int,
    purpose: str,
    positions: Positions,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise, `float32 [N, *shape]`, the n-th a function of the n-th position."""
    out = torch.empty(len(positions), *shape, device=device)
    generator = torch.Generator(device)
    for row, row_seed in zip(out, torch_seeds(seed, purpose, positions), strict=True):
        row.normal_(generator=generator.manual_seed(row_seed))
    return out


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-10 (Salmon 2011, "Parallel random numbers: as easy as 1, 2, 3").

    Args:
        counter: Four words below 2^32, `int64`, of shapes that broadcast.
        key: Two words below 2^32.

    Returns:
        Four words of 32 random bits each, `int64`.
    """
    a, b, c, d = counter
    low = 0xFFFFFFFF
    for r in range(10):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57  # modulo 2^64, as int64 wraps
        keys = [(k + r * weyl) & low for k, weyl in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)]
        a, b, c, d = (
            ((second >> 32) & low) ^ b ^ keys[0],
            second & low,
            ((first >> 32) & low) ^ d ^ keys[1],
            first & low,
        )
    return [a, b, c, d]


def counter_normal(
    seed: int,
    purpose: str,
    positions: Positions,
    steps: Sequence[int],
    shape: Sequence[int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise of (seed, position, step), the same on a CPU and on every accelerator.

    Philox, and Box and Muller's method in float64, so that devices, whose logarithms and cosines
    differ in the last bit, round to one float32 but for one number in 10^8. A draw is some 150
    operations, whatever the number of images and steps.

    Returns:
        `float32 [len(steps), N, *shape]`.
    """
    count = math.prod(shape)
    index = on_device(np.asarray(positions, dtype=np.int64), device)[None, :, None]
    step = on_device(np.asarray(steps, dtype=np.int64), device)[:, None, None]
    block = torch.arange(-(-count // 4), device=device)
    key = int(_key(f"{seed}/{purpose}/philox", "<u8")[0])
    words = philox((block, step, index & 0xFFFFFFFF, index >> 32), (key & 0xFFFFFFFF, key >> 32))
    u, v, w, z = (word.double() * 2.0**-32 + 2.0**-33 for word in words)
    parts = []
    for radius, turn in ((u, v), (w, z)):
        length, angle = (-2 * radius.log()).sqrt(), 2 * math.pi * turn
        parts += [length * angle.cos(), length * angle.sin()]
    flat = torch.stack(parts, dim=-1).flatten(-2)[..., :count]
    return flat.float().reshape(len(steps), len(positions), *shape)


@contextmanager
def seeded(seed: int, purpose: str, position: int) -> Iterator[None]:
    """Within, torch's global CPU generator is a function of the position (for torchvision's
    transforms, which draw from it); afterwards it is as it was before.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(torch_seeds(seed, purpose, [position])[0])
    try:
        yield
    finally:
        torch.set_rng_state(state)

"""From noise to images: the reverse loop over a network and a sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_unet import randomness
from ddpm_unet.diffusion.process import Diffusion, Network, batch_time
from ddpm_unet.diffusion.samplers import make_sampler
from ddpm_unet.errors import UserError

Graph = Callable[[Callable[..., Any]], Callable[..., Any]]
"""From a function of tensors to a faster one of the same values."""


class StepInfo(NamedTuple):
    """What a callback sees of one step.

    Args:
        step, steps: Number of the step from 0, and of all (for a second-order sampler evaluations).
        t: Time that the network saw.
        x: The state after the step, `[B, C, ...]`.
        x0: The image predicted in the step, `[B, C, ...]`.
    """

    step: int
    steps: int
    t: float
    x: Tensor
    x0: Tensor


class Trajectory:
    """A callback that keeps, in `images`, the predicted `[B, C, ...]` of `count` steps.

    They are evenly spaced, the last step's among them.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.images: list[Tensor] = []

    def __call__(self, info: StepInfo) -> None:
        """Keep the images of a step whose turn it is."""
        last = info.steps - 1
        from_last = (round(i * last / max(self.count - 1, 1)) for i in range(self.count))
        if last - info.step in from_last:
            self.images.append(info.x0)


class Noise:
    """Noise of each image from a generator of its own, which lives across the loop.

    On a CPU this is several times faster than `CounterNoise`.
    """

    def __init__(
        self,
        seed: int,
        indices: randomness.Positions,
        shape: Sequence[int],
        device: torch.device | str,
    ) -> None:
        self.generators = randomness.generators(seed, "sample", indices, device)
        self._job = seed, "sample", indices, tuple(shape), device

    def draw(self, std: float) -> Tensor:
        """The next noise, `float32 [B, *shape]`."""
        *_, indices, shape, device = self._job
        noise = torch.empty(len(indices), *shape, device=device)
        for row, generator in zip(noise, self.generators, strict=True):
            row.normal_(0, std, generator=generator)
        return noise


class CounterNoise(Noise):
    """Noise as a function of (seed, image, draw), the same on every device.

    Some draws are made at once, so that an accelerator is started once for all of them.
    """

    AT_ONCE = 2**22  # numbers
    _ahead: Sequence[Tensor] = ()
    _drawn = 0

    def draw(self, std: float) -> Tensor:
        """The next noise, `float32 [B, *shape]`."""
        if not self._ahead:
            seed, purpose, indices, shape, device = self._job
            chunk = max(1, min(32, self.AT_ONCE // (len(indices) * math.prod(shape))))
            steps = range(self._drawn, self._drawn + chunk)
            noise = randomness.counter_normal(seed, purpose, indices, steps, shape, device)
            self._ahead, self._drawn = noise.unbind(), steps.stop
        first, *self._ahead = self._ahead
        return first * std


def sample(
    network: Network,
    sampler: Any,
    shape: Sequence[int],
    *,
    seed: int,
    indices: randomness.Positions,
    steps: int,
    diffusion: Diffusion | None = None,
    device: torch.device | str = "cpu",
    eta: float | None = None,
    self_conditioning: bool = False,
    start: Tensor | None = None,
    strength: float = 1.0,
    progress: bool = False,
    callback: Callable[[StepInfo], None] | None = None,
    graph: Graph | None = None,
) -> Tensor:
    """Draw images. Image i is a function of (seed, i), whatever batch it is drawn in.

    Args:
        network: `(x [B, *shape], t [B]) -> prediction`, of the diffusion's prediction type.
            Conditioning is the caller's: bind it to the network.
        sampler: A `Sampler`; with `diffusion` also a name, a function or an object with diffusers'
            `step` (see `make_sampler`).
        shape: Shape of one image, such as (C, H, W).
        seed: Seed of the job.
        indices: Numbers of the images to draw, B of them.
        steps: Denoising steps, 1 to T.
        diffusion: The forward process that the network was trained on.
        device: Where to compute.
        eta: Noise of DDIM: 0 for none, 1 for that of DDPM; None for what the sampler usually has.
        self_conditioning: Give the network, as `estimate`, the image predicted in the step
            before, clipped to [-1, 1] if the sampler clips, and zeros at first (Chen 2022).
        start: Images `[B or 1, *shape]` to noise and go on from, instead of noise alone (Meng
            2022, arXiv:2108.01073, algorithm 1).
        strength: Share of the steps that are taken with `start`, above 0, up to 1.
        progress: Show a progress bar.
        callback: Called after every step.
        graph: Makes one graph of an evaluation, for instance `torch.compile`: conditioning,
            guidance, network and predicted image, and with DDPM and DDIM the step.

    Returns:
        Images, `float32 [B, *shape]`, within [-1, 1] if the sampler clips.

    Raises:
        UserError: A number of steps outside 1 .. T, a strength outside (0, 1].

    Example:
        >>> import torch
        >>> from ddpm_unet.diffusion.process import GaussianDiffusion
        >>> from ddpm_unet.diffusion.sampling import sample
        >>> diffusion = GaussianDiffusion(num_timesteps=50)
        >>> sample(lambda x, t: torch.zeros_like(x), "ddim", (3, 8, 8), diffusion=diffusion,
        ...        seed=0, indices=range(2), steps=5).shape
        torch.Size([2, 3, 8, 8])
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength {strength:g}: give a share of the steps, above 0 and up to 1")
    sampler = make_sampler(sampler, diffusion)
    with torch.inference_mode():
        on_cpu = torch.device(device).type == "cpu"  # where it is several times slower
        noise = (Noise if on_cpu else CounterNoise)(seed, indices, shape, device)
        plan = sampler.plan(steps, eta, noise.generators)
        total, first = len(plan.times), 0
        if start is None:
            x = noise.draw(plan.initial_std)
        else:
            first = total - max(1, round(strength * total))
            first -= first % plan.order
            x = plan.begin(first, start.to(device, torch.float32), noise.draw(1.0))
        given = {"estimate": torch.zeros_like(x)} if self_conditioning else {}
        bar = tqdm(total=total - first, desc="Sampling", disable=not progress)

        evaluation = graph(plan.evaluation) if graph else plan.evaluation

        def ask(x: Tensor, time: float, *inputs: Tensor) -> Sequence[Tensor]:
            found = evaluation(network, x, batch_time(x, time), *inputs, **given)
            # A CUDA graph gives its results in tensors that its next run overwrites.
            return [part.clone() for part in found] if graph and x.is_cuda else found

        def done(step: int, count: int, time: float, x: Tensor, x0: Tensor) -> None:
            if self_conditioning:
                given["estimate"] = x0.clamp(-1, 1) if sampler.clip else x0
            if callback is not None:
                callback(StepInfo(step, count, time, x, x0))
            bar.total = count - first
            bar.update()

        with bar:
            x = plan.solve(x, first, ask, done, noise.draw)
    return x.clone()  # outside inference mode: a tensor that autograd accepts

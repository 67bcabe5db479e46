"""Editing with a denoiser that was trained to do no such thing: holes, inversion, interpolation.

Going on from a noised image (img2img) is `sample` with `start`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_unet import randomness
from ddpm_unet.diffusion.process import (
    GaussianDiffusion,
    Network,
    batch_time,
    coefficients,
    mean_channels,
)
from ddpm_unet.diffusion.samplers import LinearSampler, Sampler
from ddpm_unet.diffusion.sampling import CounterNoise, Noise, StepInfo
from ddpm_unet.errors import UserError


def inpaint(
    network: Network,
    sampler: Sampler,
    known: Tensor,
    hole: Tensor,
    *,
    seed: int,
    indices: randomness.Positions,
    steps: int,
    jump: int = 10,
    resamplings: int = 5,
    device: torch.device | str = "cpu",
    progress: bool = False,
    callback: Callable[[StepInfo], None] | None = None,
) -> Tensor:
    """Fill a hole so that it fits what surrounds it: RePaint.

    Lugmayr 2022 (arXiv:2201.09865), algorithm 1 and appendix B: after each step all but the hole
    is replaced by the known image, noised alike; every `jump` steps the state is noised back to
    where they began, and they are taken again, `resamplings` times in all.

    Args:
        network, seed, device, progress: As for `sample`.
        sampler: Of DDPM or DDIM (see `make_sampler`).
        known: The image `[C, ...]` in [-1, 1]; what it holds in the hole does not matter.
        hole: True where to paint, broadcast to the shape of `known`.
        indices: Numbers of the images to draw, B of them: as many answers to one question.
        steps: Denoising steps, 1 to T.
        jump, resamplings: At least 1.
        callback: Called when a step has been taken for the last time.

    Returns:
        Images `float32 [B, C, ...]`, equal to `known` outside the hole.

    Raises:
        UserError: Another sampler; no steps, jump or resamplings.
    """
    if not isinstance(sampler, LinearSampler):
        raise UserError(f"sampler {sampler.name}: cannot paint holes; take ddpm")
    if min(steps, jump, resamplings) < 1:
        raise UserError(f"steps {steps}, jump {jump}, resamplings {resamplings}: give at least 1")
    known, hole = known.to(device, torch.float32), hole.to(device, torch.bool)
    with torch.inference_mode():
        on_cpu = known.device.type == "cpu"
        noise = (Noise if on_cpu else CounterNoise)(seed, indices, known.shape, device)
        plan = sampler.plan(steps, eta=1.0)
        times, abar = plan.times, [*plan.abar, 1.0]
        x = noise.draw(1.0)
        blocks = [range(i, min(i + jump, len(times))) for i in range(0, len(times), jump)]
        for block in tqdm(blocks, "Painting", disable=not progress):
            for again in reversed(range(resamplings)):
                for i in block:
                    prediction = network(x, batch_time(x, times[i])).float()
                    x, x0 = plan.step(i, x, prediction, noise.draw)
                    outside = abar[i + 1] ** 0.5 * known
                    outside = outside + noise.draw((1 - abar[i + 1]) ** 0.5)
                    x = torch.where(hole, x, outside)
                    if callback is not None and not again:
                        callback(StepInfo(i, len(times), times[i], x, x0))
                if again:
                    kept = abar[block.start] / abar[block.stop]
                    x = kept**0.5 * x + noise.draw((1 - kept) ** 0.5)
    return x.clone()


class Inversion:
    """The deterministic path between images and noise, there and back, of 2 to T steps.

    DDIM's step with eta = 0 (Song 2021, arXiv:2010.02502, eq. 12), without clipping. Backwards it
    is an implicit equation for the noisier state, solved by iterating it (Pan 2023,
    arXiv:2309.04907, section 3.2), so that the way back ends where it began.
    """

    def __init__(
        self,
        network: Network,
        diffusion: GaussianDiffusion,
        steps: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._network, self._device = network, device
        self._times = LinearSampler(diffusion, "ddim").timesteps(steps)[::-1]
        abar = diffusion.alphas_cumprod_float64[self._times]
        # From a clean image to noise, like all below.
        self._levels = [(1.0, 0.0), *((a**0.5, (1 - a) ** 0.5) for a in abar.tolist())]
        mix = coefficients(diffusion.prediction_type, abar)
        names = ("x0_from_x", "x0_from_prediction", "noise_from_x", "noise_from_prediction")
        self._mixtures = torch.stack([mix[n] for n in names], dim=1).tolist()

    def to_noise(self, images: Tensor, iterations: int = 5, progress: bool = False) -> Tensor:
        """The noise `[B, ...]` that `to_images` turns into images `[B, ...]`."""
        x = images.to(self._device, torch.float32)
        with torch.inference_mode():
            for i in tqdm(range(len(self._times)), "Inverting", disable=not progress):
                (a, s), (a_next, s_next) = self._levels[i], self._levels[i + 1]
                noisier = x
                for _ in range(iterations):
                    _, noise = self._split(i, noisier)
                    # The step from `noisier` must lead to x: x = a image + s noise.
                    noisier = a_next / a * (x - s * noise) + s_next * noise
                x = noisier
        return x.clone()

    def to_images(self, noise: Tensor, progress: bool = False) -> Tensor:
        """The images `[B, ...]` at the end of the path that begins with the noise `[B, ...]`."""
        x = noise.to(self._device, torch.float32)
        with torch.inference_mode():
            order = range(len(self._times) - 1, -1, -1)
            for i in tqdm(order, "Sampling", disable=not progress):
                a, s = self._levels[i]
                image, eps = self._split(i, x)
                x = a * image + s * eps
        return x.clone()

    def _split(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image and noise that the network sees in x."""
        prediction = self._network(x, batch_time(x, self._times[i])).float()
        prediction = mean_channels(prediction, x.shape[1])
        from_x, from_prediction, noise_x, noise_prediction = self._mixtures[i]
        image = from_x * x + from_prediction * prediction
        return image, noise_x * x + noise_prediction * prediction


def slerp(first: Tensor, second: Tensor, shares: Sequence[float]) -> Tensor:
    """Between two noises along the great circle, where a mixture keeps the norm of noise.

    Shoemake 1985, section 3.3. At share 0 it is the first, at 1 the second; `[len(shares), ...]`.
    """
    cosine = torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0)
    angle = torch.arccos(cosine.clamp(-1, 1))
    mixed = []
    for share in shares:
        if float(angle) < 1e-4:
            mixed.append(torch.lerp(first, second, share))
        else:
            weights = torch.sin((1 - share) * angle), torch.sin(share * angle)
            mixed.append((weights[0] * first + weights[1] * second) / torch.sin(angle))
    return torch.stack(mixed)

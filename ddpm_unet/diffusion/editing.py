"""What a denoiser was not trained to do: holes, inversion, interpolation, images of any size.

Going on from a noised image (img2img) is `sample` with `start`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
    repeat_time,
    time_of,
)
from ddpm_unet.diffusion.samplers import LinearSampler, Sampler
from ddpm_unet.diffusion.sampling import CounterNoise, Noise, StepInfo
from ddpm_unet.errors import UserError


def inpaint(
    network: Network,
    sampler: Sampler,
    shape: Sequence[int],
    *,
    known: Tensor,
    hole: Tensor,
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
        shape: Of one image, (C, ...), as of `sample`.
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
        noise = (Noise if on_cpu else CounterNoise)(seed, indices, shape, device)
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
                    image, noise = self._split(i, noisier)
                    # The step from `noisier` must lead to x = a image + s noise. What the network
                    # says of the smaller part is kept: an error of it is divided by max(a, s).
                    if a > s:
                        image = (x - s * noise) / a
                    else:
                        noise = (x - a * image) / s
                    noisier = a_next * image + s_next * noise
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
        weights = torch.sin((1 - share) * angle), torch.sin(share * angle)
        arc = (weights[0] * first + weights[1] * second) / torch.sin(angle)
        mixed.append(torch.where(angle < 1e-4, torch.lerp(first, second, share), arc))
    return torch.stack(mixed)


def tiled(
    network: Network, tile: int, overlap: int, *, periodic: bool = False, batch: int = 16
) -> Network:
    """A network for images of any size that sees square windows of one size.

    At every step the image is cut into windows which share `overlap` pixels, and predictions are
    averaged where they meet, with weights that fall towards a window's border (MultiDiffusion,
    Bar-Tal 2023, arXiv:2302.08113, eq. 5). The grid of windows moves from step to step by the
    golden ratio, so that no pixel is always at a border.

    Args:
        network: `(x [B, C, tile, tile], t [B], **cond) -> prediction`; cond that are
            images `[B, C, H, W]` are cut alike.
        tile, overlap: Side of the windows, and pixels that neighbours share, 0 to tile - 1.
        periodic: The image continues on the other side, so that it tiles the plane; otherwise it
            is mirrored at its border.
        batch: Windows at a time.

    Raises:
        UserError: An overlap that leaves no progress; an image smaller than a window.
    """
    if not 0 <= overlap < tile:
        raise UserError(f"overlap {overlap}: give 0 to {tile - 1}, windows have {tile} pixels")
    stride = tile - overlap
    ramp = (torch.arange(tile) + 0.5).minimum(tile - 0.5 - torch.arange(tile))
    line = (ramp / (overlap / 2 + 0.5)).clamp(max=1)
    weight = line[:, None] * line[None, :]

    def tiled_network(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        nonlocal weight
        weight = weight.to(x.device)  # once: a step must not wait for it
        height, width = x.shape[2:]
        if min(height, width) < tile:
            raise UserError(f"{height} x {width}: smaller than a window of {tile} pixels")
        shift = int(time_of(t) * 0.618034 * stride) % stride
        rows, columns = (_places(n, tile, stride, shift, periodic) for n in (height, width))
        padded = _surround(x, tile, periodic)
        images = {k: _surround(v, tile, periodic) for k, v in cond.items() if v.ndim == 4}
        total: Tensor | None = None
        counts = torch.zeros(padded.shape[2:], device=x.device)
        places = [(r, c) for r in rows for c in columns]
        at_once = max(1, batch // len(x))
        for first in range(0, len(places), at_once):
            some = places[first : first + at_once]
            given = {
                name: _cut(images[name], some, tile)
                if name in images
                else value.repeat(len(some), *[1] * (value.ndim - 1))
                for name, value in cond.items()
            }
            predictions = network(_cut(padded, some, tile), repeat_time(t, len(some)), **given)
            if total is None:  # of as many channels as a prediction has
                total = predictions.new_zeros(
                    len(x), predictions.shape[1], *padded.shape[2:], dtype=torch.float32
                )
            for (r, c), prediction in zip(some, predictions.float().split(len(x)), strict=True):
                total[:, :, r : r + tile, c : c + tile] += weight * prediction
                counts[r : r + tile, c : c + tile] += weight
        assert total is not None, "there is a window"
        return _folded(total, tile, periodic) / _folded(counts, tile, periodic)

    return tiled_network


def _places(size: int, tile: int, stride: int, shift: int, periodic: bool) -> list[int]:
    """Where windows begin, in an image with `tile` pixels around it."""
    if periodic:
        count = -(-size // stride)
        return [tile + (shift + i * size // count) % size for i in range(count)]
    return list(range(stride - shift, size + tile, stride))


def _cut(padded: Tensor, places: list[tuple[int, int]], tile: int) -> Tensor:
    """The windows of all images at each place in turn."""
    return torch.cat([padded[:, :, r : r + tile, c : c + tile] for r, c in places])


def _surround(x: Tensor, tile: int, periodic: bool) -> Tensor:
    """`tile` pixels more on every side, mirrored or continued."""
    mode = "circular" if periodic else "reflect"
    room = [tile if periodic else min(tile, n - 1) for n in x.shape[2:]]
    x = torch.nn.functional.pad(x, (room[1], room[1], room[0], room[0]), mode=mode)
    short = [tile - n for n in room]
    return torch.nn.functional.pad(x, (short[1], short[1], short[0], short[0]), mode="replicate")


def _folded(x: Tensor, tile: int, periodic: bool) -> Tensor:
    """The image without what surrounds it; what continues it counts where it comes from."""
    if periodic:
        for dim in (-2, -1):
            size = x.shape[dim] - 2 * tile
            inside = x.narrow(dim, tile, size).clone()
            inside.narrow(dim, 0, tile).add_(x.narrow(dim, tile + size, tile))
            inside.narrow(dim, size - tile, tile).add_(x.narrow(dim, 0, tile))
            x = inside
        return x
    return x[..., tile:-tile, tile:-tile]

"""Which samplers draw rightly from which denoisers, measured: `python
scripts/experiments/sampler_table.py` writes docs/samplers.md.

The data are Gaussians, one a channel, whose best denoiser is known in closed form. What is drawn
must have their means and deviations, ever better with more steps; a pair that does not get there
is refused by `make_sampler`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from ddpm_unet.cli import user_errors
from ddpm_unet.config import PredictionType
from ddpm_unet.diffusion.process import GaussianDiffusion, coefficients
from ddpm_unet.diffusion.samplers import LCM, SAMPLERS, make_sampler, saved_sampler
from ddpm_unet.diffusion.sampling import sample
from ddpm_unet.errors import UserError

MEANS, STDS = (0.2, -0.8, 0.0), (0.2, 0.05, 0.4)
STEPS = (10, 20, 50, 1000)
SIDE = 48
PAGE = Path(__file__).parents[2] / "docs" / "samplers.md"
_TEXT = """# Samplers

Written by `python scripts/experiments/sampler_table.py`.

What each sampler makes of the best denoiser of three Gaussians (means {means}, standard
deviations {stds}), which is known in closed form, after {steps} steps: the
largest error of a mean, in standard deviations, and the standard deviations drawn over those of
the data, of the narrowest and of the widest Gaussian. {count} numbers are drawn of each, so that
0.04 and 2 % are chance.

The schedule is the linear one; with zero terminal SNR (`rescale_betas_zero_snr`) up to beta {end},
which without it would leave the image in sight at the last timestep. Timesteps are spaced as
`--sampler` spaces them: they begin with the last one, also where diffusers' own would not.

This is of an exact denoiser. A network is not exact, and a deterministic path keeps its errors: of
the shipped histology model `dpm++`, `unipc`, `heun` and `euler` leave the same fine grain, in 20
steps or more, however the steps are spaced, wherever the last one is, and whether or not timesteps
are rounded. The predicted noise is off by 2 % (rms) at the best, so that by noise level 1 the
state has 0.03 more noise than the network is told of, which none of the later steps takes away.
Noise that is added anew at each step covers it: in the highest frequencies 8 images have a power
of 19 by `dpm++` in 20 steps, 3.4 by `dpm++sde` in 20, 1.7 by `ddpm` in 100, and real tiles 1.5.
Without clipping predicted images the grain is ten times stronger.

Guidance leads the predicted image out of its range. DDIM with clipping or thresholding, as
diffusers has it by default, then goes on from a clipped image and the noise of the unclipped one,
which led an exact denoiser of two classes to the other class (`tests/diffusion/test_samplers.py`).
Here an image whose noise is larger than noise can be goes on with the noise of the clipped image.

A narrow Gaussian is fine detail: what `ddpm` and `ddim` lose of it in few steps is why they
want many. A sampler is refused where its figures do not go to 0 and 1 (`unipc` with "sample" stays
3 to 5 % too wide for the narrowest).

| sampler | prediction | zero terminal SNR | {columns} | |
|---|---|---|{lines}|---|
"""
_TAIL = """
Also refused: `lcm` by name, as it needs a model distilled for it (the row is that of one in closed
form, which leads from any noise to the clean end of its path in one step; {lcm} steps are
refused); a folder whose scheduler_config.json has zero terminal SNR and `timestep_spacing`
"leading", which never asks the last timestep. `sample.py` without `--sampler` takes the scheduler
that the folder names, with the settings that it has there.
"""


class Drawn(NamedTuple):
    """How far what was drawn is from the data.

    Args:
        mean_error: The largest error of a mean, in standard deviations of the data.
        spreads: Standard deviations over those of the data, by channel.
    """

    mean_error: float
    spreads: tuple[float, ...]


def settings(kind: PredictionType, zero_snr: bool) -> GaussianDiffusion:
    """The forward process that is sampled."""
    return GaussianDiffusion(
        prediction_type=kind,
        rescale_betas_zero_snr=zero_snr,
        beta_end=0.008 if zero_snr else 0.02,
        clip_sample=False,
    )


def best_denoiser(config: GaussianDiffusion, distilled: bool = False) -> Callable[..., Tensor]:
    """`(x, t) -> prediction` of the Gaussians.

    Args:
        config: The forward process and the prediction type.
        distilled: Predict not the expected image but the clean end of the deterministic path.
    """
    roots = config.alphas_cumprod_float64.sqrt()
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(1, -1, 1, 1) for v in (MEANS, STDS))

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        before = math.floor(float(t[0]))
        share = float(t[0]) - before
        a = float(torch.lerp(roots[before], roots[min(before + 1, len(roots) - 1)], share))
        total = a**2 * std**2 + 1 - a**2
        gain = std / total.sqrt() if distilled else a * std**2 / total
        image = mean + gain * (x.double() - a * mean)
        noise = (x - a * image) / math.sqrt(1 - a**2)
        abar = torch.tensor(a**2, dtype=torch.float64)
        mix = coefficients(config.prediction_type, abar)
        return (mix["target_from_x0"] * image + mix["target_from_noise"] * noise).float()

    return denoiser


def draw(config: GaussianDiffusion, scheduler: Any, steps: int, distilled: bool = False) -> Drawn:
    """What a scheduler makes of the best denoiser.

    Raises:
        UserError: The scheduler refuses so many steps.
    """
    images = sample(
        best_denoiser(config, distilled),
        scheduler,
        (len(MEANS), SIDE, SIDE),
        seed=0,
        indices=[0],
        steps=steps,
    ).double()
    found, spreads = images.mean((0, 2, 3)), images.std((0, 2, 3))
    mean, std = torch.tensor(MEANS).double(), torch.tensor(STDS).double()
    return Drawn(float(((found - mean) / std).abs().max()), tuple((spreads / std).tolist()))


def distilled_scheduler(config: GaussianDiffusion) -> Any:
    """The LCM scheduler of a folder that names it."""
    return saved_sampler({**config.scheduler_config(), "_class_name": "LCMScheduler"}, config)


def rows() -> Iterator[str]:
    """The lines of the table."""
    for name in (*SAMPLERS, LCM):
        for kind in get_args(PredictionType):
            for zero_snr in (False, True):
                distilled = name == LCM
                first = f"| {name} | {kind} | {'yes' if zero_snr else 'no'} |"
                try:
                    config = settings(kind, zero_snr)
                    scheduler = (distilled_scheduler if distilled else _named(name))(config)
                except UserError as error:
                    cause = str(error).split(": ", 1)[1].split(";")[0]
                    yield f"{first}{' |' * len(STEPS)} refused: {cause} |"
                    continue
                cells = [_cell(config, scheduler, steps, distilled) for steps in STEPS]
                yield f"{first} {' | '.join(cells)} | {'distilled' if distilled else 'right'} |"


def _named(name: str) -> Callable[[GaussianDiffusion], Any]:
    return lambda config: make_sampler(name, config)


def _cell(config: GaussianDiffusion, scheduler: Any, steps: int, distilled: bool) -> str:
    try:
        found = draw(config, scheduler, steps, distilled)
    except UserError:
        return "refused"
    low, high = (found.spreads[STDS.index(choose(STDS))] for choose in (min, max))
    return f"{found.mean_error:.2f}; {low:.2f}, {high:.2f}"


def main() -> None:
    """Write the page."""
    text = _TEXT.format(
        means=", ".join(map(str, MEANS)),
        stds=", ".join(map(str, STDS)),
        steps=", ".join(map(str, STEPS)),
        count=SIDE * SIDE,
        end=settings("sample", True).beta_end,
        columns=" | ".join(f"{steps} steps" for steps in STEPS),
        lines="|".join("---" for _ in STEPS),
    )
    PAGE.write_text(text + "\n".join(rows()) + "\n" + _TAIL.format(lcm=STEPS[-1]))
    print(f"written: {PAGE}")


if __name__ == "__main__":
    with user_errors():
        main()

"""Which samplers draw rightly, measured, written into docs/samplers.md.

    python scripts/experiments/sampler_table.py
    python scripts/experiments/sampler_table.py --model samples/histology64/model

Without a model the data are Gaussians, one a channel, whose best denoiser is known in closed form.
What is drawn must have their means and deviations, ever better with more steps; a pair that does
not get there is refused by `make_sampler`.

With a model each sampler draws images, which are scored as by evaluate.py, against real ones of
its training or of --reference. What is drawn is kept under --out, so that a job that was stopped
goes on. The page's section of that model is written anew, the others stay.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from ddpm_unet.cli import ArgumentParser, user_errors, whole
from ddpm_unet.commands import evaluate
from ddpm_unet.config import PredictionType
from ddpm_unet.diffusion.process import GaussianDiffusion, coefficients
from ddpm_unet.diffusion.samplers import (
    LCM,
    SAMPLERS,
    make_sampler,
    saved_sampler,
)
from ddpm_unet.diffusion.sampling import sample
from ddpm_unet.errors import UserError

MEANS, STDS = (0.2, -0.8, 0.0), (0.2, 0.05, 0.4)
STEPS = (10, 20, 50, 1000)
SIDE = 48
OF_MODELS = [
    "ddpm:1000", "ddpm:250", "ddim:50", "ddim:20", "dpm++:20", "dpm++:10", "dpm++sde:20",
    "unipc:20", "heun:20",
]  # fmt: skip
"""The samplers that a model draws by; the first is what the others are compared with."""
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

This is of an exact denoiser; what samplers make of models that ship stands at the end of the page.
A network is not exact, and a deterministic path keeps its errors: grain by `dpm++`, `unipc`, `heun`
and `euler` is a fault of a *network that predicts noise*, not of how steps are spaced (log-SNR, as
here, Karras' with rho 7, or timesteps), of where the last one is, or of rounding. What noise such a
network misses is blown up by the noise level when the image is found from it, and no later step
takes it away; noise that is added anew at each step (`ddpm`, `dpm++sde`) covers it. In the highest
quarter of frequencies real tiles of histology have a power of 0.012 (mean square, grey levels), 16
images of an earlier shipped model, which predicted the noise on the linear schedule, 0.04 by
`dpm++` and `unipc` in 20 steps and 0.01 by `ddpm` in 100. On the cosine schedule and after the same
16,000 tiles they have 0.10 by `dpm++` from a network that predicts the noise, and 0.01 from one
that predicts the velocity, as of the model that ships.

Guidance leads the predicted image out of its range. DDIM with clipping or thresholding, as
diffusers has it by default, then goes on from a clipped image and the noise of the unclipped one,
which led an exact denoiser of two classes to the other class, and the shipped one of Fashion-MNIST
to no class at all. Here, as with diffusers' `use_clipped_model_output`, the noise is that of the
clipped image (`tests/diffusion/test_samplers.py`, `tests/inference/test_denoiser_conditioning.py`).

A narrow Gaussian is fine detail: what `ddpm` and `ddim` lose of it in few steps is why they
want many. A sampler is refused where its figures do not go to 0 and 1.

| sampler | prediction | zero terminal SNR | {columns} | |
|---|---|---|{lines}|---|
"""
_TAIL = """
Also refused: `lcm` by name, as it needs a model distilled for it (the row is that of one in closed
form, which leads from any noise to the clean end of its path in one step; {lcm} steps are
refused); a folder whose scheduler_config.json has zero terminal SNR and `timestep_spacing`
"leading", which never asks the last timestep. `sample.py` with `--steps` takes the scheduler
that the folder names, with the settings that it has there, unless `--sampler` says another; with
neither, `dpm++` in 20 steps takes the place of DDPM.
"""


_NOTE = """The model's images beside its training's. FD is of the first so many images of each, real
ones included; compare within a column. "ratio" is that of the first such column, over the first
sampler's. The other figures are of all images of a row. Seconds are of a CPU core."""


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


def page_of_gaussians() -> str:
    """The page as far as it is of denoisers in closed form."""
    text = _TEXT.format(
        means=", ".join(map(str, MEANS)),
        stds=", ".join(map(str, STDS)),
        steps=", ".join(map(str, STEPS)),
        count=SIDE * SIDE,
        end=settings("sample", True).beta_end,
        columns=" | ".join(f"{steps} steps" for steps in STEPS),
        lines="|".join("---" for _ in STEPS),
    )
    return text + "\n".join(rows()) + "\n" + _TAIL.format(lcm=STEPS[-1])


SHOWN = ("kid", "precision", "recall", "colour", "colour_spread", "contrast", "spectrum")


def score(args: Namespace, entry: str, real: Any, extractor: Any) -> dict[str, Any]:
    """What one sampler, "name:steps:images", draws, described; kept in a folder of --out."""
    from accelerate import Accelerator

    from ddpm_unet.commands.shared import at_speed
    from ddpm_unet.inference.denoiser import Denoiser

    sampler, steps, *fewer = entry.split(":")
    given = {
        "model": args.model, "sampler": sampler, "steps": steps, "guidance": args.guidance,
        "num_images": fewer[0] if fewer else args.num_images, "batch_size": args.batch_size,
        "out": args.out / f"{sampler}-{steps}",
    }  # fmt: skip
    flags = [part for name, value in given.items() if value for part in (f"--{name}", str(value))]
    job = evaluate.parse([*flags, "--extractor", args.extractor])[0]
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    denoiser = Denoiser.from_pretrained(args.model).to(accelerator.device)
    made = denoiser.sampler_of(sampler)
    asked = made.plan(int(steps)).evaluations
    with at_speed(denoiser.unet, accelerator.device, job):
        drawn, _, seconds = evaluate.draw(job, denoiser, args.model, real, extractor, accelerator)
    times = 2 if args.guidance else 1
    return {"sampler": sampler, "steps": steps, "evaluations": times * asked,
            "seconds": seconds, "drawn": drawn}  # fmt: skip


def table_of_model(found: list[dict[str, Any]], reference: Any, other: Any) -> list[str]:
    """The lines of a table, of what `score` gave and of other real images."""
    from ddpm_unet.evaluation.fidelity import compare, frechet_distance

    counts = sorted({len(row["drawn"]) for row in found})
    few, *more = (f"FD of {count}" for count in counts)
    names = ["sampler", "steps", "evaluations", "seconds an image", few, "ratio", *more, *SHOWN]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    first = None
    real = {"sampler": "real", "steps": "", "evaluations": "", "drawn": other}
    for row in (real, *found):
        drawn = row["drawn"]
        distances = [
            frechet_distance(reference.features[:count], drawn.features[:count])
            if count <= len(drawn) else math.nan
            for count in counts
        ]  # fmt: skip
        if row is not real:
            first = first or distances[0]
        scores = compare(drawn, reference[: len(drawn)])
        cells = [row["sampler"], row["steps"], row["evaluations"]]
        cells.append(f"{row['seconds']:.2g}" if "seconds" in row else "")
        cells += [f"{distances[0]:.1f}", f"{distances[0] / first:.2f}" if first else ""]
        cells += ["" if math.isnan(distance) else f"{distance:.1f}" for distance in distances[1:]]
        cells += [f"{scores[name]:.3g}" for name in SHOWN]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def section(text: str, name: str, lines: list[str]) -> str:
    """The page with the lines in its section of a model, written anew or added."""
    head = f"## Of {name}\n"
    made = "\n".join([head, *lines, ""])
    before, found, after = text.partition(head)
    if not found:
        return f"{text.rstrip()}\n\n{made}"
    following = after.find("\n## ")
    return before + made + (after[following:] if following >= 0 else "")


def main() -> None:
    """Write the page, or its section of a model."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", type=Path, help="folder of a denoiser; none: of Gaussians in closed form")
    add("--reference", type=Path, help="folder of real images (default: the training's)")
    add("--samplers", nargs="+", default=OF_MODELS, metavar="NAME:STEPS[:IMAGES]")
    add("--num_images", type=whole(8), default=128, help="of each sampler (default 128)")
    add("--guidance", type=float, help="scale of classifier-free guidance")
    add("--batch_size", type=whole(1), default=16, help="images at a time (default 16)")
    add("--extractor", default="efficientnet-lite0", help="as of evaluate.py")
    add("--out", type=Path, help="folder written to (default runs/samplers/MODEL)")
    args, others = parser.parse_known_args()
    if args.model is None:
        parts = PAGE.read_text().split("\n## ") if PAGE.exists() else []
        PAGE.write_text("\n## ".join([page_of_gaussians(), *parts[1:]]))
        print(f"written: {PAGE}")
        return
    from ddpm_unet.evaluation.extractors import load_extractor
    from ddpm_unet.evaluation.fidelity import describe

    name = args.model.resolve().parent.name
    args.out = args.out or Path("runs/samplers") / name
    args.held_out = False
    extractor = load_extractor(args.extractor)
    real = evaluate.read_real(args, others, args.model)
    found = [score(args, entry, real, extractor) for entry in args.samplers]
    reference, other = (describe(part, extractor) for part in (real[::2], real[1::2]))
    command = f"    {' '.join(['python scripts/experiments/sampler_table.py', *sys.argv[1:]])}"
    lines = [command, "", _NOTE, "", *table_of_model(found, reference, other)]
    PAGE.write_text(section(PAGE.read_text(), name, lines))
    print("\n".join([*lines, f"written: {PAGE}"]))


if __name__ == "__main__":
    with user_errors():
        main()

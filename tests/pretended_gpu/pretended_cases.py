"""Trainings and samplers, each for a few steps: `python pretended_cases.py FOLDER`.

Writes FOLDER/found.json: of each case its losses or a sum of its images, and its waits for the
device by kind and place, a step. On the pretended device where its library was loaded, else on a
CPU.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pretend
import torch
from trainings import TRAININGS, UNET, records, run_training, write_data

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SAMPLERS = ("ddpm", "ddim", "dpm++", "dpm++sde", "unipc", "euler", "heun")
COUNTED = ("step", "images", "lr")
"""What metrics.jsonl says besides losses and scores."""

Found = dict[str, Any]


def training(name: str) -> Found:
    """Losses and scores of a training, and the waits within its second step."""
    from ddpm_unet.training.loop import Training

    step: Counter[tuple[str, str]] = Counter()
    optimize = Training._optimize

    def counting(self: Any, *args: Any) -> Any:
        step.clear()
        with pretend.counted(step):
            return optimize(self, *args)

    Training._optimize = counting  # type: ignore[method-assign]
    try:
        lines = records(run_training(name))
    finally:
        Training._optimize = optimize  # type: ignore[method-assign]
    values = [value for line in lines for key, value in line.items() if key not in COUNTED]
    return {"values": values, "waits": per(step, 1)}


def per(found: Counter[tuple[str, str]], steps: int) -> dict[str, float]:
    """Waits by kind and place, a step."""
    return {f"{kind} at {place}": n / steps for (kind, place), n in sorted(found.items())}


def sampling(name: str) -> Found:
    """Images that a sampler draws, and the waits within its steps but the first and last."""
    from ddpm_unet.diffusion.process import GaussianDiffusion
    from ddpm_unet.diffusion.samplers import make_scheduler
    from ddpm_unet.diffusion.sampling import sample
    from ddpm_unet.models.timetable import timetabled

    scheduler = make_scheduler(name, GaussianDiffusion())
    unet = timetabled(small_unet(), torch.arange(1000))
    marks: list[Counter[tuple[str, str]]] = []
    images = sample(
        unet, scheduler, (3, 8, 8), seed=0, indices=range(2), steps=6, device=DEVICE,
        callback=lambda info: marks.append(pretend.waits.copy()),
    )  # fmt: skip
    values = images.cpu().double().flatten().tolist()
    return {"values": values, "waits": per(marks[-2] - marks[0], len(marks) - 2)}


def small_unet() -> torch.nn.Module:
    """On the device, with weights that are not nought."""
    from ddpm_unet.config import UNetConfig
    from ddpm_unet.models import UNet

    torch.manual_seed(0)
    settings = {key.removeprefix("model."): value for key, value in UNET.items()}
    unet = UNet(
        UNetConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
    )
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    return unet.eval().to(DEVICE)


def tiles() -> Found:
    """Overlap-tile over an image of 4 tiles and one of 8: what 4 more tiles wait for."""
    from ddpm_unet.inference.tiles import Tiling, predict_tiles

    network = torch.nn.Conv2d(3, 2, 1).to(DEVICE)
    torch.nn.init.constant_(network.weight, 0.1)
    found, values = [], []
    for length in (64, 128):
        image = torch.linspace(-1, 1, 3 * 64 * length).reshape(3, 64, length)
        pretend.waits.clear()
        with torch.no_grad():
            out = predict_tiles(network, image, Tiling(36, 2, 0, 1, False), device=DEVICE)
        found.append(pretend.waits.copy())
        values += out.cpu().flatten()[::97].tolist()
    return {"values": values, "waits": per(found[1] - found[0], 4)}


CASES: dict[str, Callable[[], Found]] = {
    **{name: partial(training, name) for name in TRAININGS},
    **{f"sampler {name}": partial(sampling, name) for name in SAMPLERS},
    "tiles": tiles,
}


def main() -> None:
    """Run all cases, or those whose names follow the folder."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1]).resolve()
    os.chdir(folder)
    write_data()
    found: dict[str, Found] = {}
    if DEVICE == "cuda":
        pretend.arrange()
    for name in sys.argv[2:] or CASES:
        try:
            with pretend.Pretending() if DEVICE == "cuda" else nullcontext():
                found[name] = CASES[name]()
        except Exception:
            found[name] = {"error": traceback.format_exc(limit=-6)}
    Path("found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

"""Trainings and samplers, each for a few steps: `python pretended_cases.py FOLDER`.

Writes FOLDER/found.json: of each case its losses or a sum of its images, and its waits for the
device by kind and place, a step. On the pretended device where its library was loaded, else on a
CPU.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pretend
import torch
from accelerate.state import AcceleratorState
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "scripts"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

UNET = {
    "model.block_out_channels": [8, 16],
    "model.down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "model.up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "model.layers_per_block": 1,
    "model.norm_num_groups": 4,
    "model.attention_head_dim": 4,
    "model.sample_size": 8,
}
LOOP = {
    "train.steps": 2, "train.batch_size": 4, "train.micro_batch": 2, "train.warmup_steps": 0,
    "train.validate_every": 2, "train.sample_every": 0, "train.checkpoint_every": 2,
    "train.log_every": 1, "train.lr": 1e-3,
}  # fmt: skip
DRAWN = {"train.sample_every": 2}
DENOISE = {
    "data.source": "images", "data.size": 8, "preview.num_images": 2, "preview.steps": 2,
    "preview.validation_images": 2, "diffusion.min_snr_gamma": None, **UNET, **LOOP,
}  # fmt: skip
CONTEXT = {
    "data.context": "vectors", "model.cross_attention_dim": 6, "model.mid_block_type": None,
    "model.down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "model.up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "condition_dropout": 0.5,
}  # fmt: skip
PIXELS = {
    "data.images": "images", "data.masks": "masks", "data.size": 8, "data.scale": 1, **UNET, **LOOP,
    "head.feature_widths": [8, 8], "predict.tile": 32, "predict.overlap": 0, "predict.margin": 0,
}  # fmt: skip
FROM_DENOISER = PIXELS | {"init": "runs/denoise/model"}
CLASSIC = PIXELS | {
    "architecture": "classic", "classic.depth": 2, "classic.base_width": 4,
    "classic.padding": "same", "classic.dropout": 0, "init": "scratch",
}  # fmt: skip

TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "denoise": ("train_ddpm.py", DENOISE | DRAWN),
    "bf16": ("train_ddpm.py", DENOISE | {"train.mixed_precision": "bf16"}),
    "classes, dropped": (
        "train_ddpm.py",
        DENOISE
        | {"data.class_labels": True, "model.num_class_embeds": 3, "condition_dropout": 0.5},
    ),
    "self-conditioning": (
        "train_ddpm.py",
        DENOISE | {"self_conditioning": True, "model.in_channels": 6},
    ),
    "mask beside the input": (
        "train_ddpm.py",
        DENOISE | {"data.condition": "masks", "data.condition_classes": 2, "model.in_channels": 5},
    ),
    "context": ("train_ddpm.py", DENOISE | CONTEXT | DRAWN),
    "learned variances": (
        "train_ddpm.py",
        DENOISE | {"diffusion.variance_type": "learned_range", "model.out_channels": 6},
    ),
    "averages": ("train_ddpm.py", DENOISE | {"train.ema_lengths": [0.05], "train.ema_every": 2}),
    "autoencode": (
        "train_autoencoder.py",
        {key: value for key, value in DENOISE.items() if not key.startswith(("model", "diffusion"))}
        | {"model.block_out_channels": [8, 16], "model.norm_num_groups": 4},
    ),
    "segment": ("train_seg.py", FROM_DENOISER | DRAWN),
    "features": ("train_seg.py", FROM_DENOISER | {"head.transfer": "features"}),
    "joint": (
        "train_seg.py",
        FROM_DENOISER | {"head.transfer": "joint", "unlabelled.source": "images"},
    ),
    "classic": ("train_seg.py", CLASSIC | {"loss.class_weights": [1.0, 2.0]}),
    "border, rmsprop": (
        "train_seg.py",
        CLASSIC | {"loss.name": "border", "train.optimizer": "rmsprop"},
    ),
    "regress": ("train_seg.py", CLASSIC | {"task": "regress", "data.masks": "targets"}),
}
SAMPLERS = ("ddpm", "ddim", "dpm++", "dpm++sde", "unipc", "euler", "heun")


def write_data() -> None:
    """Pictures in a folder a class, and beside each its mask and a context."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks", "targets", "vectors"):
        for name in ("bright", "dark"):
            Path(kind, name).mkdir(parents=True)
    for number in range(8):
        name = f"{('bright', 'dark')[number % 2]}/{number}"
        pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"images/{name}.png")
        Image.fromarray((pixels[..., 0] > 127).astype(np.uint8)).save(f"masks/{name}.png")
        Image.fromarray(255 - pixels[..., 0]).save(f"targets/{name}.png")
        np.save(f"vectors/{name}.npy", rng.normal(size=(1 + number % 3, 6)))


def run_script(name: str, flags: dict[str, Any]) -> None:
    """A script as its command line starts it."""
    arguments = [
        f"--{key}={json.dumps(v) if v is not None else 'null'}" for key, v in flags.items()
    ]
    sys.argv = [name, *(a.replace('"', "") for a in arguments)]
    try:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"{name}: exit {stop.code}") from stop
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def training(name: str, script: str, flags: dict[str, Any]) -> dict[str, Any]:
    """Losses and scores of a training, and the waits within its steps but the first."""
    from ddpm_unet.training import loop

    loop.plot_metrics = lambda *_: None
    Training = loop.Training
    steps = 0
    inside: Counter[tuple[str, str]] = Counter()
    optimize = Training._optimize

    def counting(self: Any, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        with pretend.counted(inside if steps > 1 else Counter()):
            return optimize(self, *args)

    Training._optimize = counting  # type: ignore[method-assign]
    run = "runs/" + name.replace(",", "").replace(" ", "_")
    pretend.waits.clear()
    try:
        run_script(script, flags | {"run": run})
    finally:
        Training._optimize = optimize  # type: ignore[method-assign]
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    values = [value for line in lines for key, value in line.items() if key not in NOT_COMPARED]
    return {"values": values, "waits": per(inside, steps - 1), "outside": per(pretend.waits, 1)}


NOT_COMPARED = ("step", "images", "lr", "seconds", "time")


def per(found: Counter[tuple[str, str]], steps: int) -> dict[str, float]:
    return {f"{kind} at {place}": n / steps for (kind, place), n in sorted(found.items())}


def sampling(name: str) -> dict[str, Any]:
    """A sum of the images that a sampler draws, and the waits within its steps but the first."""
    from ddpm_unet.config import DiffusionConfig, UNetConfig
    from ddpm_unet.diffusion.samplers import make_scheduler
    from ddpm_unet.diffusion.sampling import sample
    from ddpm_unet.models import UNet
    from ddpm_unet.models.timetable import timetabled

    torch.manual_seed(0)
    settings = {key.removeprefix("model."): value for key, value in UNET.items()}
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
    unet = UNet(UNetConfig(**settings)).eval()
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    unet.to(DEVICE)
    scheduler = make_scheduler(name, DiffusionConfig())
    marks: list[Counter[tuple[str, str]]] = []
    pretend.waits.clear()
    images = sample(
        timetabled(unet, torch.arange(1000)),
        scheduler, (3, 8, 8), seed=0, indices=range(2), steps=6, device=DEVICE,
        callback=lambda moment: marks.append(pretend.waits.copy()),
    )  # fmt: skip
    inside = marks[-2] - marks[0]
    values = images.cpu().double().flatten()
    return {"values": values.tolist(), "waits": per(inside, len(marks) - 2)}


def tiles() -> dict[str, Any]:
    """Overlap-tile over a picture of 4 tiles and one of 8: what 4 more tiles wait for."""
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


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    **{name: partial(training, name, *how) for name, how in TRAININGS.items()},
    **{f"sampler {name}": partial(sampling, name) for name in SAMPLERS},
    "tiles": tiles,
}


def main() -> None:
    """Run all cases, or those whose names follow the folder."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1]).resolve()
    os.chdir(folder)
    write_data()
    found: dict[str, Any] = {}
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

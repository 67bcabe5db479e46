"""Every training and sampler, each for a few steps: `python cases.py FOLDER`.

Writes FOLDER/found.json: what each case gave (losses, scores, images), and its waits for the device
within a step, by place. It computes on a GPU where there is one; PRETENDED=1: on one that
tests/pretended_gpu pretends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from ddpm_unet import cli, randomness
from ddpm_unet.config import UNetConfig
from ddpm_unet.diffusion import editing, sampling
from ddpm_unet.diffusion.edm import EDMDiffusion
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import SAMPLERS
from ddpm_unet.evaluation import report
from ddpm_unet.inference import denoiser
from ddpm_unet.inference.conditioning import Conditioning
from ddpm_unet.inference.tiles import Tiling, predict_tiles
from ddpm_unet.models import UNet
from ddpm_unet.training import distributed, loop

ROOT = Path(__file__).parents[2]
PRETENDED = bool(os.environ.get("PRETENDED"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COUNTED = ("step", "images", "lr")
"""What metrics.jsonl says besides losses and scores."""

Found = dict[str, Any]

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
    "train.log_every": 1, "train.lr": 1e-3, "train.mixed_precision": "no",
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
    "denoise": ("train-ddpm", DENOISE | DRAWN),
    "edm": ("train-ddpm", DENOISE | DRAWN | {"diffusion.process": "edm"}),
    "weighted": ("train-ddpm", DENOISE | {"diffusion.min_snr_gamma": 5}),
    "bf16": ("train-ddpm", DENOISE | {"train.mixed_precision": "bf16"}),
    "by default": ("train-ddpm", DENOISE | {"train.mixed_precision": None, "data.memory_limit": 0}),
    "fp16": ("train-ddpm", DENOISE | {"train.mixed_precision": "fp16"}),
    "classes, dropped": (
        "train-ddpm",
        DENOISE
        | {"data.class_labels": True, "model.num_class_embeds": 3, "condition_dropout": 0.5},
    ),
    "self-conditioning": (
        "train-ddpm",
        DENOISE | {"self_conditioning": True, "model.in_channels": 6},
    ),
    "mask beside the input": (
        "train-ddpm",
        DENOISE | {"data.condition": "masks", "data.condition_classes": 2, "model.in_channels": 5},
    ),
    "context": ("train-ddpm", DENOISE | CONTEXT | DRAWN),
    "learned variances": (
        "train-ddpm",
        DENOISE | {"diffusion.variance_type": "learned_range", "model.out_channels": 6},
    ),
    "averages": ("train-ddpm", DENOISE | {"train.ema_sigma_rel": [0.05], "train.ema_every": 2}),
    "autoencode": (
        "train-autoencoder",
        {key: value for key, value in DENOISE.items() if not key.startswith(("model", "diffusion"))}
        | {"model.block_out_channels": [8, 16], "model.norm_num_groups": 4},
    ),
    "latents": (
        "train-ddpm",
        DENOISE
        | DRAWN
        | {"latent.autoencoder": "runs/autoencode/model", "latent.cache": "latents"}
        | {"data.size": 16, "model.in_channels": 4, "model.out_channels": 4},
    ),
    "images and masks": (
        "train-ddpm",
        DENOISE
        | {"data.condition": "masks", "data.condition_classes": 2}
        | {"data.joint_masks": True, "model.in_channels": 5, "model.out_channels": 5},
    ),
    "segment": ("train-seg", FROM_DENOISER | DRAWN),
    "features": ("train-seg", FROM_DENOISER | {"head.transfer": "features"}),
    "joint": (
        "train-seg",
        FROM_DENOISER | {"head.transfer": "joint", "unlabelled.source": "images"},
    ),
    "classic": ("train-seg", CLASSIC | {"loss.class_weights": [1.0, 2.0]}),
    "border, rmsprop": (
        "train-seg",
        CLASSIC | {"loss.name": "border", "train.optimizer": "rmsprop"},
    ),
    "regress": ("train-seg", CLASSIC | {"task": "regress", "data.masks": "targets"}),
    "volumes": (
        "train-ddpm",
        DENOISE
        | {"data.source": "volumes", "data.dims": 3, "model.dims": 3}
        | {"model.in_channels": 1, "model.out_channels": 1},
    ),
    "volumes segmented": (
        "train-seg",
        CLASSIC
        | {"data.dims": 3, "data.images": "volumes", "data.masks": "labels"}
        | {"data.mask_kind": "classes", "data.num_classes": 2},
    ),
    "low-rank changes": (
        "train-ddpm",
        LOOP
        | {"data.source": "images", "data.size": 8, "init": "runs/denoise/model"}
        | {"lora.rank": 2},
    ),
}
COMMANDS: dict[str, tuple[str, str]] = {
    "segment": ("segment images/bright --model runs/segment/model --tta", "*.tif"),
    "segment, regress": ("segment images/dark --model runs/regress/model", "*.tif"),
    "segment, volumes": ("segment volumes --model runs/volumes_segmented/model", "*.tif"),
    "sample": (
        "sample --model runs/denoise/model --num_images 3 --batch_size 2 --npz", "*.npz"
    ),
    "evaluate": (
        "evaluate --model runs/denoise/model --num_images 8 --batch_size 4 --steps 2", "scores.json"
    ),
    "likelihood": (
        "likelihood --model runs/denoise/model --all --images 4 --parts 4", "likelihood.json"
    ),
}  # fmt: skip
"""Of each the arguments, and the files that hold what it found."""
NEEDS = {
    "volumes": "tifffile", "volumes segmented": "tifffile", "low-rank changes": "peft",
    "segment": "tifffile", "segment, regress": "tifffile", "segment, volumes": "tifffile",
    "evaluate": "timm", "lcm": "diffusers",
}  # fmt: skip
"""Packages without which a case is left out."""

DRAWINGS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "classes, guided": (
        {"num_class_embeds": 3},
        {"conditioning": Conditioning(3, cond_dropout=True)},
        {"sampler": "ddim", "guidance": 2.0, "guidance_interval": (0, 900), "class_labels": 1},
    ),
    "guided by another": ({}, {}, {"sampler": "ddpm", "guidance": 2.0, "guide": True}),
    "its own estimate": (
        {"in_channels": 6}, {"conditioning": Conditioning(3, self_conditioning=True)}, {},
    ),
    "learned variances": (
        {"out_channels": 6},
        {"diffusion": GaussianDiffusion(variance_type="learned_range")}, {"sampler": "ddpm"},
    ),
    "edm": ({}, {"diffusion": EDMDiffusion()}, {"sampler": "churn"}),
    "from an image": ({}, {}, {"sampler": "dpm++", "init_image": True, "strength": 0.9}),
    "a hole": ({}, {}, {"sampler": "ddpm", "init_image": True, "mask": True, "resamplings": 2}),
    "between images": (
        {}, {"diffusion": GaussianDiffusion(prediction_type="sample")},
        {"sampler": "dpm++", "interpolate": True},
    ),
    "lcm": ({}, {}, {"sampler": True}),
    "tiled": ({}, {}, {"sampler": "ddpm", "size": 12, "tile": 8}),
    "tiled, periodic": ({}, {}, {"sampler": "ddim", "size": 16, "tile": 8, "periodic": True}),
}  # fmt: skip
"""Beside each sampler: settings of a U-Net, arguments of its `Denoiser` and of the job."""


def write_data() -> None:
    """Pictures in a folder a class, and beside each its mask, a target and a context."""
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
    slices = [Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)) for _ in range(32)]
    labels = [part.point(lambda value: value > 127) for part in slices]
    for kind, made in (("volumes", slices), ("labels", labels)):
        Path(kind).mkdir()
        for number in range(2):
            first, *others = made[number::2]
            first.save(f"{kind}/{number}.tif", save_all=True, append_images=others)


def arguments(flags: dict[str, Any]) -> list[str]:
    """Flags as they are typed."""
    return [f"--{key}={json.dumps(value)}".replace('"', "") for key, value in flags.items()]


def run_training(name: str, flags: dict[str, Any] | None = None) -> Path:
    """Train one of `TRAININGS`, with further flags, in the current folder; gives the run's."""
    command, settings = TRAININGS[name]
    run = "runs/" + name.replace(",", "").replace(" ", "_")
    settings = settings | {"run": run} | (flags or {})
    drawn = loop.plot_metrics, report.plots
    loop.plot_metrics, report.plots = lambda *_: None, lambda _: ""  # longer than the training
    try:
        cli.run(command, arguments(settings))
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"{name}: exit {stop.code}") from stop
    finally:
        loop.plot_metrics, report.plots = drawn
        AcceleratorState._reset_state(reset_partial_state=True)
    return Path(settings["run"])


def records(run: Path) -> list[dict[str, float]]:
    """What the run wrote into metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def training(name: str) -> Found:
    """Losses and scores of a training, and the waits within its second step."""
    found: Counter[str] = Counter()
    optimize = loop.Training._optimize

    def watching(self: Any, *args: Any) -> Any:
        with watched() as seen:
            out = optimize(self, *args)
        found.clear()
        found.update(seen)
        return out

    loop.Training._optimize = watching  # type: ignore[method-assign]
    refused = name == "fp16" and DEVICE == "cpu"
    long = 1 if name == "by default" else distributed.COMPILED_FROM  # which says it compiles
    named = patch.object(distributed, "COMPILED_FROM", long)
    try:
        with named, patch.object(torch.nn.Module, "compile"), redirect_stdout(StringIO()) as said:
            lines = records(run_training(name, {"train.mixed_precision": "no"} if refused else {}))
    finally:
        loop.Training._optimize = optimize  # type: ignore[method-assign]
    values = [value for line in lines for key, value in line.items() if key not in COUNTED]
    return {"values": values, "waits": found, "said": said.getvalue()}


def command(line: str, files: str) -> Found:
    """The numbers in the files that a command writes."""
    folder = Path("made", line.replace(" ", "_").replace("/", "_"))
    name, *given = line.split()
    with watched() as waits:
        try:
            cli.run(name, [*given, "--out", str(folder)])
        except SystemExit as stop:
            if stop.code:
                raise RuntimeError(f"{line}: exit {stop.code}") from stop
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
    values: list[float] = []
    for file in sorted(folder.glob(files)):
        values += numbers(file)
    return {"values": values, "waits": {}, "all waits": waits}


def numbers(file: Path) -> list[float]:
    """Those of a file, but for seconds."""
    if file.suffix == ".json":
        tree, found = [json.loads(file.read_text())], []
        while tree:
            value = tree.pop()
            if isinstance(value, dict):
                tree += [value[key] for key in value if "seconds" not in key]
            elif isinstance(value, list):
                tree += value
            elif isinstance(value, float):
                found.append(value)
        return found
    import tifffile

    array = np.load(file)["arr_0"] if file.suffix == ".npz" else tifffile.imread(file)
    return array.ravel()[::37].astype(float).tolist()


def drawing(settings: dict[str, Any], parts: dict[str, Any], options: dict[str, Any]) -> Found:
    """Images that are drawn, and the waits between the second evaluation and the last."""
    generator = torch.Generator().manual_seed(0)
    given = {
        "init_image": torch.rand(1, 3, 8, 8, generator=generator) * 2 - 1,
        "interpolate": torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1,
        "mask": torch.ones(1, 1, 8, 8, dtype=torch.bool).tril(),
    }
    if options.get("sampler") is True:
        from diffusers import LCMScheduler

        given["sampler"] = LCMScheduler()
    given["guide"] = small_unet(layers_per_block=2) if "guide" in options else None
    options = {key: given[key] if value is True and key in given else value
               for key, value in options.items()}  # fmt: skip
    parts = {"diffusion": GaussianDiffusion(), **parts}
    made = denoiser.Denoiser(small_unet(**settings), **parts)
    marks: list[Counter[str]] = []
    concatenated = denoiser.concat_cond

    def marked(network: Any) -> Any:
        def evaluation(*args: Any, **cond: Any) -> Any:
            marks.append(waits.copy())
            return network(*args, **cond)

        return concatenated(evaluation)

    with watched() as waits, patch.object(denoiser, "concat_cond", marked):
        (drawn,) = (images for _, images, _ in made.job(2, steps=6, **options))
    return {"values": drawn.cpu().double().flatten().tolist(), "waits": marks[-1] - marks[1]}


def small_unet(**changes: Any) -> UNet:
    """On the device, with weights that are not nought."""
    torch.manual_seed(0)
    settings = {key.removeprefix("model."): value for key, value in UNET.items()} | changes
    unet = UNet(
        UNetConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
    )
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    return unet.eval().to(DEVICE)


def tiles() -> Found:
    """Overlap-tile over an image of 4 tiles and one of 8: what 4 more tiles wait for."""
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 2, 1).to(DEVICE)
    torch.nn.init.constant_(network.weight, 0.1)
    found, values = [], []
    for length in (64, 128):
        image = torch.linspace(-1, 1, 3 * 64 * length).reshape(3, 64, length)
        with watched() as waits, torch.no_grad():
            out = predict_tiles(network, image, Tiling(36, 2, 0, 1, False), device=DEVICE)
        found.append(waits)
        values += out.cpu().flatten()[::97].tolist()
    return {"values": values, "waits": found[1] - found[0]}


def run_cases(
    new_folder: Callable[[str], Path], **devices: dict[str, str]
) -> dict[str, dict[str, Found]]:
    """What all cases give on each device, in processes of their own, side by side.

    Args:
        new_folder: Makes an empty folder of a name.
        devices: By name of the device, what is added to the environment.
    """
    running = {}
    for device, added in devices.items():
        folder = new_folder(device)
        paths = [added.pop("PYTHONPATH", ""), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = (
            os.environ
            | added
            | {"NVIDIA_TF32_OVERRIDE": "0"}
            | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        )
        with (folder / "log").open("w") as log:
            command = [sys.executable, __file__, str(folder)]
            running[folder] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    found = {}
    for device, (folder, process) in zip(devices, running.items(), strict=True):
        if process.wait() != 0:
            raise RuntimeError((folder / "log").read_text()[-3000:])
        found[device] = json.loads((folder / "found.json").read_text())
    return found


def avoidable(waits: dict[str, int]) -> dict[str, int]:
    """The waits but for those of results as they come to the host."""
    known = "copied to the host at ddpm_unet/inference/tiles.py"
    return {place: n for place, n in waits.items() if known not in place}


CASES: dict[str, Callable[[], Found]] = {
    **{name: partial(training, name) for name in TRAININGS if find_spec(NEEDS.get(name, "torch"))},
    **{f"sampler {name}": partial(drawing, {}, {}, {"sampler": name}) for name in SAMPLERS},
    **{
        f"drawn: {name}": partial(drawing, *how)
        for name, how in DRAWINGS.items()
        if find_spec(NEEDS.get(name, "torch"))
    },
    **{
        f"command {name}": partial(command, *how)
        for name, how in COMMANDS.items()
        if find_spec(NEEDS.get(name, "torch"))
    },
    "tiles": tiles,
}


@contextmanager
def watched() -> Iterator[Counter[str]]:
    """Within, each wait of the host for the device is counted, by place."""
    found: Counter[str] = Counter()
    if DEVICE == "cpu":
        yield found
    elif PRETENDED:
        import pretend

        with pretend.watched() as waits:
            yield waits
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, _, file, line, *__: found.update(
                [f"{file}:{line}"] if "synchroniz" in str(message) else []
            )
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode("default")


def main() -> None:
    """Run all cases, or those whose names follow the folder."""
    torch.set_num_threads(1)
    os.chdir(sys.argv[1])
    write_data()
    sampling.Noise = editing.Noise = sampling.CounterNoise  # type: ignore[misc]  # on a CPU, too
    if DEVICE == "cuda" and not PRETENDED:  # whose generators draw other numbers in training
        draw = randomness.normal
        randomness.normal = lambda seed, purpose, positions, shape, device="cpu": (
            randomness.on_device(draw(seed, purpose, positions, shape).numpy(), device)
        )
    within = nullcontext
    if PRETENDED:
        import pretend

        pretend.arrange()
        within = pretend.Pretending
    found: dict[str, Found] = {}
    for name in sys.argv[2:] or CASES:
        try:
            with within():
                found[name] = CASES[name]()
        except Exception:
            found[name] = {"error": traceback.format_exc(limit=-6)}
    Path("found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

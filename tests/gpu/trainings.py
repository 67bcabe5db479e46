"""Small data, and a training of seconds for each job, as a command line starts it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.state import AcceleratorState
from PIL import Image

from ddpm_unet import cli
from ddpm_unet.training import loop

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
    "denoise": ("train-ddpm", DENOISE | DRAWN),
    "bf16": ("train-ddpm", DENOISE | {"train.mixed_precision": "bf16"}),
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
}


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


def arguments(flags: dict[str, Any]) -> list[str]:
    """Flags as they are typed."""
    return [f"--{key}={json.dumps(value)}".replace('"', "") for key, value in flags.items()]


def run_training(name: str, flags: dict[str, Any] | None = None) -> Path:
    """Train one of `TRAININGS`, with further flags, in the current folder; gives the run's."""
    command, settings = TRAININGS[name]
    run = "runs/" + name.replace(",", "").replace(" ", "_")
    settings = settings | {"run": run} | (flags or {})
    loop.plot_metrics = lambda *_: None  # takes longer than the training
    try:
        cli.run(command, arguments(settings))
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"{name}: exit {stop.code}") from stop
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    return Path(settings["run"])


def records(run: Path) -> list[dict[str, float]]:
    """What the run wrote into metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

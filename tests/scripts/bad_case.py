"""A bad input, and the folder in which all else is right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from faulty_files import Make, nothing
from PIL import Image
from small import TINY

from ddpm_unet.config import HeadConfig, UNetConfig
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.models import UNet
from ddpm_unet.models.segmenter import Segmenter

COMMANDS = {
    "train_ddpm": "train_ddpm.py --config denoise.yaml",
    "train_ddpm, another configuration": "train_ddpm.py --run run",
    "train_seg": "train_seg.py --config segment.yaml",
    "check": "ddpm-unet check --data.images images --data.masks masks --data.size 16",
    "sample": "sample.py --model denoiser --steps 2 --num_images 1 --out out",
    "segment": "segment.py --model segmenter --tile 96 --out out",
    "compare": "compare.py --config denoise.yaml --num_images 2 --out out.png",
}


@dataclass(frozen=True)
class Case:
    """One bad input.

    Args:
        what: It, in a few words.
        command: One of `COMMANDS`.
        added: What is added to that command.
        says: The line that the user gets, after "error: "; `...` stands for the words of a
            library, which may change.
        make: Makes what is wrong, in a `good_folder`.
        only: Where it can be tried: a name in `test_bad_input.PLACES`.
    """

    what: str
    command: str
    added: str
    says: str
    make: Make = nothing
    only: str = "everywhere"


@dataclass(frozen=True)
class Odd:
    """An odd input that works.

    Args:
        what: It, in a few words.
        command: One of `COMMANDS`.
        added: What is added to that command.
        gives: A file that appears.
        make: Makes what is odd, in a `good_folder`.
    """

    what: str
    command: str
    added: str
    gives: str
    make: Make = nothing


def good_folder(root: Path) -> None:
    """Images, masks, generated images, a denoiser, a segmenter and two configurations."""
    rng = np.random.default_rng(0)
    for name in ("images", "generated", "masks"):
        (root / name).mkdir()
    for i in range(3):
        for path in (f"images/{i}.png", f"generated/{i:05d}.png"):
            Image.fromarray(rng.integers(0, 256, (24, 24, 3)).astype(np.uint8)).save(root / path)
        mask = rng.integers(0, 2, (24, 24)).astype(np.uint8)
        Image.fromarray(mask).save(root / f"masks/{i}.png")
    network = {k: list(v) if isinstance(v, tuple) else v for k, v in TINY.items()}
    unet = UNet(UNetConfig(**TINY, sample_size=16))
    write_pipeline(root / "denoiser", unet, GaussianDiffusion())
    Segmenter(unet, HeadConfig()).save_pretrained(root / "segmenter")
    Preprocessing(3).write(root / "segmenter")
    train = {"steps": 1, "batch_size": 2, "warmup_steps": 0, "sample_every": 0, "validate_every": 0}
    denoise = {"data": {"source": "images", "size": 16}, "model": network}
    pairs = {"images": "images", "masks": "masks", "size": 16}
    segment = {"init": "denoiser", "data": pairs, "predict": {"tile": 96}}
    for name, settings in (("denoise", denoise), ("segment", segment)):
        text = yaml.safe_dump({"run": "run", "train": train, **settings})
        (root / f"{name}.yaml").write_text(text)

"""Rows of starting: what a person waits for before anything happens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

from benchmarks.networks import ROOT
from benchmarks.rows import DIFFUSERS, LUCIDRAINS, MONAI, OURS, SMP, Measured, installed
from benchmarks.timing import Effort, Timer

TORCH = "import torch"
SAMPLING = {
    OURS: """
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import make_sampler
from ddpm_unet.inference.denoiser import generate
from ddpm_unet.inference.pipeline import read_pipeline
make_sampler("ddpm", GaussianDiffusion())
""",
    TORCH: TORCH,
    DIFFUSERS: "from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel\nDDPMScheduler()",
    LUCIDRAINS: "from denoising_diffusion_pytorch import GaussianDiffusion, Unet",
}
SEGMENTING = {
    OURS: """
from ddpm_unet.inference.predictor import Predictor
""",
    MONAI: """
from monai.inferers import sliding_window_inference
from monai.networks.nets import BasicUNet
""",
    SMP: "from segmentation_models_pytorch import Unet",
}


def help_text(effort: Effort) -> Measured:
    """`python scripts/sample.py --help`."""
    script = str(ROOT / "scripts" / "sample.py")
    return Measured.timed(Timer(effort).alternate({OURS: process(script, "--help")}))


def imports(effort: Effort, programs: dict[str, str]) -> Measured:
    """New interpreters that make ready, in turns."""
    if effort.quick:
        effort = replace(effort, least=1, most=1, warm_up=0)
    sides = {
        side: process("-c", code)
        for side, code in programs.items()
        if side in (OURS, TORCH) or installed(side)
    }
    return Measured.timed(Timer(effort).alternate(sides))


def process(*arguments: str) -> Callable[[], object]:
    """A call that runs Python to its end."""

    def run() -> None:
        subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )

    return run

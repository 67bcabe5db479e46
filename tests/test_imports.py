"""What takes seconds to import is imported by what needs it."""

import subprocess
import sys

SEGMENTING = """
from ddpm_unet.inference.results import write_masks
from ddpm_unet.inference.predictor import Predictor
from ddpm_unet.models.segmenter import load_segmentation_model
"""
SAMPLING = """
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import make_sampler
from ddpm_unet.inference.denoiser import generate
make_sampler("ddpm", GaussianDiffusion())
"""


def test_nothing_slow_is_imported_that_is_not_needed() -> None:
    say = "\nimport sys\nprint(*sys.modules)"
    program = [sys.executable, "-c", f"{SEGMENTING}{say}{SAMPLING}{say}"]
    said = subprocess.run(program, check=True, capture_output=True, text=True)
    segmenting, sampling = (set(line.split()) for line in said.stdout.splitlines())
    assert not {"diffusers", "scipy", "torch._dynamo", "torchvision"} & segmenting
    assert not {"scipy", "torchvision"} & sampling

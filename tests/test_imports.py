"""What takes seconds to import is imported by what needs it."""

import subprocess
import sys

import pytest

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


@pytest.mark.parametrize(
    ("program", "not_needed"),
    [
        (SEGMENTING, {"diffusers", "scipy", "torch._dynamo", "torchvision"}),
        (SAMPLING, {"scipy", "torchvision"}),
    ],
)
def test_nothing_slow_is_imported_that_is_not_needed(program: str, not_needed: set[str]) -> None:
    said = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys\nprint(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert not not_needed & set(said.stdout.split())

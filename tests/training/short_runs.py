"""Trainings that tests start, kill on the way, and compare at their ends."""

import hashlib
from functools import reduce
from pathlib import Path

import pytest

from ddpm_unet.config import DenoiseConfig
from ddpm_unet.training.denoise import DenoiseJob
from ddpm_unet.training.from_config import build_denoise_job, build_pixel_job
from ddpm_unet.training.loop import train
from ddpm_unet.training.pixelwise import PixelwiseJob
from ddpm_unet.training.run_folder import RunFolder


class Killed(BaseException):
    """Stands for SIGKILL: nothing is written any more."""


def change(settings, changes):
    """The settings, in place, with others by their dotted names."""
    for name, value in changes.items():
        *groups, last = name.split(".")
        setattr(reduce(getattr, groups, settings), last, value)
    return settings


def build(settings, kind=None):
    """The job of the settings, of a class of its own if one is given."""
    if isinstance(settings, DenoiseConfig):
        return build_denoise_job(settings, kind or DenoiseJob)
    return build_pixel_job(settings, kind or PixelwiseJob)


def run(settings, job=None):
    """Train, and give the run's folder."""
    folder = RunFolder(Path(settings.run))
    train(job or build(settings), folder, settings)
    return folder


def kill(settings, batches, kind=None):
    """Train until the job dies at its n-th micro-batch."""
    kind = kind or type(build(settings))

    class Dying(kind):
        left = batches

        def losses(self, model, batch):
            self.left -= 1
            if self.left == 0:
                raise Killed
            return super().losses(model, batch)

    with pytest.raises(Killed):
        run(settings, build(settings, Dying))


def files(folder):
    """Digest of every file that a run is judged by."""
    parts = [p for name in ("model", "checkpoints", "samples", "averages")
             for p in (folder.path / name).rglob("*.*") if p.is_file()]  # fmt: skip
    return {
        str(path.relative_to(folder.path)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*parts, folder.metrics]
    }

"""What stays float32 under lower precision, and what becomes of numbers that are not finite."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from short_runs import run

from ddpm_unet.errors import UserError
from ddpm_unet.training import loop
from ddpm_unet.training.checkpoint import checkpoint_paths, read_checkpoint
from ddpm_unet.training.denoise import DenoiseJob
from ddpm_unet.training.from_config import build_denoise_job
from ddpm_unet.training.run_folder import RunFolder


class Watched(DenoiseJob):
    """Keeps the types of everything that passes."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.seen = {}

    def losses(self, model, batch):
        denoise = self.diffusion.losses

        def watched(denoiser, images, timesteps, noise, **options):
            def inner(noisy, t):
                prediction = denoiser(noisy, t)
                self.seen |= {"noisy": noisy.dtype, "prediction": prediction.dtype}
                return prediction

            self.seen["noise"] = noise.dtype
            return denoise(inner, images, timesteps, noise, **options)

        self.diffusion.losses = watched
        convolution = model.get_submodule("conv_in")
        handle = convolution.register_forward_hook(
            lambda module, inputs, output: self.seen.update(inside=output.dtype)
        )
        losses = super().losses(model, batch)
        handle.remove()
        self.diffusion.losses = denoise
        self.seen["loss"] = losses.dtype
        return losses


def end(settings):
    return read_checkpoint(checkpoint_paths(Path(settings.run) / "checkpoints")[-1])


def assert_float32(tensors):
    kinds = {t.dtype for group in tensors.values() for t in group.values()}
    assert kinds == {torch.float32}


def test_bf16_is_for_the_network_only(settings):
    settings.train = dataclasses.replace(settings.train, steps=2, mixed_precision="bf16")
    job = build_denoise_job(settings, Watched)
    run(settings, job)
    assert job.seen.pop("inside") == torch.bfloat16
    assert set(job.seen) == {"noisy", "prediction", "noise", "loss"}
    assert set(job.seen.values()) == {torch.float32}
    assert_float32(end(settings)[0])


def test_fp16_without_a_gpu_is_refused(settings):
    settings.train.mixed_precision = "fp16"
    if not torch.accelerator.is_available():
        with pytest.raises(UserError, match="fp16: needs a GPU"):
            run(settings)


@pytest.fixture
def fp16(monkeypatch):
    """What a GPU gets under fp16, autocast and a loss scale, on the CPU. The scale is far too
    large, so that gradients overflow until it has been halved often enough.
    """

    def open_accelerator(config, tracker, folder):
        accelerator = Accelerator(cpu=True, mixed_precision="fp16")
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
        return accelerator, None

    monkeypatch.setattr(loop, "open_accelerator", open_accelerator)


def test_steps_that_overflow_under_fp16_are_left_out_and_counted(settings, fp16, tmp_path):
    job = build_denoise_job(settings, Watched)
    run(settings, job)
    assert job.seen.pop("inside") == torch.float16
    assert set(job.seen.values()) == {torch.float32}
    tensors, state = end(settings)
    assert_float32(tensors)
    assert 3 < state["skipped"] < 14
    assert state["scaler"]["scale"] == 2.0 ** (22 - state["skipped"])
    assert all(t.isfinite().all() for group in tensors.values() for t in group.values())
    steps = tensors["optimizer"]["conv_in.weight/step"]
    assert int(steps) == 14 - state["skipped"]
    records = RunFolder(Path(settings.run)).read_metrics()
    assert all(np.isfinite(r["loss"]) for r in records if "loss" in r)

    # A run stopped in between goes on with the same scale.
    settings.run = str(tmp_path / "stopped")
    settings.train.steps = 5
    run(settings)
    settings.train.steps = 14
    run(settings)
    again = end(settings)
    assert again[1]["scaler"] == state["scaler"]

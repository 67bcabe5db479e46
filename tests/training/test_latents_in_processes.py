"""Latents that two processes (gloo, on the CPU) encode are those of one."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from forked import distance, finish, in_processes
from small import AUTOENCODER

from ddpm_unet.models.autoencoder import Autoencoder
from ddpm_unet.training.from_config import build_denoise_job
from ddpm_unet.training.loop import train
from ddpm_unet.training.run_folder import RunFolder


@pytest.fixture
def latent(settings, tmp_path):
    """A training in latents of 4 x 4 x 4 of 48 windows, three batches of the encoder."""
    torch.manual_seed(0)
    AutoencoderKL(**AUTOENCODER).save_pretrained(tmp_path / "autoencoder")
    settings.latent = replace(
        settings.latent, autoencoder=str(tmp_path / "autoencoder"), epochs=2, sample=False
    )
    settings.model.in_channels = settings.model.out_channels = 4
    settings.model.dropout = 0.0
    settings.train = replace(settings.train, steps=4, validate_every=4, sample_every=4)
    return settings


def start(latent, folder: Path):
    """What trains, with a cache of its own."""
    cache = replace(latent.latent, cache=str(folder / "cache"))
    settings = replace(latent, run=str(folder / "run"), latent=cache)
    return lambda: train(build_denoise_job(settings), RunFolder(folder / "run"), settings)


def test_two_processes_encode_as_one_does(latent, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    start(latent, one)()
    finish(in_processes(2, start(latent, two)))
    found = [{p.name: p.read_bytes() for p in (f / "cache").iterdir()} for f in (one, two)]
    assert len(found[0]) >= 1
    assert found[0] == found[1]
    assert distance(one / "run", two / "run") < 1e-4


def test_a_fault_of_one_that_encodes_ends_both_and_leaves_nothing(latent, tmp_path, monkeypatch):
    encode = Autoencoder.encode

    def broken(self, images):
        mean, deviation = encode(self, images)
        return mean * (torch.nan if os.environ.get("RANK") == "1" else 1), deviation

    monkeypatch.setattr(Autoencoder, "encode", broken)
    processes = in_processes(2, start(latent, tmp_path))
    assert [process.wait() for process in processes] == [2, 2]
    assert "has latents that are not finite" in processes[1].said
    assert "another process of this run has ended" in processes[0].said
    assert list((tmp_path / "cache").iterdir()) == []

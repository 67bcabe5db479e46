"""Several processes (gloo, on the CPU) do what one does, and none is ever left waiting."""

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from forked import distance, finish, in_processes, stored
from PIL import Image
from safetensors.torch import load_file

from ddpm_unet.config import PairDataConfig, SegmentConfig
from ddpm_unet.errors import UserError
from ddpm_unet.training import checkpoint
from ddpm_unet.training.checkpoint import checkpoint_paths, write_checkpoint
from ddpm_unet.training.denoise import DenoiseJob
from ddpm_unet.training.distributed import merge_rows
from ddpm_unet.training.from_config import build_denoise_job, build_pixel_job
from ddpm_unet.training.loop import train
from ddpm_unet.training.pixelwise import PixelwiseJob
from ddpm_unet.training.run_folder import RunFolder

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr("ddpm_unet.training.distributed.SECONDS_FOR_LAST_WORDS", 0.2)


@pytest.fixture(params=["denoise", "segment"])
def job(request, settings, blobs, tmp_path):
    """Job class and settings: shares of 2 and 3 images in 1 and 2 passes."""
    settings.model.dropout = 0.0
    settings.train = replace(
        settings.train, steps=6, batch_size=5, micro_batch=2, checkpoint_every=3,
        validate_every=3, sample_every=6, log_every=3,
    )  # fmt: skip
    if request.param == "denoise":
        return DenoiseJob, settings
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in blobs.glob("*.png"):
        mask = np.asarray(Image.open(path)).sum(-1) > 200
        Image.fromarray(mask.astype(np.uint8)).save(masks / path.name)
    pairs = PairDataConfig(images=str(blobs), masks=str(masks), size=8)
    return PixelwiseJob, SegmentConfig(
        init="scratch", data=pairs, model=settings.model, train=settings.train
    )


def start(job, folder: Path, steps: int = 6) -> Callable[[], object]:
    kind, settings = job
    settings = replace(settings, run=str(folder), train=replace(settings.train, steps=steps))
    build = build_denoise_job if issubclass(kind, DenoiseJob) else build_pixel_job
    return lambda: train(build(settings, kind), RunFolder(folder), settings)


def test_two_processes_train_as_one_does(job, tmp_path):
    start(job, tmp_path / "one")()
    finish(in_processes(2, start(job, tmp_path / "two")))
    assert distance(tmp_path / "one", tmp_path / "two") < 1e-4
    if job[0] is PixelwiseJob:
        return
    # and a run may go on with another number of them
    start(job, tmp_path / "more", steps=3)()
    finish(in_processes(2, start(job, tmp_path / "more")))
    finish(in_processes(2, start(job, tmp_path / "fewer", steps=3)))
    start(job, tmp_path / "fewer")()
    for name in ("more", "fewer"):
        assert distance(tmp_path / "one", tmp_path / name) < 1e-4


def assert_sharded(network: torch.nn.Module) -> None:
    """All parameters are DTensors, and this process has about half of each state."""
    from torch.distributed.tensor import DTensor

    parameters = list(network.parameters())
    assert all(isinstance(p, DTensor) for p in parameters)
    sizes = [(p.numel(), p.to_local().numel()) for p in parameters]
    whole, own = (sum(numbers) for numbers in zip(*sizes, strict=True))
    assert 0.4 * whole < own < 0.6 * whole
    gathered = [m for m in network.modules() if isinstance(m, torch.distributed.fsdp.FSDPModule)]
    assert len(gathered) > 3  # the blocks, and not the network alone


@pytest.mark.parametrize("settle", ["", "bf16", "recompute and rmsprop"])
def test_sharded_weights_train_as_one_process_does(job, tmp_path, settle):
    kind, settings = job
    if bool(settle) == (kind is PixelwiseJob):
        pytest.skip("the networks are the same")
    changes = {
        "bf16": {"mixed_precision": "bf16"},
        "recompute and rmsprop": {
            "gradient_checkpointing": True, "optimizer": "rmsprop", "ema_sigma_rel": (0.05,),
            "ema_every": 3,
        },
    }  # fmt: skip
    settings.train = replace(settings.train, **changes.get(settle, {}))
    start(job, tmp_path / "one")()

    def sharded(steps: int) -> None:
        found = []

        class Watched(kind):
            def losses(self, model, batch):
                found.append(model)
                return super().losses(model, batch)

        start((Watched, settings), tmp_path / "split", steps)()
        assert_sharded(found[-1])

    finish(in_processes(2, lambda: sharded(3), **SHARDED))
    finish(in_processes(2, lambda: sharded(6), **SHARDED))
    assert distance(tmp_path / "one", tmp_path / "split") < (2e-2 if settle == "bf16" else 1e-4)
    exported = [load_weights(tmp_path / run / "model") for run in ("one", "split")]
    assert exported[0].keys() == exported[1].keys()


def test_checkpoints_of_shards_go_on_with_another_number_of_processes(denoise, tmp_path):
    """Two processes under FSDP2, of which each writes its half."""
    kind, settings = denoise
    settings.train = replace(settings.train, checkpoint_every=1, keep_checkpoints=9, log_every=2)
    start(denoise, tmp_path / "one", 4)()
    settings.train = replace(settings.train, sharded_above=0)

    class Watched(kind):
        def losses(self, model, batch):
            assert_sharded(model)
            return super().losses(model, batch)

    def two(run: str, steps: int) -> None:
        finish(in_processes(2, start((Watched, settings), tmp_path / run, steps), **SHARDED))

    two("fewer", 2)
    parts = checkpoint_paths(tmp_path / "fewer" / "checkpoints")[-1]
    files = sorted(path.stat().st_size for path in parts.glob("*.safetensors"))
    assert len(files) == 2
    assert files[1] < 1.3 * files[0]
    start(denoise, tmp_path / "fewer", 4)()
    start(denoise, tmp_path / "more", 2)()
    two("more", 4)
    for run in ("fewer", "more"):
        assert distance(tmp_path / "one", tmp_path / run) < 1e-4
    # what one process wrote are the weights of that step, not those of a step later
    many = [checkpoint_paths(tmp_path / run / "checkpoints")[:2] for run in ("one", "more")]
    for whole, shards in zip(*many, strict=True):
        a, b = stored(whole), stored(shards)
        assert a.keys() == b.keys()
        for group in a:
            assert all(torch.equal(a[group][n], b[group][n]) for n in a[group].keys() | b[group])


def test_a_killed_run_finds_only_complete_checkpoints_of_shards(denoise, tmp_path, monkeypatch):
    kind, settings = denoise
    settings.train = replace(settings.train, steps=400, checkpoint_every=2, sharded_above=0)
    publish = checkpoint._publish

    def slow(*arguments):
        time.sleep(0.5)
        publish(*arguments)

    monkeypatch.setattr(checkpoint, "_publish", slow)
    processes = in_processes(2, start((kind, settings), tmp_path), **SHARDED)
    place = tmp_path / "checkpoints"
    deadline = time.monotonic() + 60
    while not (checkpoint_paths(place) and list(place.glob(".*.partial/*.safetensors"))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    assert [process.wait() for process in processes] == [-signal.SIGKILL] * 2
    last = int(checkpoint_paths(place)[-1].name)
    assert list(place.glob(".*.partial"))
    monkeypatch.undo()
    monkeypatch.setattr("ddpm_unet.training.loop.plot_metrics", lambda records, path: None)
    start((kind, settings), tmp_path, last + 1)()
    assert not list(place.glob(".*.partial"))
    assert int(checkpoint_paths(place)[-1].name) == last + 1


def test_shards_on_a_full_disk_are_said_in_one_line(denoise, tmp_path, monkeypatch):
    kind, settings = denoise
    settings.train = replace(settings.train, steps=2, checkpoint_every=1, sharded_above=0)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem._write_item", full)
    processes = in_processes(2, start((kind, settings), tmp_path), **SHARDED)
    assert [process.wait() for process in processes] == [2, 2]
    assert "could not be written (No space left on device); free disk space" in processes[0].said
    assert not list((tmp_path / "checkpoints").iterdir())


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.name}/{name}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


@pytest.fixture
def denoise(settings):
    settings.model.dropout = 0.0
    settings.train = replace(settings.train, steps=500, batch_size=4, validate_every=0)
    return DenoiseJob, settings


def test_a_fault_of_the_main_process_ends_all(denoise, tmp_path):
    holder = RunFolder(tmp_path)
    holder.claim(denoise[1], "auto")
    processes = in_processes(2, start(denoise, tmp_path))
    assert [process.wait() for process in processes] == [2, 2]
    assert "another run is using this folder" in processes[0].said
    assert "error" not in processes[1].said


def test_a_fault_of_another_process_ends_all(denoise, tmp_path):
    class Faulty(DenoiseJob):
        def losses(self, model, batch):
            if os.environ["RANK"] == "1" and int(batch["position"][0]) > 12:
                raise UserError("03.png: is damaged")
            return super().losses(model, batch)

    processes = in_processes(2, start((Faulty, denoise[1]), tmp_path / "run"))
    codes = [process.wait() for process in processes]
    assert codes == [2, 2]
    assert "error: 03.png: is damaged" in processes[1].said
    assert "another process of this run has ended" in processes[0].said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_process_stops_all_after_the_same_step(denoise, tmp_path, number):
    processes = in_processes(2, start(denoise, tmp_path))
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() or not metrics.stat().st_size:
        assert time.monotonic() < deadline, "no step was logged"
        time.sleep(0.01)
    os.kill(processes[1].pid, number)
    assert [process.wait() for process in processes] == [128 + number] * 2
    stopped = int(checkpoint_paths(tmp_path / "checkpoints")[-1].name)
    assert 0 < stopped < 500
    assert f"stopped after step {stopped}" in processes[0].said
    assert "stopped" not in processes[1].said


def test_a_slow_disk_of_the_main_process_ends_no_collective(denoise, tmp_path, monkeypatch):
    kind, settings = denoise
    settings.train = replace(settings.train, steps=1, timeout=0.1)

    def slow(*arguments):
        time.sleep(6.5)
        return write_checkpoint(*arguments)

    monkeypatch.setattr("ddpm_unet.training.loop.write_checkpoint", slow)
    finish(in_processes(2, start((kind, settings), tmp_path)))


def test_rows_are_merged_bit_for_bit():
    rows = torch.linspace(-1, 1, 21, dtype=torch.float64).reshape(7, 3)

    def work() -> None:
        accelerator = Accelerator(cpu=True)
        numbers = [[0, 1, 4, 5], [2, 3, 6], []][accelerator.process_index]
        assert torch.equal(merge_rows(rows[numbers], numbers, 7, accelerator), rows)

    finish(in_processes(3, work))

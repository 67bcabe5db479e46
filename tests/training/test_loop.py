import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from short_runs import files, kill, run
from tifffile import imwrite

from ddpm_unet.config import DenoiseConfig
from ddpm_unet.config.reading import read_settings
from ddpm_unet.errors import UserError
from ddpm_unet.training.checkpoint import checkpoint_paths, read_checkpoint, write_checkpoint
from ddpm_unet.training.denoise import DenoiseJob
from ddpm_unet.training.distributed import StopRequest
from ddpm_unet.training.from_config import build_denoise_job
from ddpm_unet.training.run_folder import RunFolder


def end_state(folder):
    return read_checkpoint(checkpoint_paths(folder.checkpoints)[-1])


@pytest.mark.parametrize("micro_batches", [11, 27])
def test_killed_anywhere_and_resumed_ends_bit_for_bit_the_same(settings, whole, micro_batches):
    kill(settings, micro_batches)
    assert files(run(settings)) == whole


def killed_at_flush(settings, number):
    """Train in a fork that kills itself at its n-th flush to the disk, of which every checkpoint
    has eight: metrics, five files, the folder, the name; the exit status.
    """
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    flush, left = os.fsync, number

    def fsync(descriptor):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(descriptor)

    try:
        os.fsync = fsync
        run(settings)
    finally:
        os._exit(1)


def test_killed_while_a_checkpoint_is_written(settings, whole):
    checkpoints = RunFolder(Path(settings.run)).checkpoints
    for flush, kept in ((4, []), (8, [5]), (8, [5, 10]), (6, [5, 10])):
        assert killed_at_flush(settings, flush) == -signal.SIGKILL
        assert [int(path.name) for path in checkpoint_paths(checkpoints)] == kept
    assert list(checkpoints.glob(".*.partial"))
    assert files(run(settings)) == whole
    assert not list(checkpoints.glob(".*.partial"))


def test_a_signal_that_a_launcher_repeats_does_not_end_the_writing():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.received == signal.SIGINT
        request._first -= 10
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_sigterm_writes_a_checkpoint_first(settings, whole, capsys):
    class Stopped(DenoiseJob):
        calls = 0

        def losses(self, model, batch):
            self.calls += 1
            if self.calls == 13:  # in the seventh step of two micro-batches
                os.kill(os.getpid(), signal.SIGTERM)
            return super().losses(model, batch)

    with pytest.raises(SystemExit) as stop:
        run(settings, build_denoise_job(settings, Stopped))
    assert stop.value.code == 128 + signal.SIGTERM
    assert "the same command goes on" in capsys.readouterr().out
    assert checkpoint_paths(RunFolder(Path(settings.run)).checkpoints)[-1].name == "00000007"
    assert files(run(settings)) == whole


def test_stopped_before_the_first_step(settings, whole):
    class Stopped(DenoiseJob):
        def describe(self):
            os.kill(os.getpid(), signal.SIGINT)
            return super().describe()

    with pytest.raises(SystemExit):
        run(settings, build_denoise_job(settings, Stopped))
    assert files(run(settings)) == whole


def test_the_split_of_a_batch_changes_nothing_but_rounding(settings, tmp_path):
    settings.model.dropout = 0.0
    ends = []
    for micro_batch in (0, 4):
        settings.run = str(tmp_path / str(micro_batch))
        settings.train.micro_batch = micro_batch
        ends.append(end_state(run(settings))[0])
    for group in ("model", "ema"):
        for name, value in ends[0][group].items():
            torch.testing.assert_close(value, ends[1][group][name], rtol=1e-3, atol=1e-5)


def test_a_finished_run_is_left_as_it_is_and_fewer_steps_than_were_done_are_done(settings, capsys):
    settings.train.steps = 10
    before = files(run(settings))
    assert files(run(settings)) == before
    settings.train.steps = 5
    assert files(run(settings)) == before
    said = capsys.readouterr().out
    assert "the run has done 10 steps, and train.steps is 5" in said
    assert "stopped" not in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("touch", None), ("remove", "come in another order"), ("rename", "come in another order"),
        ("paint", "files have other contents"),
    ],
)  # fmt: skip
def test_other_data_are_said_when_a_run_goes_on(settings, blobs, tmp_path, capsys, change, said):
    settings.data.source = str(tmp_path / "data")
    shutil.copytree(blobs, tmp_path / "data")
    settings.train.steps = 1
    run(settings)
    capsys.readouterr()
    path = tmp_path / "data" / "23.png"
    with Image.open(path) as image:
        changed = ImageOps.invert(image.convert("RGB"))
    if change in ("remove", "rename"):
        path.unlink()
    if change != "remove":
        name = "24.png" if change == "rename" else "23.png"
        (changed if change == "paint" else ImageOps.invert(changed)).save(tmp_path / "data" / name)
    settings.train.steps = 2
    run(settings)
    found = [line for line in capsys.readouterr().out.splitlines() if "the data have" in line]
    assert len(found) == (said is not None)
    assert not found or found[0].endswith(said)


def test_a_checkpoint_of_another_version_is_refused_by_name(settings):
    settings.train.steps = 5
    folder = run(settings)
    newest = checkpoint_paths(folder.checkpoints)[-1]
    tensors, numbers = read_checkpoint(newest)
    model, optimizer = tensors["model"], tensors["optimizer"]
    bias = model["conv_in.bias"]
    settings.train.steps = 6

    def refuse(words, tensors=tensors, numbers=numbers):
        write_checkpoint(folder.checkpoints, 5, tensors, numbers)
        with pytest.raises(UserError, match=f"{newest}: {words}, so another version") as caught:
            run(settings)
        assert "\n" not in str(caught.value)

    for name in ("nonfinite", "metrics_size"):
        refuse(f"has no {name}", numbers={k: v for k, v in numbers.items() if k != name})
    for group in (
        {k: v for k, v in model.items() if k != "conv_in.bias"},
        model | {"conv_in.bias": bias[:1].clone()},
    ):
        refuse(
            "has not the model's conv_in.bias of this network", tensors=tensors | {"model": group}
        )
    refuse(
        "has not the ema's new of this network",
        tensors=tensors | {"ema": tensors["ema"] | {"new": bias}},
    )
    refuse("has an optimizer of new/step", tensors | {"optimizer": optimizer | {"new/step": bias}})
    write_checkpoint(folder.checkpoints, 5, tensors, numbers)
    run(settings)


@pytest.mark.curves
def test_the_run_folder_holds_what_it_should(settings, capsys):
    settings.train.sample_every = 14
    finished = run(settings)
    assert "dropout: of each pass of up to 4 images, so another" in capsys.readouterr().out
    records = finished.read_metrics()
    assert [r["step"] for r in records if "loss" in r] == [3, 6, 9, 12, 14]
    assert all(r["images"] == 6 * r["step"] for r in records)
    assert set(records[0]) == {"step", "images", "loss", "grad_norm", "lr", "skipped"}
    folder = finished.path
    assert (folder / "samples" / "00000014.png").stat().st_size > 100
    assert (folder / "loss.png").stat().st_size > 1000
    assert [p.name for p in checkpoint_paths(folder / "checkpoints")] == ["00000010", "00000014"]
    weights = load_file(folder / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    ema = read_checkpoint(folder / "checkpoints" / "00000014")[0]["ema"]
    assert all(torch.equal(weights[name], ema[name]) for name in weights)


class PoisonedJob(DenoiseJob):
    """Gives a non-finite loss in chosen steps."""

    steps: tuple[int, ...] = ()
    seen = 0

    def losses(self, model, batch):
        step = self.seen // 2
        self.seen += 1
        losses = super().losses(model, batch)
        return losses * float("nan") if step in self.steps else losses


def test_three_bad_losses_in_a_row_stop_the_run(settings):
    job = build_denoise_job(settings, PoisonedJob)
    job.steps = (6, 7, 8, 9, 10)
    with pytest.raises(UserError, match=r"stream position 36 .*\.png\); the last good checkpoint"):
        run(settings, job)
    tensors, state = end_state(RunFolder(Path(settings.run)))
    assert state["step"] == 5
    assert all(value.isfinite().all() for value in tensors["model"].values())


@pytest.mark.parametrize("volumes", [False, True])
def test_the_network_takes_from_the_data_what_is_not_set(settings, tmp_path, volumes):
    """Grey images or volumes in two classes, with condition dropout: no setting of the network."""
    shape = (8,) * (2 + volumes)
    for i in range(4):
        (tmp_path / f"grey/{i % 2}").mkdir(parents=True, exist_ok=True)
        imwrite(tmp_path / f"grey/{i % 2}/{i}.tif", np.full(shape, 40 * i, np.uint8))
    flags = ["--data.source", str(tmp_path / "grey"), "--data.class_labels", "true"]
    flags += ["--data.size", "8", "--condition_dropout", "0.1", "--data.dims", str(len(shape))]
    read, _ = read_settings(DenoiseConfig, None, flags)
    config = build_denoise_job(read).build_model().config
    found = config.in_channels, config.out_channels, config.dims, config.num_class_embeds
    assert found == (1, 1, len(shape), 3)
    read.model.in_channels = 3
    with pytest.raises(
        UserError,
        match=r"model\.in_channels = 3: .* the images' 1 channels; set it to 1",
    ):
        build_denoise_job(read).build_model()


def test_numbers_and_images_go_to_tensorboard(settings):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings.tracker, settings.train.steps, settings.train.sample_every = "tensorboard", 3, 3
    folder = run(settings)
    (events,) = folder.path.glob("run/events.*")
    read = accumulator.EventAccumulator(str(events))
    read.Reload()
    assert [event.step for event in read.Scalars("loss")] == [3]
    (image,) = read.Images("samples")
    with Image.open(folder.samples / "00000003.png") as drawn:
        assert (image.step, image.width, image.height) == (3, *drawn.size)


def test_numbers_and_images_go_to_wandb(settings, tmp_path, monkeypatch):
    """Of a run without a network, as `wandb sync` would send it."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings.tracker, settings.train.steps, settings.train.sample_every = "wandb", 3, 3
    logged, real = [], wandb.Run.log
    monkeypatch.setattr(
        wandb.Run, "log", lambda own, *a, **k: [logged.append((a, k)), real(own, *a, **k)][1]
    )
    folder = run(settings)
    assert wandb.run is None  # it has ended
    (written,) = tmp_path.glob("wandb/offline-run-*")
    assert [file for file in written.glob("*.wandb") if file.stat().st_size > 0]
    (image,) = written.glob("files/media/images/samples_3_*.png")
    with Image.open(folder.samples / "00000003.png") as drawn, Image.open(image) as sent:
        np.testing.assert_array_equal(np.asarray(drawn.convert("RGB")), np.asarray(sent))
    numbers = [values[0] for values, _ in logged if "loss" in values[0]]
    assert numbers[-1]["loss"] == folder.read_metrics()[0]["loss"]

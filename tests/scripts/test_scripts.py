"""The scripts as a person runs them, on files that take seconds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from in_process import done
from PIL import Image
from small import SMALL

from ddpm_unet import cli
from ddpm_unet.commands import shared

SCRIPTS = Path(__file__).parents[2] / "scripts"
UNET = {name: list(v) if isinstance(v, tuple) else v for name, v in SMALL.items()}
TRAIN = {"steps": 4, "batch_size": 2, "warmup_steps": 1, "checkpoint_every": 2, "validate_every": 2,
         "sample_every": 4}  # fmt: skip


def script(name, *arguments, cwd):
    """Run a script in a folder; its output, after it ended well."""
    before = Path.cwd()
    os.chdir(cwd)
    try:
        return done(name, *arguments)
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with images, masks and a trained denoiser and segmenter of them."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (home / name).mkdir()
    for number in range(4):
        image = rng.integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(image).save(home / "images" / f"{number}.png")
        mask = (image[..., 0] > 127).astype(np.uint8) * 255
        Image.fromarray(mask).save(home / "masks" / f"{number}.png")
    settings = {"data": {"source": "images", "size": 16}, "model": UNET, "train": TRAIN}
    settings["preview"] = {"num_images": 2, "steps": 2}
    (home / "tiny.yaml").write_text(yaml.safe_dump(settings))
    data = {"images": "images", "masks": "masks", "size": 16, "scale": 0.5}
    settings = {"data": data, "train": TRAIN, "predict": {"tile": 96}}
    settings["data"]["split"] = {"validation": 1, "test": 1}
    (home / "cells.yaml").write_text(yaml.safe_dump(settings))
    script("train_ddpm.py", "--config", "tiny.yaml", cwd=home)
    return home


@pytest.fixture(scope="module")
def trained(home):
    """The same, after training a segmenter from the newest run."""
    output = script("train_seg.py", "--config", "cells.yaml", cwd=home)
    return home, output


def test_training_to_denoise_fills_the_run_folder(home):
    run = home / "runs" / "tiny"
    for name in ("config.yaml", "metrics.jsonl", "loss.png", "samples/00000004.png"):
        assert (run / name).stat().st_size > 50
    assert (run / "model" / "model_index.json").is_file()
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["00000002", "00000004"]


def test_sampling_from_the_newest_run(home):
    job = ("--num_images", 5, "--batch_size", 2, "--steps", 7)
    output = script("sample.py", *job, "--size", 48, 80, "--film", 6, cwd=home)
    assert "5 images of 3x48x80 from runs/tiny/model, 7 ddpm steps" in output
    out = home / "generated"
    assert sorted(p.name for p in out.iterdir()) == [
        *(f"{i:05d}.png" for i in range(5)), "film.png", "grid.png", "settings.json",
    ]  # fmt: skip
    assert Image.open(out / "00004.png").size == (80, 48)
    assert Image.open(out / "film.png").size == (2 * (6 * 82 + 2), 2 * (2 * 50 + 2))


def test_training_to_segment_from_the_newest_denoiser(trained):
    home, output = trained
    assert output.count("masks: 0, 255: read as values") == 1
    assert re.search(r"on 1 test \w+\(s\):\n +mean_dice", output)
    run = home / "runs" / "cells"
    assert yaml.safe_load((run / "config.yaml").read_text())["init"] == "runs/tiny/model"
    for name in ("scores.json", "test.png", "split.yaml", "model/preprocessing.json"):
        assert (run / name).is_file()


def test_segmenting_a_folder_and_a_deep_stack(trained):
    home, _ = trained
    stack = np.random.default_rng(0).integers(0, 2**16, (2, 150, 130, 3), np.uint16)
    tifffile.imwrite(home / "stack.tif", stack, photometric="rgb")
    arguments = ("images", "stack.tif", "--out", "found", "--probabilities", "tiff", "--tile", "96")
    output = script("segment.py", *arguments, cwd=home)
    assert "5 image(s) with runs/cells/model" in output
    assert "stack.tif: value 0" in output
    found = {p.name for p in (home / "found").iterdir()}
    assert {"0_mask.png", "3_overlay.png", "3_probabilities.tif", "stack_mask.tif"} <= found
    mask = tifffile.imread(home / "found" / "stack_mask.tif")
    probabilities = tifffile.imread(home / "found" / "stack_probabilities.tif")
    assert (mask.shape, probabilities.shape) == ((2, 150, 130), (2, 2, 150, 130))
    np.testing.assert_array_equal(probabilities.argmax(axis=1), mask)
    assert Image.open(home / "found" / "0_mask.png").size == (48, 40)


def test_the_check_alone(home, monkeypatch, capsys):
    same = ("--data.images", "images", "--data.masks", "masks", "--data.size", "16")
    monkeypatch.chdir(home)
    cli.run("check", [*same, "--data.scale", "0.5"])
    output = capsys.readouterr().out
    assert output.endswith("no fault found\n")
    cli.run("train-seg", ["--config", "cells.yaml", "--check"])
    assert capsys.readouterr().out == output


@pytest.mark.parametrize(
    ("name", "arguments", "cure"),
    [
        ("sample", [], "train one with scripts/train_ddpm.py, or give --model"),
        ("segment", ["a.png"], "train one with scripts/train_seg.py, or give --model"),
    ],
)
def test_without_any_model_the_cure_is_told(name, arguments, cure, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shared, "SAMPLES", Path("shipped"))
    with pytest.raises(SystemExit) as stop:
        cli.run(name, arguments)
    said = capsys.readouterr().err.strip()
    assert (stop.value.code, said[-len(cure) :]) == (2, cure)
    assert said.startswith("error: no model in runs/*/model nor in shipped/")


def test_a_sampling_job_goes_on_where_it_stopped(home, monkeypatch, capsys):
    """Images of the same settings are kept, those of others drawn anew."""
    monkeypatch.chdir(home)
    job = ["--num_images", "5", "--batch_size", "2", "--steps", "2", "--out", "again"]
    cli.run("sample", job)
    whole = {path.name: path.read_bytes() for path in Path("again").glob("0*.png")}
    for name in ("00002.png", "00003.png", "00004.png"):
        Path("again", name).unlink()
    kept = Path("again/00000.png").stat().st_mtime_ns
    capsys.readouterr()
    cli.run("sample", job)
    assert "2 of them there already" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in Path("again").glob("0*.png")} == whole
    assert Path("again/00000.png").stat().st_mtime_ns == kept
    cli.run("sample", [*job, "--seed", "1"])
    assert Path("again/00000.png").read_bytes() != whole["00000.png"]
    cli.run("sample", [*job, "--npz"])
    shards = sorted(path.name for path in Path("again").glob("*.npz"))
    assert shards == ["00000-00001.npz", "00002-00003.npz", "00004-00004.npz"]
    first = np.load("again/00000-00001.npz")["arr_0"]
    assert first.shape == (2, 16, 16, 3)
    assert not list(Path("again").glob("0*.png"))  # which evaluate would count too
    cli.run("sample", [*job, "--npz", "--num_images", "2"])
    assert [path.name for path in Path("again").glob("*.npz")] == ["00000-00001.npz"]


def test_several_processes_share_the_files(trained):
    """Two processes of torchrun segment what one does; other commands are tried forked."""
    home, _ = trained
    script("segment.py", "images", "--out", "one", "--tile", "96", cwd=home)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--"]
    command = [*launch, SCRIPTS / "segment.py", "images", "--out", "two", "--tile", "96"]
    result = subprocess.run(
        [sys.executable, *command], cwd=home, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for path in (home / "one").iterdir():
        assert (home / "two" / path.name).read_bytes() == path.read_bytes()


def test_a_reader_that_leaves_does_not_stop_the_work(trained):
    """As with `| head -1`: all files are written, and the status is that of SIGPIPE."""
    home, _ = trained
    script = SCRIPTS / "segment.py"
    process = subprocess.Popen(
        [sys.executable, "-u", script, "images", "--out", "piped", "--tile", "96"],
        cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 141, error
    assert "Traceback" not in error
    assert len(list((home / "piped").glob("*_mask.png"))) == 4

"""The scripts as a person runs them, on files that take seconds."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from ddpm_unet.command_line import user_errors

SCRIPTS = Path(__file__).parents[2] / "scripts"
UNET = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
TRAIN = {
    "steps": 4,
    "batch_size": 2,
    "warmup_steps": 1,
    "checkpoint_every": 2,
    "validate_every": 2,
    "sample_every": 4,
}


def script(name, *arguments, cwd):
    """Run a script, or a module; its output, after it ended well."""
    target = [SCRIPTS / name] if name.endswith(".py") else ["-m", name]
    result = subprocess.run(
        [sys.executable, *target, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


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
        *(f"{i:05d}.png" for i in range(5)), "film.png", "grid.png",
    ]  # fmt: skip
    assert Image.open(out / "00004.png").size == (80, 48)
    assert Image.open(out / "film.png").size == (2 * (6 * 82 + 2), 2 * (2 * 50 + 2))


def test_training_to_segment_from_the_newest_denoiser(trained):
    home, output = trained
    assert output.count("masks: 0, 255: read as values") == 1
    assert "on 1 test picture(s): mean_dice" in output
    run = home / "runs" / "cells"
    assert yaml.safe_load((run / "config.yaml").read_text())["init"] == "runs/tiny/model"
    for name in ("scores.json", "test.png", "split.yaml", "model/preparation.json"):
        assert (run / name).is_file()


def test_segmenting_a_folder_and_a_deep_stack(trained):
    home, _ = trained
    stack = np.random.default_rng(0).integers(0, 2**16, (2, 150, 130, 3), np.uint16)
    tifffile.imwrite(home / "stack.tif", stack, photometric="rgb")
    arguments = ("images", "stack.tif", "--out", "found", "--probabilities", "tiff", "--tile", "96")
    output = script("segment.py", *arguments, cwd=home)
    assert "5 picture(s) with runs/cells/model" in output
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
    output = script("ddpm_unet.data.check", *same, "--data.scale", "0.5", cwd=home)
    assert output.endswith("no fault found\n")
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", ["train_seg.py", "--config", "cells.yaml", "--check"])
    load("train_seg.py").main()
    assert capsys.readouterr().out == output


def load(name):
    """A script as a module of this process, to save the time that imports take."""
    spec = importlib.util.spec_from_file_location("the_script", SCRIPTS / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fault(name, arguments, monkeypatch, capsys):
    """What a script says before it exits with status 2."""
    module = load(name)
    monkeypatch.setattr(module, "SHIPPED", Path("shipped"))
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as stop, user_errors():
        module.main()
    assert stop.value.code == 2
    lines = capsys.readouterr().err.split("\n")
    return next(line for line in lines if line.startswith("error: "))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--sampler dpmm", "unknown sampler 'dpmm': did you mean 'ddpm'?"),
        ("--steps 1001", "1001 sampling steps: give 1 to 1000"),
        ("--steps 0", "0 sampling steps: give 1 to 1000"),
        ("--size 0", "give one positive number, or 2"),
        ("--size 8 8 8", "give one positive number, or 2"),
        ("--num_images 0", "give at least 1 of both"),
        ("--out images/0.png", "images/0.png: cannot be written to"),
        ("--model nowhere", "nowhere does not exist"),
    ],
)
def test_what_cannot_be_sampled(home, arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert message in fault("sample.py", arguments.split(), monkeypatch, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("images/9.png", "images/9.png: no such file or folder"),
        ("runs/tiny/samples tiny.yaml", "tiny.yaml: is not an image"),
        ("images --tile 64", "a tile of at least 96"),
        ("images --model runs/tiny/model", "is a denoiser; train a segmenter from it"),
        ("images --out images", "lies in the output folder"),
    ],
)
def test_what_cannot_be_segmented(trained, arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(trained[0])
    assert message in fault("segment.py", arguments.split(), monkeypatch, capsys)


@pytest.mark.parametrize(
    ("name", "arguments", "cure"),
    [
        ("sample.py", [], "train one with scripts/train_ddpm.py, or give --model"),
        ("segment.py", ["a.png"], "train one with scripts/train_seg.py, or give --model"),
        ("train_seg.py", [], "or give --init DIR or --init scratch"),
    ],
)
def test_without_any_model_the_cure_is_told(name, arguments, cure, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = fault(name, arguments, monkeypatch, capsys)
    assert said.startswith("error: no model in runs/*/model nor in shipped; ")
    assert said.endswith(cure)

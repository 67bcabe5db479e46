"""The scripts of scripts/experiments, smaller than they are meant."""

import json
from dataclasses import replace

import numpy as np
import sampler_table
from in_process import run
from PIL import Image

from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.inference.conditioning import Conditioning
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.models.unet import UNet


def test_the_table_of_samplers_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sampler_table, "PAGE", tmp_path / "samplers.md")
    monkeypatch.setattr(sampler_table, "STEPS", (2, 3))
    monkeypatch.setattr(sampler_table, "SIDE", 4)
    sampler_table.main()
    text = sampler_table.PAGE.read_text()
    assert text.count("| right |") > 20
    assert "| heun | epsilon | yes | | | refused: " in text
    assert "| lcm | epsilon | yes | | | refused: " in text


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

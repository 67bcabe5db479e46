"""From an RGB picture to pairs, a training, predictions, a table and a map of doubt."""

import json
from dataclasses import replace

import in_process
import numpy as np
import pytest
from in_process import run
from PIL import Image
from scipy import ndimage

from ddpm_unet.data.conditioning import ConcatCondition
from ddpm_unet.data.reading import read_image
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.inference.conditioning import Conditioning
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.models.unet import UNet


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random((96, 160, 3)), (2, 2, 0))
    picture = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    Image.fromarray(picture).save("a.png")
    return tmp_path


def done(script, line):
    return in_process.done(script, *line.split())


def test_pan_sharpening_from_a_picture_to_the_table(here):
    made = done("examples/make_pairs.py", "pansharpening a.png --scale 1 --out pairs")
    assert "1 pair(s)" in made
    assert read_image("pairs/train/images/a.tif").shape == (96, 104, 4)
    assert read_image("pairs/test/targets/a.tif").shape == (96, 52, 3)
    shared = "--data.images pairs/train/images --data.masks pairs/train/targets --data.size 16"
    told = done("train_seg.py", f"--task regress {shared} --check")
    assert "targets: 3 channels of uint8" in told
    done(
        "train_seg.py",
        f"--task regress {shared} --run run --architecture classic --init scratch "
        "--classic.padding same --classic.depth 2 --classic.base_width 4 --train.steps 1 "
        "--train.batch_size 2 --train.warmup_steps 0 --data.augment.elastic_sigma 0 "
        "--regression.residual true --data.split.validation 0 --data.split.test 0.3 "
        "--train.sample_every 0 --train.validate_every 0",
    )
    assert set(json.loads((here / "run/scores.json").read_text())) == {
        "psnr", "ssim", "mae", "images"
    }  # fmt: skip
    told = done("segment.py", "--model run/model pairs/test/images --out ours --format png")
    assert "a.tif: mean" in told
    table = done(
        "examples/score_images.py",
        "--targets pairs/test/targets --images pairs/test/images --ratio 4 "
        "bicubic=pairs/test/bicubic brovey=pairs/test/brovey ours=ours",
    )
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert rows[0] == ["| method", "psnr", "ssim", "mae", "sam", "ergas |"]
    scores = {row[0]: float(row[1]) for row in rows[2:]}
    assert scores["| brovey"] > scores["| bicubic"] > 15
    assert Image.open("compare.png").size[0] > 500


def test_many_samples_of_a_tile_and_their_map(here, small_unet):
    done("examples/make_pairs.py", "staining a.png --scale 1 --out pairs")
    config = replace(small_unet, in_channels=2, out_channels=1, sample_size=16)
    write_pipeline(here / "model", UNet(config), GaussianDiffusion())
    place = "--images pairs/test/images --targets pairs/test/targets --tiles 2 --samples 3"
    refused = run("examples/uncertainty.py", f"--model model {place}".split())
    assert refused.status == 2
    Conditioning(image_channels=1, concat_cond=ConcatCondition("image", 1)).write(here / "model")
    told = done("examples/uncertainty.py", f"--model model {place} --steps 2 --sampler ddim")
    assert "2 tiles, 3 samples each" in told
    scores = json.loads((here / "uncertainty/scores.json").read_text())
    assert len(scores["bin_rmse"]) == 10
    assert scores["rmse"] < scores["rmse_of_one_sample"]
    assert all((here / "uncertainty" / name).is_file() for name in ("map.png", "calibration.png"))


@pytest.mark.parametrize(
    ("script", "line", "says"),
    [
        ("examples/make_pairs.py", "staining b.png", "b.png: no such file"),
        ("examples/make_pairs.py", "staining a.png --scale 0.5", "a.png: is under 96 pixels wide"),
        ("examples/score_images.py", "--targets . x=nowhere", "x=nowhere: give name=folder"),
        ("segment.py", "a.png --format gif", "invalid choice: 'gif'"),
        ("train_seg.py", "--task regress", "are masks, not images to predict"),
    ],
)
def test_bad_input_gets_one_line(here, script, line, says):
    outcome = run(script, line.split())
    assert outcome.status == 2
    assert outcome.err.startswith("error: ")
    assert says in outcome.err
    assert outcome.err.count("\n") == 1

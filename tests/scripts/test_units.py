"""Models keep the depth, range and spacing of their training, and answer in them."""

import shlex
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from in_process import done, run
from PIL import Image
from small import write_images

from ddpm_unet import GaussianDiffusion, Predictor, Segmenter, UNet
from ddpm_unet.config import PairDataConfig, SegmentConfig
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.training.from_config import build_pixel_job

ONCE = shlex.split(
    "--train.steps 2 --train.batch_size 2 --train.warmup_steps 0 --train.validate_every 0"
)
CLASSIC = shlex.split(
    "--architecture classic --classic.base_width 2 --classic.depth 2 --classic.padding same "
    "--data.masks masks --data.size 16"
)


@pytest.mark.parametrize(("scale", "spacing"), [(1, 2.0), (0.5, 4.0)])
def test_generated_volumes_have_the_units_and_spacing_of_the_training(
    tmp_path, monkeypatch, scale, spacing
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "volumes").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        values = rng.normal(-200, 150, (24, 20, 28)).clip(-1000, 1000).astype(np.int16)
        image = nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0]))
        image.to_filename(tmp_path / "volumes" / f"{i}.nii.gz")
    (tmp_path / "a.yaml").write_text(
        "data: {source: volumes, size: 8, dims: 3, value_range: [-1000, 1000]}\n"
        "model: {in_channels: 1, out_channels: 1, dims: 3, block_out_channels: [8],\n"
        "  down_block_types: [DownBlock2D], up_block_types: [UpBlock2D], layers_per_block: 1,\n"
        "  norm_num_groups: 4}\ntrain: {sample_every: 0}\n"
    )
    done("train_ddpm.py", "--config", "a.yaml", "--run", "run", "--data.scale", scale, *ONCE)
    job = ["--model", "run/model", "--steps", 2, "--num_images", 1]
    done("sample.py", *job, "--nifti", "--out", "nifti")
    done("sample.py", *job, "--out", "stacks")
    made = nibabel.load(tmp_path / "nifti" / "00000.nii.gz")
    assert made.affine.diagonal().tolist() == [spacing] * 3 + [1]
    values = np.asarray(made.dataobj)
    assert values.dtype == np.float32
    assert -1000 <= values.min() < -500 < 500 < values.max() <= 1000  # noise yet
    with tifffile.TiffFile(tmp_path / "stacks" / "00000.tif") as file:
        np.testing.assert_array_equal(file.asarray(), values.transpose(2, 1, 0))
        assert f'PhysicalSizeZ="{1000 * spacing}"' in file.ome_metadata
        numerator, denominator = file.pages[0].tags["XResolution"].value
        assert numerator / denominator == 10 / spacing


@pytest.mark.parametrize(
    ("spacing", "factor"), [(None, (1, 1)), (0.51, (1, 1)), (0.25, (2, 2)), ((1.0, 0.25), (0.5, 2))]
)
def test_images_of_another_spacing_look_to_the_network_like_those_of_the_training(spacing, factor):
    """A ramp in millimetres is the same ramp at any spacing, and so is what is made of it."""
    unet = UNet(in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4)
    model = Segmenter(unet, num_classes=2).eval()
    predictor = Predictor(model, Preprocessing(1, spacing=(0.5, 0.5)), spacing=spacing)
    lengths = [round(n * f) for n, f in zip((40, 64), factor, strict=True)]
    y, x = (((np.arange(n) + 0.5) / n).astype(np.float32) for n in lengths)
    seen = []

    def network(tiles):
        seen.append(tiles)
        return torch.cat([0 * tiles, tiles], dim=1)

    predictor.network = network
    values = 0.3 * y[:, None] + 0.7 * x
    found = predictor(values[..., None]).probabilities[1]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(1 - 2 * values)), atol=0.01)
    (tiles,) = seen
    for axis, step in ((2, 2 * 0.3 / 40), (3, 2 * 0.7 / 64)):  # reflected at the edges
        assert tiles.diff(dim=axis).abs().median() == pytest.approx(step, rel=0.02)


def test_a_spacing_is_kept_and_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", 3, 32, 32)
    write_images(tmp_path / "masks", 3, 32, 32, most=1)
    small = [*CLASSIC, "--data.images", "images", *ONCE]
    done("train_seg.py", *small, "--data.spacing", "5e-4", "--run", "run")
    assert Preprocessing.read(tmp_path / "run/model", 1).spacing == (5e-4, 5e-4)
    job = ["--model", "run/model", "images/0.png"]
    assert "taken to be of 0.0005 x 0.0005 mm" in done("segment.py", *job, "--out", "a")
    said = done("segment.py", *job, "--out", "b", "--spacing", "25e-5")
    assert "0.png: class 0" in said
    assert "(pixels of 0.00025 x 0.00025 mm, resampled to 0.0005 x 0.0005 mm)" in said
    outcome = run("segment.py", [*job, "--spacing", "0.5"])  # micrometres
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "of the training are of 0.0005 x 0.0005 mm; give spacing in millimetres" in outcome.err
    done("train_seg.py", *small, "--run", "unknown")
    outcome = run("segment.py", ["--model", "unknown/model", "images/0.png", "--spacing", "1"])
    assert outcome.err.startswith("error: spacing: the model does not know that of its training")


def test_a_channel_by_name_from_training_to_the_mask(tmp_path, monkeypatch):
    """What is trained on GFP finds it in files of other channels, at the scale that they say."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder in ("images", "masks", "others"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        values = rng.integers(0, 4000, (2, 32, 32)).astype(np.uint16)
        for place, names, size in (("images", ["DAPI", "GFP"], 0.5), ("others", ["GFP", "X"], 1.0)):
            sizes = {"PhysicalSizeX": size, "PhysicalSizeY": size}
            metadata = {"axes": "CYX", "Channel": {"Name": names}, **sizes}
            options = {"ome": True, "photometric": "minisblack", "metadata": metadata}
            tifffile.imwrite(tmp_path / place / f"{i}.ome.tif", values, **options)
        Image.fromarray((values[1] > 2000).astype(np.uint8)).save(tmp_path / f"masks/{i}.png")
    small = [
        *CLASSIC,
        "--data.images",
        "images",
        "--data.value_range",
        "[0, 4000]",
        *ONCE,
    ]
    said = done("train_seg.py", *small, "--data.channels", "[GFP]", "--run", "run")
    assert "1 channel of uint16" in said
    assert "pixels of 0.0005 x 0.0005 mm" in said
    kept = Preprocessing.read(tmp_path / "run/model", 1)
    assert (kept.channels, kept.channel_names, kept.spacing) == (1, ("GFP",), (5e-4, 5e-4))
    said = done("segment.py", "--model", "run/model", "others", "--out", "out")
    assert "pixels of 0.001 x 0.001 mm, resampled to 0.0005 x 0.0005 mm" in said
    assert "taken to be of" not in said
    with tifffile.TiffFile(tmp_path / "out" / "0_mask.tif") as file:
        assert 'PhysicalSizeX="1.0"' in file.ome_metadata
    outcome = run("train_seg.py", [*small, "--data.channels", "[RFP]", "--run", "b"])
    assert outcome.status == 2
    assert "has the channels DAPI, GFP; RFP is not one of them" in outcome.err
    outcome = run("train_seg.py", ["--data.channels", "[RFP]", "--run", "c"])
    assert "data.channels: can be chosen of files only" in outcome.err


def test_a_model_of_one_depth_segments_the_other_right_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("deep", "eight", "masks"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(0)
    for k in range(4):
        y, x = np.mgrid[:48, :48]
        cy, cx = rng.integers(12, 36, 2)
        mask = (y - cy) ** 2 + (x - cx) ** 2 < 100
        deep = (rng.normal(1200, 60, (48, 48)) + mask * 1800).clip(0, 4095).astype(np.uint16)
        tifffile.imwrite(f"deep/{k}.tif", deep)
        Image.fromarray((deep / 4095 * 255).round().astype(np.uint8)).save(f"eight/{k}.png")
        Image.fromarray((mask * 255).astype(np.uint8)).save(f"masks/{k}.png")
    done("train_seg.py", *CLASSIC, "--data.images", "deep", "--data.value_range", "[0,4095]",
         "--run", "deep_run", *ONCE)  # fmt: skip
    done(
        "train_seg.py",
        *CLASSIC,
        "--data.images",
        "eight",
        "--run",
        "eight_run",
        *ONCE,
    )
    white = {"deep": ["0", "4095"], "eight": ["0", "255"]}
    files = {"deep": "deep/0.tif", "eight": "eight/0.png"}
    for own, other in (("deep", "eight"), ("eight", "deep")):
        job = ["--model", f"{own}_run/model", "--probabilities", "tiff"]
        outcome = run("segment.py", [*job, files[other], "--out", "none"])
        assert outcome.status == 2
        assert outcome.err.count("\n") == 1
        assert "say what is black and white here with value_range" in outcome.err
        done("segment.py", *job, files[own], "--out", f"{own}_own")
        done("segment.py", *job, files[other], "--value_range", *white[other], "--out", f"{own}_2")
        first, second = (tifffile.imread(f"{own}_{n}/0_probabilities.tif") for n in ("own", "2"))
        np.testing.assert_allclose(first, second, atol=0.01)


def test_a_denoiser_of_other_units_is_told(tmp_path):
    network = UNet(in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1,
                   norm_num_groups=4, sample_size=8)  # fmt: skip
    write_pipeline(tmp_path / "denoiser", network, GaussianDiffusion())
    Preprocessing(1, value_range=(0.0, 4095.0), dtype="uint16").write(tmp_path / "denoiser")
    write_images(tmp_path / "images", 2, 16, 16)
    write_images(tmp_path / "masks", 2, 16, 16, most=1)
    data = PairDataConfig(str(tmp_path / "images"), str(tmp_path / "masks"), size=8)
    for own, told in ((None, True), ((0.0, 4095.0), False)):
        config = SegmentConfig(init=str(tmp_path / "denoiser"), data=replace(data, value_range=own))
        said = build_pixel_job(config).description
        assert ("was trained with value_range (0.0, 4095.0) at scale 1" in said) == told

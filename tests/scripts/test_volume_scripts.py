"""The scripts on volumes and points, with networks that nobody trained, or for a step."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from in_process import done
from PIL import Image
from scipy import ndimage

from ddpm_unet import cli
from ddpm_unet.config import ClassicConfig, UNetConfig
from ddpm_unet.data.points import read_points
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.models import UNet
from ddpm_unet.models.classic import ClassicUNet


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a script in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return done


def save_classic(folder: Path, channels: int, preparation: Preprocessing) -> None:
    torch.manual_seed(0)
    config = ClassicConfig(in_channels=channels, dims=3, depth=2, base_width=2, padding="same")
    ClassicUNet(config).save_pretrained(folder)
    preparation.write(folder)


def test_a_folder_of_nifti_is_segmented(run, tmp_path):
    save_classic(tmp_path / "model", 1, Preprocessing(1, value_range="percentiles"))
    affine = np.diag([2.0, 1, 3, 1])
    (tmp_path / "in").mkdir()
    for name in ("a.nii.gz", "b.nii"):
        volume = np.random.default_rng(0).normal(size=(9, 12, 7)).astype(np.float32)
        nibabel.Nifti1Image(volume, affine).to_filename(tmp_path / "in" / name)
    said = run("segment.py", "--model", "model", "in", "--out", "out", "--tile", 40, "--overlap", 4)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"{name}_{kind}" for name in "ab"
          for kind in ("mask.nii.gz", "objects.csv", "objects.nii.gz", "overlay.tif")),
        "objects.csv",
    ]  # fmt: skip
    mask = nibabel.load(tmp_path / "out" / "b_mask.nii.gz")
    assert mask.shape == (9, 12, 7)
    np.testing.assert_array_equal(mask.affine, affine)
    assert "a.nii.gz: class 0" in said


@pytest.mark.parametrize("ending", [".tif", ".nii.gz"])
def test_volumes_are_sampled(run, tmp_path, ending):
    torch.manual_seed(0)
    unet = UNetConfig(
        in_channels=1, out_channels=1, dims=3, sample_size=8, block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=2,
        attention_head_dim=4,
    )  # fmt: skip
    write_pipeline(tmp_path / "model", UNet(unet), GaussianDiffusion())
    nifti = ["--nifti"] * (ending == ".nii.gz")
    run("sample.py", "--model", "model", "--steps", 2, "--num_images", 3, "--film", 2, *nifti)
    names = {path.name for path in (tmp_path / "generated").iterdir()}
    assert names == {
        *(f"0000{i}{ending}" for i in range(3)),
        "grid.png",
        "film.png",
        "settings.json",
    }
    zoom = round(128 / 8)
    grid = Image.open(tmp_path / "generated" / "grid.png")
    assert grid.size == ((8 * 10 + 2) * zoom, (3 * 10 + 2) * zoom)


def test_floats_are_predicted_from_nifti(run, tmp_path):
    """Hounsfield units to negative floats, in voxels of three lengths, at a smaller scale."""
    affine = np.array([[-1.5, 0, 0, 10], [0, 2, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])
    rng = np.random.default_rng(0)
    for name in ("images", "targets"):
        (tmp_path / name).mkdir()
    for i in range(3):
        smooth = ndimage.gaussian_filter(rng.normal(size=(22, 20, 18)), 2)
        image = (1500 * smooth / np.abs(smooth).max()).astype(np.int16)
        target = np.stack([25 - image / 15, 25 + image / 15], -1).astype(np.float32)
        for folder, array in (("images", image), ("targets", target)):
            path = tmp_path / folder / f"{i}.nii.gz"
            nibabel.Nifti1Image(array, affine).to_filename(path)
    flags = (
        "--task regress --init scratch --data.images images --data.masks targets --data.dims 3 "
        "--data.size 12 --data.scale 0.8 --data.value_range percentiles --data.target_range "
        "[-100,150] --data.augment.flips true --data.augment.rot90 false "
        "--data.augment.elastic_sigma 0 "
        "--data.split.by blocks --data.split.validation 1 --data.split.test 1 "
        "--architecture classic --classic.dims 3 "
        "--classic.padding same --classic.norm none --classic.dropout 0.5 --classic.depth 2 "
        "--classic.base_width 8 --train.steps 60 "
        "--train.batch_size 2 --train.warmup_steps 2 --train.lr 0.01 --train.ema_decay 0.5 "
        "--train.validate_every 60 --train.sample_every 60 --run run"
    )
    run("train_seg.py", *flags.split())
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    run("segment.py", "--model", "run/model", "images/2.nii.gz", "--out", "out")
    made, truth = (
        nibabel.load(tmp_path / name) for name in ("out/2_predicted.nii.gz", "targets/2.nii.gz")
    )
    assert (made.shape, made.get_data_dtype()) == (truth.shape, np.float32)
    np.testing.assert_allclose(made.affine, affine)
    error = np.asarray(made.dataobj).clip(-100, 150) - np.asarray(truth.dataobj)
    psnr = -20 * np.log10(np.sqrt(np.mean(error**2)) / 250)
    assert psnr == pytest.approx(scores["psnr"], abs=2)  # which is that at data.scale
    planes = [np.asarray(v.dataobj).reshape(-1, 2, order="F").T for v in (made, truth)]
    for pair in zip(*planes, strict=True):
        assert np.corrcoef(pair)[0, 1] > 0.7
    (tmp_path / "truth").mkdir()
    (tmp_path / "targets" / "2.nii.gz").rename(tmp_path / "truth" / "2.nii.gz")
    scored = "--dims 3 --target_range -100 150 --targets truth --images images ours=out"
    row = run("examples/score_images.py", *scored.split()).split("| ours | ")[1]
    assert float(row.split()[0]) == pytest.approx(psnr, abs=0.01)
    assert Image.open(tmp_path / "compare.png").size[0] > 500


def test_proteins_are_made_and_their_atoms_classified(run, tmp_path):
    run("examples/make_proteins.py", "--count", 2, "--out", "proteins")
    points = read_points(tmp_path / "proteins" / "0001.npz")
    assert 0.03 < points.labels.mean() < 0.3
    assert points.features.sum(1).tolist() == [1] * len(points.labels)
    save_classic(tmp_path / "model", 6, Preprocessing(6, voxel=2.0))
    run("segment.py", "--model", "model", "proteins", "--out", "out", "--probabilities", "npz")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "0000_points.csv", "0000_points.npz", "0001_points.csv", "0001_points.npz",
    ]  # fmt: skip
    with np.load(tmp_path / "out" / "0001_points.npz") as found:
        np.testing.assert_allclose(found["probabilities"].sum(1), 1, atol=1e-5)
        assert len(found["classes"]) == len(points.coordinates)


@pytest.mark.parametrize("command", ["train_ddpm", "train_seg"])
def test_dims_that_are_given_are_not_overridden(run, tmp_path, capsys, command):
    volume = nibabel.Nifti1Image(np.zeros((9, 9, 9), np.uint8), np.eye(4))
    places = []
    for name in ("images", "masks")[: 1 if command == "train_ddpm" else 2]:
        (tmp_path / name).mkdir()
        volume.to_filename(tmp_path / name / "a.nii")
        places += [f"--data.{'source' if command == 'train_ddpm' else name}", name]
    with pytest.raises(SystemExit):
        cli.main([command.replace("_", "-"), *places, "--data.dims", "2"])
    said = "data.dims 2: images holds volumes; set it 3, or leave it out"
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_plan_of_stacks_says_what_they_are(run, tmp_path, capsys):
    (tmp_path / "stacks").mkdir()
    tifffile.imwrite(tmp_path / "stacks/a.tif", np.zeros((5, 9, 9), np.uint8))
    with pytest.raises(SystemExit):
        cli.main(["train-ddpm", "--data.source", "stacks"])
    assert "a.tif: has 5 pages" in capsys.readouterr().err

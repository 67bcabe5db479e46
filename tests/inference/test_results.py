"""Files of predictions: whole, in the input's shape and place, with bounded memory."""

import csv
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from ddpm_unet.config import ClassicConfig
from ddpm_unet.data.pixels import normalised, to_unit
from ddpm_unet.data.points import read_points, to_grid
from ddpm_unet.data.preprocessing import Preprocessing, Targets
from ddpm_unet.errors import UserError
from ddpm_unet.inference.overlay import class_colors
from ddpm_unet.inference.predictor import Predictor
from ddpm_unet.inference.results import write_masks, write_points, write_regression
from ddpm_unet.models.classic import ClassicUNet

RNG = np.random.default_rng(0)
AFFINE = np.array([[0, -2.0, 0, 10], [1.0, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def bright(tiles):
    """Class 1 as likely as the last channel is bright."""
    share = (tiles[:, -1:].float() + 1) / 2
    return torch.cat([1 - share, share], dim=1).clamp(min=1e-12).log()


def predictor(dims=2, forward=bright, preprocessing=None, tile=40, **options):
    config = ClassicConfig(dims=dims, depth=2, base_width=2, padding="same", in_channels=1)
    model = ClassicUNet(config).eval()
    model.forward = forward
    made = Predictor(model, preprocessing or Preprocessing(1), tile=None, **options)
    made.tiling = made.tiling.__class__(tile, margin=4, overlap=4, step=4)
    return made


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def write(path, out, name="a", dims=2, colors=2, options=None, **predicting):
    with predictor(dims, **predicting).open(path) as source:
        return write_masks(
            source, out / name, class_colors(colors), **{"probabilities": "tiff", **(options or {})}
        )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_png(tmp_path, out):
    array = pixels(90, 70)
    Image.fromarray(array).save(tmp_path / "a.png")
    counts = write(tmp_path / "a.png", out)
    classes = (array >= 128).astype(int)
    assert counts.tolist() == [(classes == 0).sum(), (classes == 1).sum()]
    np.testing.assert_array_equal(np.asarray(Image.open(out / "a_mask.png")), classes)
    probabilities = tifffile.imread(out / "a_probabilities.tif")
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities[1], array / 255, atol=1e-6)
    assert Image.open(out / "a_overlay.png").size == (70, 90)
    kinds = ["mask.png", "objects.csv", "objects.tif", "overlay.png", "probabilities.tif"]
    assert names(out) == [f"a_{kind}" for kind in kinds]


@pytest.mark.parametrize("stream_above", [16, 1e-4])
def test_a_stack_keeps_its_shape(tmp_path, out, stream_above):
    array = pixels(3, 61, 50)
    options = {"compression": "zlib", "rowsperstrip": 9, "photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    write(tmp_path / "a.tif", out, stream_above=stream_above)
    np.testing.assert_array_equal(tifffile.imread(out / "a_mask.tif"), array >= 128)
    probabilities = tifffile.imread(out / "a_probabilities.tif")
    assert probabilities.shape == (3, 2, 61, 50)
    np.testing.assert_allclose(probabilities[:, 1], array / 255, atol=1e-6)
    assert tifffile.imread(out / "a_overlay.tif").shape == (3, 61, 50, 3)
    assert (out / "a_objects.csv").exists() == (stream_above == 16)
    write(tmp_path / "a.tif", out, options={"probabilities": "npz", "overlay": False})
    with np.load(out / "a_probabilities.npz") as found:
        assert found["probabilities"].dtype == np.float32
        np.testing.assert_array_equal(found["probabilities"], probabilities)


def test_a_nifti_mask_has_the_affine_of_its_input(tmp_path, out):
    array = RNG.random((26, 21, 17)).astype(np.float32)
    nibabel.Nifti1Image(array, AFFINE).to_filename(tmp_path / "a.nii.gz")
    counts = write(tmp_path / "a.nii.gz", out, dims=3)
    mask, chances = (nibabel.load(out / f"a_{x}.nii.gz") for x in ("mask", "probabilities"))
    np.testing.assert_array_equal(mask.affine, AFFINE)
    np.testing.assert_array_equal(chances.affine, AFFINE)
    assert (mask.get_data_dtype(), chances.get_data_dtype()) == (np.uint8, np.float32)
    np.testing.assert_allclose(chances.get_fdata()[..., 1], array, atol=1e-5)
    classes = np.asarray(mask.dataobj)
    np.testing.assert_array_equal(classes, array > 0.5)
    assert counts.tolist() == [(classes == k).sum() for k in range(2)]


def test_percentiles_are_those_of_the_whole(tmp_path, out):
    pages = RNG.normal(size=(2, 40, 30)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", pages)
    preprocessing = Preprocessing(1, value_range="percentiles")
    write(tmp_path / "a.tif", out, preprocessing=preprocessing, stream_above=1e-4, tile=24)
    unit = np.stack([to_unit(normalised(page[..., None], "percentiles"))[..., 0] for page in pages])
    written = tifffile.imread(out / "a_probabilities.tif")
    np.testing.assert_allclose(written[:, 1], (unit + 1) / 2, atol=1e-6)


def test_a_fault_leaves_nothing(tmp_path, out):
    Image.fromarray(pixels(90, 70)).save(tmp_path / "a.png")
    calls = iter(range(2))

    def forward(tiles):
        if next(calls) == 1:
            raise ZeroDivisionError
        return bright(tiles)

    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "a.png", out, forward=forward)
    with pytest.raises(ValueError, match="gives 2 classes, 3 expected"):
        write(tmp_path / "a.png", out, colors=3)
    with pytest.raises(UserError, match=r"a\.png: is no volume; give NIfTI"):
        write(tmp_path / "a.png", out, dims=3)
    assert not names(out)


def test_objects_are_a_table(tmp_path, out):
    page = np.zeros((30, 40), np.uint8)
    page[2:5, 3:7] = 200
    page[20:22, 30:40] = 220
    tifffile.imwrite(tmp_path / "a.tif", np.stack([page, 0 * page]), photometric="minisblack")
    write(tmp_path / "a.tif", out, options={"class_names": ("not", "bright")})
    with open(out / "a_objects.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["page"], first["id"], first["class_name"], first["area"]) == (
        "0", "1", "bright", "12",
    )  # fmt: skip
    assert (float(first["row"]), float(first["column"])) == (3, 4.5)
    assert [second[f"first_{a}"] for a in ("row", "column")] == ["20", "30"]
    assert [second[f"end_{a}"] for a in ("row", "column")] == ["22", "40"]
    assert float(second["mean_0"]) == 220


@pytest.mark.parametrize("pages", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_regression_is_written_in_units(tmp_path, out, channels, pages):
    array = pixels(pages, 30, 20)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack")
    targets = Targets(channels, "uint16", 0.0, 1000.0)
    own = predictor(
        forward=lambda x: x.repeat(1, channels, 1, 1),
        preprocessing=Preprocessing(1, targets=targets),
    )
    with own.open(tmp_path / "a.tif") as source:
        means = write_regression(source, out / "a", targets)
    found = tifffile.imread(out / "a_predicted.tif").reshape(pages, channels, 30, 20)
    want = array[:, None] / np.float32(255) * 1000
    np.testing.assert_allclose(found, np.broadcast_to(want, found.shape), atol=1e-2)
    assert means == pytest.approx([want.mean()] * channels, rel=1e-5)


def test_every_point_gets_the_probabilities_of_its_cell(tmp_path):
    coordinates = RNG.uniform(-20, 20, (300, 3))
    features = RNG.random((300, 1)).astype(np.float32)
    np.savez(tmp_path / "a.npz", coordinates=coordinates, features=features)
    own = predictor(3, preprocessing=Preprocessing(2, value_range=(0, 1), voxel=2.0), tile=16)
    points, probabilities = own.points(tmp_path / "a.npz")
    counts = write_points(points, probabilities, tmp_path / "a", npz=True)
    points = read_points(tmp_path / "a.npz")
    cells, _ = points.cells(2.0)
    wanted = to_grid(points, 2.0)[(*cells, 1)]
    table = np.genfromtxt(tmp_path / "a_points.csv", delimiter=",", names=True)
    assert table.dtype.names == ("x", "y", "z", "class", "probability_0", "probability_1")
    np.testing.assert_allclose(table["z"], coordinates[:, 2], atol=1e-3)
    np.testing.assert_allclose(table["probability_1"], wanted, atol=1e-4)
    np.testing.assert_array_equal(table["class"], wanted > 0.5)
    assert counts.tolist() == [(wanted <= 0.5).sum(), (wanted > 0.5).sum()]
    with np.load(tmp_path / "a_points.npz") as written:
        np.testing.assert_allclose(written["probabilities"][:, 1], wanted, atol=1e-6)
        np.testing.assert_array_equal(written["classes"], table["class"])


GROWTH = """
import re, sys
from pathlib import Path
import torch
from ddpm_unet.config import ClassicConfig
from ddpm_unet.inference.overlay import class_colors
from ddpm_unet.inference.predictor import Predictor
from ddpm_unet.inference.results import write_masks
from ddpm_unet.models.classic import ClassicUNet

torch.set_num_threads(1)
model = ClassicUNet(ClassicConfig(depth=2, base_width=1, padding="same", in_channels=3)).eval()
model.forward = lambda x: torch.cat([x[:, :1], -x[:, :1]], 1)
predictor = Predictor(model, tile=256, stream_above=0.1)
for path in map(Path, sys.argv[1:]):
    with predictor.open(path) as source:
        base = path.parent / "out" / path.stem
        write_masks(source, base, class_colors(2), overlay=False, probabilities="tiff")
    print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory_does_not_grow_with_the_image(tmp_path, out):
    """Four times the height: whole, the probabilities alone would take 26 MB more."""
    tall = np.broadcast_to(pixels(600, 3)[:, None], (600, 600, 3)).copy()
    paths = [tmp_path / f"{name}.tif" for name in ("warm", "plain", "strips", "tiles")]
    options = {"photometric": "rgb", "compression": "zlib", "rowsperstrip": 100}
    tifffile.imwrite(paths[0], np.tile(tall, (3, 1, 1)), **options)
    tall = np.tile(tall, (12, 1, 1))
    tifffile.imwrite(paths[1], tall, photometric="rgb")
    tifffile.imwrite(paths[2], tall, **options)
    tifffile.imwrite(paths[3], tall, photometric="rgb", tile=(256, 256))
    command = [sys.executable, "-c", GROWTH, *map(str, paths)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    warm, *peaks = (int(line) / 1024 for line in run.stdout.split())
    assert max(peaks) - warm < 12, f"peak memory grew from {warm} to {peaks} MB"
    for path in paths[1:]:
        mask = tifffile.imread(out / f"{path.stem}_mask.tif")
        np.testing.assert_array_equal(mask, tall[..., 0] < 128)

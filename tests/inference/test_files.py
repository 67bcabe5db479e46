import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
from ddpm_unet.inference.files import FileSegmenter
from PIL import Image

from ddpm_unet.errors import UserError
from ddpm_unet.inference.overlay import class_colors
from ddpm_unet.inference.tiles import Tiling


def by_brightness(tiles):
    """Class 1 where the first channel is positive, sure of it by its distance to 0."""
    bright = (tiles[:, :1] + 1) / 2
    return torch.cat([1 - bright, bright], dim=1)


def to_unit(pixels, name):
    return pixels[..., :1].astype(np.float32) / 127.5 - 1


def segmenter(**changes):
    settings = {
        "predict": by_brightness,
        "prepare": to_unit,
        "channels": 1,
        "colors": class_colors(2),
        "tiling": Tiling(tile=40, margin=4, overlap=4, step=4),
        "probabilities": "tiff",
    }
    return FileSegmenter(**{**settings, **changes})


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_png(tmp_path):
    array = pixels(90, 70, 3)
    Image.fromarray(array).save(tmp_path / "a.png")
    out = tmp_path / "out"
    out.mkdir()
    counts = segmenter().write(tmp_path / "a.png", out, "a")
    classes = (array[..., 0] >= 128).astype(int)
    assert counts.tolist() == [(classes == 0).sum(), (classes == 1).sum()]
    np.testing.assert_array_equal(np.asarray(Image.open(out / "a_mask.png")), classes)
    probabilities = tifffile.imread(out / "a_probabilities.tif")
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities[1], array[..., 0] / 255, atol=1e-6)
    assert Image.open(out / "a_overlay.png").size == (70, 90)
    assert len(list(out.iterdir())) == 3


@pytest.mark.parametrize("stream_above", [16, 1e-4])
def test_stack_keeps_its_shape(tmp_path, stream_above):
    array = pixels(3, 61, 50)
    options = {"compression": "zlib", "rowsperstrip": 9, "photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    out = tmp_path / "out"
    out.mkdir()
    segmenter(stream_above=stream_above).write(tmp_path / "a.tif", out, "a")
    np.testing.assert_array_equal(tifffile.imread(out / "a_mask.tif"), array >= 128)
    probabilities = tifffile.imread(out / "a_probabilities.tif")
    assert probabilities.shape == (3, 2, 61, 50)
    np.testing.assert_allclose(probabilities[:, 1], array / 255, atol=1e-6)
    assert tifffile.imread(out / "a_overlay.tif").shape == (3, 61, 50, 3)


def test_npz(tmp_path):
    """The arrays of the two formats are equal, and nothing else is left."""
    tifffile.imwrite(tmp_path / "a.tif", pixels(3, 61, 50), photometric="minisblack")
    out = tmp_path / "out"
    out.mkdir()
    for kind in ("tiff", "npz"):
        segmenter(probabilities=kind, overlay=False).write(tmp_path / "a.tif", out, "a")
    with np.load(out / "a_probabilities.npz") as found:
        assert found["probabilities"].dtype == np.float32
        expected = tifffile.imread(out / "a_probabilities.tif")
        np.testing.assert_array_equal(found["probabilities"], expected)
    assert len(list(out.iterdir())) == 3


def test_volume(tmp_path):
    array = pixels(50, 21, 30)
    tifffile.imwrite(tmp_path / "a.tif", array)
    out = tmp_path / "out"
    out.mkdir()
    seen = []

    def predict(tiles):
        seen.append(tiles.shape[2:])
        return by_brightness(tiles)

    segmenter(dims=3, predict=predict).write(tmp_path / "a.tif", out, "a")
    assert all(len(size) == 3 for size in seen)
    np.testing.assert_array_equal(tifffile.imread(out / "a_mask.tif"), array >= 128)
    probabilities = tifffile.imread(out / "a_probabilities.tif")
    np.testing.assert_allclose(probabilities[:, 1], array / 255, atol=1e-6)
    assert tifffile.imread(out / "a_overlay.tif").shape == (50, 21, 30, 3)


def test_single_page(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pixels(30, 20))
    out = tmp_path / "out"
    out.mkdir()
    segmenter(overlay=False).write(tmp_path / "a.tif", out, "b")
    assert sorted(p.name for p in out.iterdir()) == ["b_mask.tif", "b_probabilities.tif"]
    assert tifffile.imread(out / "b_mask.tif").shape == (30, 20)
    assert tifffile.imread(out / "b_probabilities.tif").shape == (2, 30, 20)


def test_a_fault_leaves_nothing(tmp_path):
    Image.fromarray(pixels(90, 70)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    out.mkdir()
    calls = iter(range(2))

    def predict(tiles):
        if next(calls) == 1:
            raise ZeroDivisionError
        return by_brightness(tiles)

    with pytest.raises(ZeroDivisionError):
        segmenter(predict=predict).write(tmp_path / "a.png", out, "a")
    with pytest.raises(ValueError, match="gives 2 classes, 3 expected"):
        segmenter(colors=class_colors(3)).write(tmp_path / "a.png", out, "a")
    with pytest.raises(UserError, match="is no volume"):
        segmenter(dims=3).write(tmp_path / "a.png", out, "a")
    assert not list(out.iterdir())


GROWTH = """
import re, sys
from pathlib import Path
import numpy as np, torch
from ddpm_unet.inference.overlay import class_colors
from ddpm_unet.inference.files import FileSegmenter
from ddpm_unet.inference.tiles import Tiling

torch.set_num_threads(1)
segmenter = FileSegmenter(
    predict=lambda x: torch.cat([x, 1 - x], 1),
    prepare=lambda x, name: x[..., :1] / np.float32(255),
    channels=1, colors=class_colors(2), tiling=Tiling(256, 16, 32, 16),
    overlay=False, probabilities="tiff", stream_above=0.1,
)
for path in map(Path, sys.argv[1:]):
    segmenter.write(path, path.parent / "out", path.stem)
    print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory_does_not_grow_with_the_image(tmp_path):
    """Five times the height: whole, the probabilities alone would take 58 MB more."""
    (tmp_path / "out").mkdir()
    tall = np.broadcast_to(pixels(600, 3)[:, None], (600, 600, 3)).copy()
    paths = [tmp_path / f"{name}.tif" for name in ("warm", "plain", "strips", "tiles")]
    options = {"photometric": "rgb", "compression": "zlib", "rowsperstrip": 100}
    tifffile.imwrite(paths[0], np.tile(tall, (5, 1, 1)), **options)
    tall = np.tile(tall, (25, 1, 1))
    tifffile.imwrite(paths[1], tall, photometric="rgb")
    tifffile.imwrite(paths[2], tall, **options)
    tifffile.imwrite(paths[3], tall, photometric="rgb", tile=(256, 256))
    command = [sys.executable, "-c", GROWTH, *map(str, paths)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    warm, *peaks = (int(line) / 1024 for line in run.stdout.split())
    assert max(peaks) - warm < 12, f"peak memory grew from {warm} to {peaks} MB"
    for path in paths[1:]:
        mask = tifffile.imread(tmp_path / "out" / f"{path.stem}_mask.tif")
        np.testing.assert_array_equal(mask, tall[..., 0] < 128)

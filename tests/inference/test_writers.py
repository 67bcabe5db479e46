from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from ddpm_unet.errors import UserError
from ddpm_unet.inference.overlay import class_colors
from ddpm_unet.inference.writers import (
    OverlayImages,
    SavedPlanes,
    TiffPlanes,
    finished,
    output_folder,
    output_names,
)


def test_names(tmp_path):
    out = tmp_path / "out"

    def names(*paths):
        return output_names([Path(p) for p in paths], out)

    assert names("in/a.png", "in/b.tif") == ["a", "b"]
    assert names("in/a.png", "in/a.tif", "in/b.v2.png") == ["a.png", "a.tif", "b.v2"]
    assert names("in/A.png", "in/a.tif") == ["A.png", "a.tif"]
    for name in names("/etc/../a b.png", "../../ü.tif"):
        assert (out / f"{name}_mask.png").resolve().parent == out.resolve()
    with pytest.raises(UserError, match=r"y/a\.png and x/a\.png: would be written under one name"):
        names("x/a.png", "y/a.png")
    with pytest.raises(UserError, match=r"x/a\.png: lies in the output folder"):
        output_names([Path("x/a.png")], Path("x"))


def test_unfinished_files_do_not_appear(tmp_path):
    with finished(tmp_path / "a.txt") as part:
        part.write_text("1")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "1"

    def fail():
        with finished(tmp_path / "a.txt") as part:
            part.write_text("2")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tmp_path / "a.txt").read_text() == "1"
    assert len(list(tmp_path.iterdir())) == 1


def test_output_folder(tmp_path):
    with output_folder(tmp_path / "a" / "b") as folder:
        assert folder.is_dir()
        assert not list(folder.iterdir())
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="file: cannot be written to"),
        output_folder(tmp_path / "file"),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "result", "left"),
    [("old", "", {"old"}), ("new", "", {"old"}), ("new", "x", {"old", "new", "new/b", "new/b/x"})],
)
def test_an_output_folder_in_vain_is_gone_again(tmp_path, name, result, left):
    (tmp_path / "old").mkdir()

    def fail():
        with output_folder(tmp_path / name / "b") as folder:
            if result:
                (folder / result).touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == left


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_planes_in_any_order(tmp_path, dtype):
    array = np.random.default_rng(0).integers(0, 5, (2, 3, 20, 30)).astype(dtype)
    planes = TiffPlanes(tmp_path / "a.tif", array.shape, dtype, "ZCYX")
    for row in (12, 0, 5):
        height = {12: 8, 0: 5, 5: 7}[row]
        for page in (1, 0):
            planes.write(page * 3, row, array[page, :, row : row + height])
    planes.close()
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), array)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.series[0].axes == "ZCYX"
        assert file.series[0].dtype == dtype


def test_masks_have_a_palette(tmp_path):
    classes = np.arange(12, dtype=np.uint8).reshape(1, 3, 4) % 3
    colors = class_colors(3, [(0, 0, 0), (255, 0, 10), (1, 2, 3)])
    for mask in (
        TiffPlanes(tmp_path / "a.tif", (3, 4), np.uint8, "YX", colors),
        SavedPlanes(tmp_path / "a.png", "png", (1, 3, 4), np.uint8, colors),
    ):
        mask.write(0, 1, classes[:, 1:])
        mask.write(0, 0, classes[:, :1])
        mask.close()
    for name in ("a.tif", "a.png"):
        with Image.open(tmp_path / name) as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.asarray(image), classes[0])
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colors[classes[0]])


def test_large_overlays_are_thinned_out(tmp_path):
    height, width = 41, 9000
    picture = np.broadcast_to(np.arange(height, dtype=np.uint8)[:, None, None], (height, width, 1))
    overlays = OverlayImages(tmp_path / "a.png", (1, height, width), class_colors(2))
    for low in range(0, height, 7):
        rows = picture[None, low : low + 7]
        overlays.write(low, rows, np.zeros(rows.shape[:3], np.uint8))
    overlays.close()
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (3000, 14)
        assert np.asarray(image)[:, 5, 0].tolist() == list(range(0, 41, 3))

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from ddpm_unet.errors import UserError
from ddpm_unet.files import finished
from ddpm_unet.inference.overlay import class_colors, displayable, draw_overlay
from ddpm_unet.inference.writers import (
    OverlayImages,
    SavedPlanes,
    TiffPlanes,
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


def test_colors_are_distinct():
    table = class_colors(256)
    assert table.shape == (256, 3)
    assert table.dtype == np.uint8
    assert len(np.unique(table, axis=0)) == 256
    assert (table[0] == 0).all()
    np.testing.assert_array_equal(class_colors(5), table[:5])
    np.testing.assert_array_equal(class_colors(2, [(1, 2, 3), (4, 5, 6)]), [[1, 2, 3], [4, 5, 6]])
    with pytest.raises(ValueError, match="a palette holds 256"):
        class_colors(257)
    with pytest.raises(ValueError, match="1 colours for 2 classes"):
        class_colors(2, [(1, 2, 3)])


def test_display_of_any_depth():
    grey = np.arange(200, dtype=np.uint8).reshape(10, 20, 1)
    np.testing.assert_array_equal(displayable(grey), np.repeat(grey, 3, axis=2))
    rgba = np.arange(80, dtype=np.uint8).reshape(4, 5, 4)
    np.testing.assert_array_equal(displayable(rgba), rgba[..., :3])
    for deep in (grey.astype(np.uint16) * 100, grey.astype(np.float32) / 7):
        shown = displayable(deep)
        assert shown.dtype == np.uint8
        assert (shown.min(), shown.max()) == (0, 255)
        assert (np.diff(shown[..., 0].ravel().astype(int)) >= 0).all()
    assert (displayable(np.full((3, 3, 1), 5, np.uint16)) == 0).all()


def test_overlay_by_hand():
    picture = np.full((9, 9, 1), 100, np.uint8)
    classes = np.zeros((9, 9), np.uint8)
    classes[2:7, 2:7] = 1
    overlay = draw_overlay(picture, classes, np.array([[9, 9, 9], [200, 0, 100]], np.uint8), 0.5)
    assert (overlay[classes == 0] == 100).all()
    assert (overlay[4, 4] == [150, 50, 100]).all()
    ring = classes.copy()
    ring[3:6, 3:6] = 0
    assert (overlay[ring == 1] == [200, 0, 100]).all()
    assert (overlay[3:6, 3:6] == [150, 50, 100]).all()

import numpy as np
import pytest

from ddpm_unet.inference.overlay import class_colors, displayable, draw_overlay


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


def test_one_class_has_no_outline():
    picture = np.full((5, 5, 3), 100, np.uint8)
    colors = class_colors(2)
    assert (draw_overlay(picture, np.zeros((5, 5), int), colors) == picture).all()
    tinted = draw_overlay(picture, np.ones((5, 5), int), colors)
    assert (tinted == tinted[0, 0]).all()

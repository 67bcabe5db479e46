import numpy as np
import torch
from PIL import Image

from ddpm_unet.evaluation.plots import (
    grid,
    plot_metrics,
    save_film,
    save_grid,
    save_side_by_side,
    to_uint8,
)


def test_levels_are_rounded_and_clipped():
    values = torch.tensor([-2.0, -1, -1 + 1.4 / 127.5, 0.0, 1, 3]).reshape(1, 1, 1, 6)
    assert to_uint8(values).ravel().tolist() == [0, 0, 1, 128, 255, 255]


def test_a_grid_is_read_from_left_to_right_and_down():
    images = torch.linspace(-1, 1, 6).reshape(6, 1, 1, 1).expand(6, 3, 4, 8)
    sheet = np.asarray(grid(images, columns=3))
    assert sheet.shape == (2 * (4 + 2) + 2, 3 * (8 + 2) + 2, 3)
    centres = sheet[4::6, 6::10, 0]
    np.testing.assert_array_equal(centres, [[0, 51, 102], [153, 204, 255]])


def test_small_images_are_enlarged_in_the_file(tmp_path):
    save_grid(torch.zeros(4, 3, 48, 80), tmp_path / "grid.png")
    width, height = Image.open(tmp_path / "grid.png").size
    assert (width, height) == (2 * (2 * 82 + 2), 2 * (2 * 50 + 2))


def test_a_film_has_a_row_for_each_image(tmp_path):
    frames = [torch.full((3, 1, 100, 100), level) for level in (-1.0, 0.0, 1.0)]
    for frame in frames:
        frame[2] = 0.5
    save_film(frames, tmp_path / "film.png", most=2)
    film = np.asarray(Image.open(tmp_path / "film.png"))
    assert film.shape == (206, 308, 3)
    np.testing.assert_array_equal(film[50::102, 50::102, 0], [[0, 128, 255]] * 2)


def test_curves_are_drawn_whatever_the_records_hold(tmp_path):
    records = [
        {"step": 1, "images": 4, "loss": 2.0, "grad_norm": 1.0, "lr": 0.1, "skipped": 0},
        {"step": 1, "images": 4, "mean_dice": 0.5, "dice_cell": float("nan")},
        {"step": 2, "images": 8, "loss": 1.0, "val_loss": 1.5},
    ]
    plot_metrics(records, tmp_path / "loss.png")
    both = Image.open(tmp_path / "loss.png").size
    plot_metrics(records[:1], tmp_path / "loss.png")
    assert Image.open(tmp_path / "loss.png").size[1] < both[1]
    plot_metrics([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_grids_side_by_side(tmp_path):
    columns = [("left", torch.zeros(4, 3, 8, 8)), ("right", torch.ones(4, 1, 8, 8))]
    save_side_by_side(columns, tmp_path / "both.png")
    width, height = Image.open(tmp_path / "both.png").size
    assert width > 1.5 * height


def test_a_grid_shows_slices_of_volumes_and_a_film_the_middle_one(tmp_path):
    volumes = torch.linspace(-1, 1, 24).reshape(1, 1, 24, 1, 1).expand(2, 1, 24, 6, 10)
    sheet = np.asarray(grid(volumes))
    assert sheet.shape == (2 * 8 + 2, 8 * 12 + 2, 3)
    shown = to_uint8(volumes)[0, [1, 4, 7, 10, 13, 16, 19, 22], 0, 0, 0]
    assert sheet[5, 5::12, 0].tolist() == shown.tolist()
    save_film([volumes, -volumes], tmp_path / "film.png")
    film = np.asarray(Image.open(tmp_path / "film.png").convert("L"))
    zoom = 13
    assert (film[4 * zoom, 5 * zoom], film[4 * zoom, 17 * zoom]) == (133, 122)

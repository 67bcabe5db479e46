"""Point sets: to a grid and back, read from their files, and as labelled volumes."""

import numpy as np
import pytest
import torch
from data_files import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_unet.config import AugmentConfig, PairDataConfig, SplitConfig
from ddpm_unet.data.check import check_pairs
from ddpm_unet.data.labelled import LabelledSet
from ddpm_unet.data.masks import IGNORE_INDEX
from ddpm_unet.data.points import (
    EMPTY,
    MARGIN,
    PointSet,
    from_grid,
    read_grid,
    read_labels,
    read_points,
    to_grid,
)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0.3, 4))
def test_points_in_cells_of_their_own_come_back_exactly(seed, count, voxel):
    rng = np.random.default_rng(seed)
    places = rng.permutation(1000)[:count]
    cells = np.stack(np.unravel_index(places, (10, 10, 10)), axis=-1)
    inside = rng.uniform(0.01, 0.99, (count, 3))
    inside[0], cells = 0.005, cells - cells.min(0)
    corner = np.vstack([cells, np.zeros((1, 3), int)]), np.vstack([inside, [[0.001] * 3]])
    coordinates = (corner[0] + corner[1] - 0.001) * voxel - 7
    points = PointSet(coordinates, rng.random((count + 1, 2)).astype(np.float32))
    grid = to_grid(points, voxel)
    alone = (cells != 0).any(1)
    np.testing.assert_allclose(
        from_grid(np.moveaxis(grid, -1, 0), points, voxel)[:-1][alone, 1:],
        points.features[:-1][alone],
        atol=1e-6,
    )
    assert grid[..., 0].sum() == len({tuple(cell) for cell in cells.tolist()} | {(0, 0, 0)})


def test_cells_lie_slices_first_within_an_empty_margin():
    points = PointSet(
        np.array([[0, 0, 0], [2.5, 0, 0], [0, 1.5, 3.5]]), np.eye(3, dtype=np.float32)
    )
    grid = to_grid(points, 1.0)
    assert grid.shape == (4 + 2 * MARGIN, 2 + 2 * MARGIN, 3 + 2 * MARGIN, 4)
    assert np.argwhere(grid[..., 0]).tolist() == [[2, 2, 2], [2, 2, 4], [5, 3, 2]]
    assert grid[2, 2, 4].tolist() == [1, 0, 1, 0]


def test_points_of_one_cell_share_it(tmp_path):
    coordinates = np.array([[0, 0, 0], [0.2, 0.2, 0.2], [5, 0, 0]])
    features = np.array([[1, 0], [0, 0.5], [1, 1]], np.float32)
    path = save(tmp_path / "a.npz", coordinates=coordinates, features=features, labels=[0, 2, 1])
    grid, labels = read_grid(path, 1), read_labels(path, 1)[..., 0]
    assert grid[2, 2, 2].tolist() == [1, 0.5, 0.25]
    assert (labels[2, 2, 2], labels[2, 2, 7]) == (2, 1)
    assert (labels == EMPTY).sum() == labels.size - 2
    chances = np.random.default_rng(0).random((3, *labels.shape))
    found = from_grid(chances, read_points(path), 1)
    np.testing.assert_array_equal(found, chances[:, 2, 2, [2, 2, 7]].T)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"points": np.zeros((3, 3))}, "has no array coordinates, only points"),
        ({"coordinates": np.zeros((3, 2))}, "coordinates are 3 x 2"),
        ({"coordinates": np.zeros((0, 3))}, "coordinates are 0 x 3"),
        ({"coordinates": np.eye(3), "features": np.zeros((2, 1))}, "3 points and 2 features"),
        ({"coordinates": np.eye(3), "labels": [0, 1]}, "3 points and 2 labels"),
        ({"coordinates": np.eye(3), "labels": [0, 1, 0.5]}, "not classes"),
        ({"coordinates": np.eye(3), "labels": [0, 1, 255]}, "not classes"),
        ({"coordinates": np.eye(3) * np.nan}, "NaN"),
        ({"coordinates": np.eye(3) * 1e5}, "over the limit"),
    ],
)
def test_faults_are_named(tmp_path, arrays, message):
    save(tmp_path / "a.npz", **arrays)
    with refused(message) as caught:
        read_grid(tmp_path / "a.npz", 1.0)
    assert "a.npz" in str(caught.value)


def test_pickles_and_rubbish_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", coordinates=np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "b.npz").write_bytes(b"PK nothing")
    for name in ("a.npz", "b.npz"):
        with refused(name):
            read_points(tmp_path / name)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        coordinates = rng.uniform(0, 14, (60, 3))
        labels = (coordinates[:, 0] > 9).astype(np.uint8)
        features = np.stack([coordinates[:, 0] / 14, labels], axis=1)
        save(tmp_path / f"{number}.npz", coordinates=coordinates, features=features, labels=labels)
    return tmp_path


def test_point_sets_are_labelled_volumes_of_few_labels(folder):
    config = PairDataConfig(
        dims=3, images=str(folder), masks="points", voxel=1.5, size=8, num_classes=2,
        augment=AugmentConfig(elastic_sigma=0), split=SplitConfig(validation=0),
    )  # fmt: skip
    report = check_pairs(config)
    volumes = LabelledSet(report)
    assert report.channels == 3
    item = volumes[1]
    points = read_points(folder / "1.npz")
    labelled = item["mask"] != IGNORE_INDEX
    assert torch.equal(labelled, item["image"][0] == 1)
    found = from_grid(item["mask"].numpy()[None], points, 1.5)[:, 0]
    single = from_grid(item["image"].numpy(), points, 1.5)[:, 2] == points.labels * 2 - 1.0
    assert single.mean() > 0.9
    np.testing.assert_array_equal(found[single], points.labels[single])
    config.scale = 0.5
    with refused(r"set data\.dims 3 and data\.scale 1"):
        check_pairs(config)


def test_a_folder_without_points(tmp_path):
    config = PairDataConfig(dims=3, images=str(tmp_path), masks="points")
    with refused("holds no point set"):
        check_pairs(config)

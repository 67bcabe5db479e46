import numpy as np
import torch
from ddpm_unet.inference.points import PointSegmenter

from ddpm_unet.data.points import read_points, to_grid
from ddpm_unet.inference.overlay import class_colors
from ddpm_unet.inference.tiles import Tiling


def test_every_point_gets_the_probabilities_of_its_cell(tmp_path):
    rng = np.random.default_rng(0)
    coordinates = rng.uniform(-20, 20, (300, 3))
    features = rng.random((300, 1)).astype(np.float32)
    np.savez(tmp_path / "a.npz", coordinates=coordinates, features=features)
    segmenter = PointSegmenter(
        predict=lambda tiles: torch.cat([1 - tiles[:, 1:], tiles[:, 1:]], dim=1),
        prepare=lambda grid, name: grid,
        channels=2,
        colors=class_colors(2),
        dims=3,
        tiling=Tiling(tile=16, margin=2, overlap=2, step=2),
        probabilities="npz",
        voxel=2.0,
    )
    counts = segmenter.write(tmp_path / "a.npz", tmp_path, "a")
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

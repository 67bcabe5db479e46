"""Objects apart: with known counts, over seams of tiles, and as tables and outlines."""

import csv
import json

import numpy as np
import pytest
import tifffile
import torch

from ddpm_unet.config import ClassicConfig
from ddpm_unet.data.cells import interiors
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.inference.objects import (
    find_objects,
    label_objects,
    outlines,
    write_geojson,
    write_objects,
    write_rois,
)
from ddpm_unet.inference.predictor import Predictor
from ddpm_unet.inference.readers import lengths_of
from ddpm_unet.inference.results import write_masks
from ddpm_unet.inference.writers import write_image
from ddpm_unet.models.classic import ClassicUNet


def discs(rows=4, columns=5, radius=7):
    """Discs whose rims touch, numbered: between neighbours no pixel is free."""
    step = 2 * radius + 1
    y, x = np.mgrid[: rows * step, : columns * step]
    inside = (y % step - radius) ** 2 + (x % step - radius) ** 2 <= radius**2 + 1
    return np.where(inside, 1 + y // step * columns + x // step, 0)


def same_partition(found, true):
    pairs = {*zip(found.ravel().tolist(), true.ravel().tolist(), strict=True)}
    return len(pairs) == len(np.unique(found)) == len(np.unique(true))


@pytest.mark.parametrize("dims", [2, 3])
def test_touching_discs_come_apart(dims):
    true = discs() if dims == 2 else np.stack([discs()] * 4)
    mask = (true > 0).astype(np.uint8)
    assert label_objects(mask).max() == 1
    assert same_partition(label_objects(mask, interiors(true)), true)


def test_pieces_without_an_interior_are_whole_and_specks_are_left_out():
    true = np.zeros((30, 40), int)
    true[2:12, 3:20], true[20:23, 30:33], true[28, 1] = 1, 2, 3
    mask, seen = (true > 0).astype(np.uint8), interiors(np.where(true == 1, 1, 0))
    seen[5, 3] = 0.9  # not beside the interior: one pixel
    seen[5, 4] = 0
    labels = label_objects(mask, seen, least=8)
    assert same_partition(labels, np.where(true == 3, 0, true))
    assert label_objects(mask, seen).max() == 4


def test_classes_do_not_mix():
    true = discs()
    mask = np.where(true > 0, 1 + (true > 10), 0)
    rows = find_objects(label_objects(mask, interiors(true)), mask)
    assert [row.class_index for row in rows] == [1] * 10 + [2] * 10


def predictor(tile, dims=2):
    """A network that gives channel 0 as the object's class and channel 1 as interior."""
    config = ClassicConfig(
        dims=dims, depth=2, base_width=2, padding="same", in_channels=2, num_classes=3,
        class_names=("not", "disc", "interior"),
    )  # fmt: skip
    model = ClassicUNet(config).eval()
    model.forward = lambda x: torch.stack([0 * x[:, 0], 9 * x[:, 0], 9 * x[:, 1]], 1)
    made = Predictor(model, Preprocessing(2, objects=20))
    made.tiling = made.tiling.__class__(tile, margin=4, overlap=4, step=4)
    return made


def test_seams_cut_no_object():
    true = discs()
    image = 255 * np.stack([true > 0, interiors(true)], -1).astype(np.uint8)
    results = [predictor(tile)(image) for tile in (24, 128)]
    for result in results:
        assert same_partition(result.labels, true)
        assert result.probabilities.shape == (2, *true.shape)
        assert {row.class_name for row in result.objects} == {"disc"}
    np.testing.assert_array_equal(*(result.labels for result in results))
    assert [row.area for row in results[0].objects] == np.bincount(true.ravel())[1:].tolist()


@pytest.mark.parametrize("dims", [2, 3])
def test_files_of_objects(tmp_path, dims):
    true = discs()
    image = 255 * np.stack([true > 0, interiors(true)], -1).astype(np.uint8)
    image = image if dims == 2 else np.stack([image] * 5)
    spacing = (0.003, 0.002, 0.001)[-dims:]
    write_image(tmp_path / "a.tif", image, spacing)
    (tmp_path / "out").mkdir()
    outlined = ["geojson", "imagej"] if dims == 2 else []
    if outlined:
        pytest.importorskip("roifile")
    with predictor(24, dims).open(tmp_path / "a.tif") as source:
        names, colors = ("not", "disc"), np.array([[0, 0, 0], [255, 0, 0]], np.uint8)
        write_masks(source, tmp_path / "out" / "a", colors, names, outlines=outlined)
    labels = tifffile.imread(tmp_path / "out/a_objects.tif")
    assert labels.dtype == np.uint16
    assert same_partition(labels, true if dims == 2 else np.stack([true] * 5))
    with open(tmp_path / "out/a_objects.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert (rows[0]["image"], rows[0]["class_name"], len(rows)) == ("a", "disc", 20)
    depth = 1 if dims == 2 else 5
    area = depth * int((true == 1).sum())
    assert int(rows[0]["area"]) == area
    assert float(rows[0][f"area_mm{dims}"]) == pytest.approx(area * np.prod(spacing))
    assert float(rows[1]["row_mm"]) == pytest.approx(7 * 0.002)
    assert float(rows[1]["column_mm"]) == pytest.approx(22 * 0.001)
    shown = tifffile.imread(tmp_path / "out/a_overlay.tif") if dims == 3 else None
    assert shown is None or (shown[2] != shown[0]).any()  # the numbers stand in the middle
    if outlined:
        found = json.loads((tmp_path / "out/a_objects.geojson").read_text())["features"]
        assert [f["properties"]["name"] for f in found] == [row["id"] for row in rows]
        assert len(__import__("roifile").roiread(tmp_path / "out/a_rois.zip")) == 20


def shoelace(ring):
    x, y = np.asarray(ring).T
    return abs((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2


def test_outlines_of_a_rectangle_with_a_hole(tmp_path):
    labels = np.zeros((20, 30), np.int32)
    labels[3:13, 5:25] = 1
    labels[6:8, 10:14] = 0
    rows = find_objects(labels, labels)
    ((polygon,),) = outlines(labels, rows)
    outer, hole = polygon
    assert shoelace(outer) == 10 * 20 - 0.5  # a triangle of an eighth is missing at each corner
    assert shoelace(hole) == 2 * 4 - 0.5
    assert outer.min(0).tolist() == [5, 3]
    assert outer.max(0).tolist() == [25, 13]
    write_geojson([(labels, rows)], tmp_path / "a.geojson", np.zeros((2, 3), np.uint8))
    (feature,) = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert feature["geometry"]["type"] == "Polygon"
    assert feature["geometry"]["coordinates"][0][0] == feature["geometry"]["coordinates"][0][-1]
    roifile = pytest.importorskip("roifile")
    write_rois([(labels, rows)], tmp_path / "a.zip")
    (roi,) = roifile.roiread(tmp_path / "a.zip")
    np.testing.assert_allclose(roi.coordinates(), outer[:-1])


def test_no_objects_make_an_empty_table(tmp_path):
    write_objects([[]], tmp_path / "a.csv", "a", (1.0, 2.0))
    (header,) = (tmp_path / "a.csv").read_text().splitlines()
    assert header.startswith("image,id,class,class_name,area,row,column,first_row")


@pytest.mark.parametrize(
    ("options", "spacing"),
    [
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "um"}}, (5e-4, 2.5e-4)),
        (
            {"imagej": True, "resolution": (4, 2), "metadata": {"unit": "mm", "spacing": 3}},
            (3, 0.5, 0.25),
        ),
        ({"resolution": (10, 20), "resolutionunit": 3}, (0.5, 1)),
        ({"resolution": (72, 72), "resolutionunit": 2}, None),
        ({}, None),
        (
            {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 2}},
            (2e-3, 5e-4),
        ),
    ],
)
def test_spacing_of_tiffs(tmp_path, options, spacing):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 8, 8), np.uint8), **options)
    assert lengths_of(tmp_path / "a.tif") == (spacing and pytest.approx(spacing))

from dataclasses import replace

import numpy as np
import pytest
from data_files import refused, write
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from ddpm_unet.config import PairDataConfig
from ddpm_unet.data.cells import (
    balanced_weights,
    border_weights,
    connected_cells,
    small_object,
    two_nearest,
)
from ddpm_unet.data.check import check_pairs
from ddpm_unet.data.masks import (
    IGNORE_INDEX,
    MaskCode,
    find_code,
    mask_values,
)

RNG = np.random.default_rng(0)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)


def code_for(found, top=255, **settings):
    return find_code(PairDataConfig(**settings), np.array(found), {top: max(found, default=0)})


def grey(rows, dtype=np.uint8):
    return np.array(rows, dtype)[..., None]


# What a file says


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
def test_equal_channels_and_a_constant_alpha_are_grey(channels, alpha):
    rows = np.array([[0, 255], [7, 3]], np.uint8)
    mask = np.repeat(rows[..., None], channels, -1)
    if alpha:
        mask = np.concatenate([mask, np.full_like(mask[..., :1], 255)], -1)
    np.testing.assert_array_equal(mask_values(mask, False, "m"), rows)
    np.testing.assert_array_equal(mask_values(mask, True, "m"), rows * np.int64(0x010101))


@pytest.mark.parametrize(
    ("mask", "colors", "message"),
    [
        (np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8), False, r"m.png: is coloured.*\[1, 2, 3\]"),
        (np.array([[[1, 1], [1, 0]]], np.uint8), False, "m.png: its transparency varies"),
        (np.zeros((2, 2, 5), np.uint8), False, "m.png: has 5 channels"),
        (np.zeros((2, 2, 3), np.uint16), True, "m.png: has uint16 colours"),
    ],
)
def test_files_that_are_no_masks(mask, colors, message):
    with refused(message):
        mask_values(mask, colors, "m.png")


# What the values of a set mean


@pytest.mark.parametrize(
    ("found", "top", "kind", "values"),
    [
        ([0, 1], 255, "classes", (0, 1)),
        ([0, 255], 255, "values", (0, 255)),
        ([0, 65535], 65535, "values", (0, 65535)),
        ([0, 1], 1, "values", (0, 1)),
    ],
)
def test_auto_takes_what_leaves_no_doubt(found, top, kind, values):
    code = code_for(found, top)
    assert (code.kind, code.values, code.num_classes) == (kind, values, 2)


def test_auto_takes_what_other_settings_settle():
    assert code_for([0, 1, 3], num_classes=5).values == (0, 1, 2, 3, 4)
    assert code_for([0, 1, 2], class_names=("a", "b", "c")).class_names == ("a", "b", "c")
    assert code_for([0, 9, 128], mask_values=(128, 0, 9)).values == (128, 0, 9)
    assert code_for([0, 1], ignore_value=255).ignore == 255


@pytest.mark.parametrize(
    ("found", "settings", "message"),
    [
        ([0, 1, 2], {}, "values 0, 1, 2: set data.mask_kind classes, or instances"),
        ([0, 65535], {}, "list the value of each class"),
        ([], {}, "hold no labelled pixel"),
        ([7], {}, "and no other"),
        ([0, 255], {"num_classes": 3}, "data.num_classes is for 3 classes, but .* give 2"),
        ([0, 1], {"mask_kind": "instances", "num_classes": 3}, "kind instances give 2"),
        ([0, 1], {"mask_kind": "classes", "mask_values": (0, 1)}, "data.mask_values is for"),
    ],
)
def test_auto_asks_about_the_rest(found, settings, message):
    with refused(message):
        code_for(found, **settings)


# From values to classes


@given(
    st.lists(st.integers(0, 65535), min_size=2, max_size=9, unique=True),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_listed_values_become_their_places(table, data):
    *table, ignore = table if len(table) > 2 else [*table, 65536]
    wanted = data.draw(hnp.arrays(np.int64, SHAPES, elements=st.integers(-1, len(table) - 1)))
    values = np.array([*table, ignore])[wanted]
    code = MaskCode("values", ("",) * len(table), tuple(table), ignore)
    classes = code.classes(values, "m")
    assert classes.dtype == np.int16
    np.testing.assert_array_equal(classes, np.where(wanted < 0, IGNORE_INDEX, wanted))


def test_colours_become_classes():
    table = ((0, 0, 0), (255, 0, 0), (0, 0, 255))
    settings = {"mask_kind": "colors", "class_colors": table, "ignore_value": (255, 255, 255)}
    code = code_for([0], **settings)
    mask = np.array([[[255, 0, 0], [0, 0, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    np.testing.assert_array_equal(code.classes(code.read(mask, "m"), "m"), [[1, 0, 2, -100]])
    with refused(r"m: \[254, 0, 0\] not in data.class_colors"):
        code.classes(code.read(mask[:, :1] - np.array([1, 0, 0], np.uint8), "m"), "m")


KINDS = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float16",
         "float32", "float64")  # fmt: skip


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("top", [1, 255, 65535])
def test_threshold_is_half_of_what_all_masks_hold(tmp_path, dtype, top):
    """Of every type and range, in all files together."""
    if dtype != "bool":
        top = min(top, float(np.finfo(dtype).max) if dtype[0] == "f" else np.iinfo(dtype).max)
    rows = np.array([[0, 0, top], [top / 4, 3 * top / 4, top]])
    wholes = rows > top / 2 if dtype == "bool" else rows.astype(dtype)
    for name, mask in (("a", wholes), ("b", np.zeros_like(wholes)), ("c", wholes[:, :2])):
        write(tmp_path / f"masks/{name}.tif", mask)
        write(tmp_path / f"images/{name}.tif", RNG.integers(0, 255, mask.shape).astype(np.uint8))
    folders = (f"{tmp_path}/images", f"{tmp_path}/masks")
    report = check_pairs(PairDataConfig(*folders, mask_kind="threshold", size=2))
    assert report.faults == []
    high = wholes > wholes.max() / 2
    wanted = [high.sum(), 0, high[:, :2].sum()]
    assert report.class_pixels[:, 1].tolist() == wanted


def test_threshold_of_types_that_disagree_is_refused():
    config = PairDataConfig(mask_kind="threshold")
    found = np.array([0.0, 1.0, 255.0])
    with refused("masks of several types, which hold values up to 1, 255"):
        find_code(config, found, {1: 1, 255: 255})
    assert find_code(config, found, {255: 255, 65535: 255}).half == 127.5
    with refused("hold no two values but 7"):
        find_code(config, np.array([7]), {255: 7})


def test_one_mask_alone_is_cut_at_half_of_itself():
    code, half = MaskCode("threshold", ("low", "high")), np.zeros((4, 4), np.float32)
    half[:2] = 1
    for mask in (half, half > 0, *[(half * 255).astype(t) for t in ("u1", "u2", "i4")]):
        values = mask_values(mask.astype(mask.dtype)[..., None], False, "m")
        assert np.bincount(code.classes(values, "m").ravel()).tolist() == [8, 8]
    soft = np.where(np.eye(4) > 0, 0.5, half).astype(np.float32)
    assert np.bincount(code.classes(soft, "m").ravel()).tolist() == [10, 6]


def test_colours_of_a_jpeg_are_the_nearest_ones(tmp_path):
    table = ((0, 0, 0), (200, 30, 30), (20, 20, 220))
    classes = np.repeat(np.repeat(np.arange(3)[None], 16, 0), 16, 1)
    write(tmp_path / "masks/a.jpg", np.array(table, np.uint8)[classes])
    write(tmp_path / "images/a.png", RNG.integers(0, 255, (16, 48), np.uint8))
    folders = (f"{tmp_path}/images", f"{tmp_path}/masks")
    settings = PairDataConfig(*folders, mask_kind="colors", class_colors=table, size=8)
    for kind in ("auto", "colors"):
        (fault,) = check_pairs(replace(settings, mask_kind=kind)).faults
        assert "data.nearest_color true" in fault
    report = check_pairs(replace(settings, nearest_color=True))
    assert report.faults == []
    assert report.class_pixels.tolist() == [[256, 256, 256]]
    assert "% of the pixels have a colour that is near no class's" in str(report)
    code = report.mask_code()
    values = code.read(np.uint8([[[0, 0, 0], [190, 40, 30], [20, 20, 100], [120, 120, 120]]]), "m")
    assert code.classes(values, "m").tolist() == [[0, 1, 0, 1]]
    assert code.unclear(values).tolist() == [[False, False, True, True]]


def test_instances():
    objects = np.zeros((7, 9), np.uint16)
    objects[1:6, 1:5], objects[1:6, 5:9], objects[6, 0] = 300, 9, 65535
    settings = {"ignore_value": 65535}
    classes = code_for([0], mask_kind="instances", **settings).classes(objects, "m")
    assert classes[6, 0] == IGNORE_INDEX
    np.testing.assert_array_equal(classes[:6] == 1, objects[:6] > 0)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("classes", [0, 5], r"m: value 5, but the 3 classes are numbered 0 to 2; raise data.num_c"),
        ("values", [0, 5], r"m: value 5 not in data.mask_values \[0, 1, 2\]"),
        ("instances", [0.5], "m: holds fractions"),
    ],
)
def test_strange_values_are_named_with_a_cure(kind, values, message):
    code = MaskCode(kind, ("",) * 3, (0, 1, 2))
    with refused(message):
        code.classes(np.array([values]), "m")


# Cells for border weights


def test_numbered_objects_are_cells():
    objects = np.zeros((6, 12), np.uint16)
    objects[:, :5], objects[:, 5:10] = 4, 2
    code = code_for([0], mask_kind="instances")
    cells = code.cells(objects, code.classes(objects, "m"), ())
    assert len(np.unique(cells)) == 3
    np.testing.assert_array_equal(cells > 0, objects > 0)


def test_other_masks_give_connected_pieces():
    values = np.array([[255, 0, 255], [255, 0, 255]], np.uint8)
    code = code_for([0, 255])
    classes = code.classes(values, "m")
    assert code.cells(values, classes, ()).max() == 2
    assert code.cells(values, classes, (0,)).max() == 1


def brute_force(cells):
    """Distances to the nearest and second nearest cell, from a transform per cell."""
    each = [ndimage.distance_transform_edt(cells != n) for n in np.unique(cells[cells > 0])]
    far = np.full(cells.shape, np.inf)
    return np.sort([far, far, *each], axis=0)[:2]


def random_cells(seed, shape=(48, 61), count=9):
    rng = np.random.default_rng(seed)
    seeds = np.zeros(shape, int)
    places = rng.choice(seeds.size, count, replace=False)
    seeds.flat[places] = rng.permutation(np.arange(1, 3 * count))[:count]
    reached, index = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    return np.where(reached < rng.uniform(2, 9), seeds[tuple(index)], 0)


@given(st.integers(0, 10_000), st.sampled_from([np.inf, 30.0, 9.0]))
@settings(max_examples=25, deadline=None)
def test_two_nearest_is_brute_force_in_the_background(seed, reach):
    cells = random_cells(seed)
    wanted = brute_force(cells)
    d1, d2 = two_nearest(cells, reach)
    background = cells == 0
    np.testing.assert_allclose(d1[background], wanted[0][background])
    within = background & (wanted.sum(0) <= reach)
    np.testing.assert_allclose(d2[within], wanted[1][within])
    assert np.isinf(d2[~within]).all()


@pytest.mark.parametrize("count", [0, 1])
def test_without_two_cells_there_is_no_border(count):
    cells = np.zeros((20, 20), int)
    cells[:3, :3] = count
    weights = border_weights((cells > 0).astype(int), cells, np.ones(2))
    assert (weights == 1).all()


def test_weights_are_equation_2():
    cells = random_cells(3)
    classes = (cells > 0).astype(np.int16)
    classes[0, :5] = -100
    class_weights = np.array([1.7, 0.4])
    d1, d2 = brute_force(cells)
    wanted = class_weights[classes.clip(0)] + (cells == 0) * 10 * np.exp(-((d1 + d2) ** 2) / 50)
    wanted[classes < 0] = 0
    weights = border_weights(classes, cells, class_weights)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, wanted, atol=2e-6)


def test_connected_cells_joins_sides_not_corners_and_keeps_classes_apart():
    classes = np.array([[1, 1, 0, 1], [0, 0, 1, 0], [2, 2, 2, 0]])
    cells = connected_cells(classes, [1, 2])
    assert len(np.unique(cells[cells > 0])) == 4
    assert cells[0, 0] == cells[0, 1] != cells[0, 3]
    assert cells[1, 2] != cells[2, 2]
    assert ((cells > 0) == (classes > 0)).all()
    assert connected_cells(classes, [2]).max() == 1


def test_balanced_weights_give_every_class_the_same_sum():
    counts = np.array([900, 0, 90, 10])
    weights = balanced_weights(counts)
    np.testing.assert_allclose((weights * counts)[[0, 2, 3]], 1000 / 3)
    assert weights[1] == 0


def test_a_small_object_has_the_area_that_a_twentieth_are_below():
    lines = [np.repeat(np.arange(1, 51), np.arange(1, 51) + first) for first in (0, 50)]
    images = [np.append(line, [0] * 7)[None] for line in lines]  # areas of 1 to 100, and background
    assert small_object(iter(images)) == 5
    assert small_object([np.zeros((2, 3), int)]) == 0

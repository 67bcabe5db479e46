"""Positions decide everything: order, windows and orientation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_unet.data.collection import ArrayCollection
from ddpm_unet.data.image_set import Fit, open_collection
from ddpm_unet.data.pixels import to_unit
from ddpm_unet.data.stream import Grid, Stream, order, to_model_range

RNG = np.random.default_rng(0)


def image_set(size, *sizes, dtype="uint8", **fit):
    full = np.iinfo(dtype).max
    images = [RNG.integers(0, full, (*shape, 3), endpoint=True).astype(dtype) for shape in sizes]
    classes = ("c",) * len(sizes)
    collection = ArrayCollection(images, "set", np.arange(len(sizes)), classes)
    return open_collection(collection, Fit(size, **fit))


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 200), st.integers(0, 10**12))
def test_an_epoch_visits_every_item_once(seed, length, epoch):
    positions = np.arange(epoch * length, (epoch + 1) * length)
    items = order(seed, positions, length)
    assert sorted(items) == list(range(length))
    np.testing.assert_array_equal(order(seed, positions[::-1], length)[::-1], items)


def test_orders_differ_and_any_item_may_come_first():
    epochs = [order(0, np.arange(e * 50, (e + 1) * 50), 50).tolist() for e in range(4)]
    epochs.append(order(1, np.arange(50), 50).tolist())
    assert len({tuple(epoch) for epoch in epochs}) == 5
    first = [int(order(seed, np.array([0]), 5)[0]) for seed in range(2000)]
    counts = np.bincount(first, minlength=5)
    assert ((counts - 400) ** 2 / 400).sum() < 18.5  # chi-squared, 4 degrees of freedom, 0.1 %


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=20), st.data())
def test_a_batch_is_its_positions_and_nothing_else(positions, data):
    stream = Stream(SET, flips=True, rot90=True, seed=3)
    batch = stream.__getitems__(positions)
    assert batch["position"].tolist() == positions
    cut = data.draw(st.integers(0, len(positions)))
    parts = [stream.__getitems__(part) for part in (positions[:cut], positions[cut:])]
    for key, values in batch.items():
        torch.testing.assert_close(torch.cat([part[key] for part in parts]), values, rtol=0, atol=0)
    alone = Stream(SET, flips=True, rot90=True, seed=3)[positions[0]]
    torch.testing.assert_close(alone["image"], batch["image"][0], rtol=0, atol=0)


SET = image_set(8, (9, 30), (8, 8), (25, 16))


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("rot90", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_items_are_turned_windows_of_their_images(flips, rot90, dtype):
    images = image_set(8, (9, 30), (25, 16), dtype=dtype)
    stream = Stream(images, flips=flips, rot90=rot90)
    positions = np.arange(200)
    batch, windows = stream.__getitems__(positions), stream.windows(positions)
    for i, found in enumerate(batch["image"].numpy()):
        top, left = windows.corner[i]
        image = images[int(windows.image[i])].numpy()
        window = image[:, top : top + 8, left : left + 8]
        window = np.rot90(window, windows.rot90[i], axes=(1, 2))
        window = np.flip(window, 1 + np.flatnonzero(windows.mirrored[i]))
        np.testing.assert_array_equal(found, to_unit(window) if dtype == "uint16" else window)
    assert windows.mirrored.any(axis=0).tolist() == [flips] * 2
    assert len(np.unique(windows.rot90)) == (4 if rot90 else 1)


def orientations(mode="crop", **changes):
    """How often each of the eight orientations of one asymmetric image is met."""
    marked = np.zeros((4, 4, 1), np.uint8)
    marked[0, 1] = 1
    images = open_collection(ArrayCollection([marked], "a"), Fit(4, mode=mode))
    found = Stream(images, **changes).__getitems__(range(4000))["image"].numpy()
    places = found.reshape(4000, 16).argmax(1)
    return np.bincount(places, minlength=16)[[1, 2, 4, 7, 8, 11, 13, 14]]


@pytest.mark.parametrize(
    ("mode", "flips", "rot90", "met"),
    [
        ("crop", False, False, 1),
        ("crop", True, True, 8),
        ("crop", True, False, 4),
        ("crop", False, True, 4),
        ("resize", True, True, 8),
        ("resize", True, False, 2),
    ],
)
def test_orientations_are_equally_likely(mode, flips, rot90, met):
    counts = orientations(mode, flips=flips, rot90=rot90)
    assert (counts > 0).sum() == met
    expected = 4000 / met
    assert ((counts[counts > 0] - expected) ** 2 / expected).sum() < 24.4  # 7 d.f., 0.1 %


def test_images_are_drawn_by_area_and_places_evenly():
    stream = Stream(image_set(4, (4, 4), (8, 16), (7, 12)))
    assert stream.epoch_length == 1 + 8 + 5
    windows = stream.windows(np.arange(14 * 500))
    assert np.bincount(windows.image).tolist() == [500, 4000, 2500]
    second = windows.image == 1
    top, left = windows.corner[second].T
    for drawn, places in ((top, 5), (left, 13)):
        counts = np.bincount(drawn, minlength=places)
        assert len(counts) == places
        assert ((counts - 4000 / places) ** 2 / (4000 / places)).sum() < 33  # 12 d.f., 0.1 %
    assert abs(np.corrcoef(top, left)[0, 1]) < 0.06


def test_depth_reaches_the_model_uncut():
    deep = ArrayCollection([np.arange(16, dtype=np.uint16).reshape(4, 4, 1)], "a")
    found = Stream(open_collection(deep, Fit(4)))[7]["image"]
    assert found.dtype == torch.float32
    assert len(found.unique()) == 16  # 8 bits would leave one value
    torch.testing.assert_close(found.flatten(), torch.arange(16) / 32767.5 - 1, rtol=0, atol=1e-7)
    ranged = Stream(open_collection(deep, Fit(4, value_range=(0, 15))))
    torch.testing.assert_close(ranged[7]["image"].max(), torch.tensor(1.0))


def test_8_bits_become_floats_on_the_device_as_on_the_host():
    values = np.arange(256, dtype=np.uint8)
    torch.testing.assert_close(
        to_model_range(torch.from_numpy(values)), torch.from_numpy(to_unit(values)), rtol=0, atol=0
    )
    ready = torch.randn(3)
    assert to_model_range(ready) is ready


def test_labels_and_names_follow_the_images():
    stream = Stream(SET, seed=1)
    positions = np.arange(40)
    batch = stream.__getitems__(positions)
    np.testing.assert_array_equal(batch["label"], stream.windows(positions).image)
    assert stream.name(5) == f"set[{int(batch['label'][5])}]"


def test_the_grid_covers_each_image_once_without_gaps():
    images = image_set(4, (4, 4), (9, 17))
    grid = Grid(images)
    assert len(grid) == 1 + 2 * 4
    batch = grid.__getitems__(range(9))
    whole = images[1].numpy()
    expected = [images[0].numpy()]
    expected += [whole[:, y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4, 8, 12)]
    found = sorted(window.tobytes() for window in batch["image"].numpy())
    assert found == sorted(np.ascontiguousarray(window).tobytes() for window in expected)
    torch.testing.assert_close(grid[5]["image"], batch["image"][5])
    with pytest.raises(IndexError):
        grid[9]


def test_windows_stay_the_same_between_versions():
    """A run resumed with a newer version of the package goes on with the same windows."""
    windows = Stream(SET, flips=True, rot90=True, seed=3).windows([0, 1, 7, 8, 10**12])
    assert windows.image.tolist() == [2, 2, 0, 2, 2]
    assert windows.corner.tolist() == [[14, 0], [6, 1], [0, 20], [0, 0], [4, 5]]
    assert windows.rot90.tolist() == [3, 1, 0, 3, 3]
    assert windows.mirrored.astype(int).tolist() == [[1, 0], [1, 0], [0, 0], [1, 1], [0, 0]]


def test_what_is_changed_is_said_with_the_cure():
    assert "random" not in Stream(SET).describe()
    assert (
        Stream(SET, flips=True)
        .describe()
        .endswith("mirrored at random (where left and up matter, set flips to false)")
    )
    assert "set flips and rot90 to false" in Stream(SET, flips=True, rot90=True).describe()


def test_the_digest_is_of_names_and_sizes():
    sizes = [(9, 30), (8, 8), (25, 16)]
    same, other = image_set(8, *sizes), image_set(8, *sizes[:2], (25, 17))
    assert Stream(SET).digest == Grid(SET).digest == same.digest
    assert len({SET.digest, other.digest, image_set(8, *sizes[:2]).digest}) == 3
    assert Stream(SET).fingerprint() != Stream(same).fingerprint()  # other pixels
    assert Stream(SET).fingerprint() != Stream(SET, flips=True).fingerprint()

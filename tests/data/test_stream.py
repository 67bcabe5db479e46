"""Positions decide everything, every position comes once, and workers that fail say why."""

import os
import time

import numpy as np
import pytest
import torch
from data_files import refused, write
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_unet.data.collection import ArrayCollection
from ddpm_unet.data.folder import Folder
from ddpm_unet.data.image_set import open_collection
from ddpm_unet.data.loader import make_loader, shares, step_batches, worker_fault
from ddpm_unet.data.pixels import Fit, to_unit
from ddpm_unet.data.stream import Grid, Stream, to_model_range
from ddpm_unet.data.windows import order
from ddpm_unet.errors import UserError

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


def test_the_digest_is_of_names_and_sizes():
    sizes = [(9, 30), (8, 8), (25, 16)]
    same, other = image_set(8, *sizes), image_set(8, *sizes[:2], (25, 17))
    assert Stream(SET).digest == Grid(SET).digest == same.digest
    assert len({SET.digest, other.digest, image_set(8, *sizes[:2]).digest}) == 3
    assert Stream(SET).fingerprint() != Stream(same).fingerprint()  # other pixels
    assert Stream(SET).fingerprint() != Stream(SET, flips=True).fingerprint()


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 70), st.integers(1, 9), st.integers(0, 20))
def test_shares_are_the_whole_in_order(start, size, processes, micro):
    whole = range(start, start + size)
    parts = [shares(whole, p, processes, micro) for p in range(processes)]
    assert [position for part in parts for piece in part for position in piece] == list(whole)
    sizes = [sum(map(len, part)) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for part in parts:
        assert all(0 < len(piece) <= (micro or size) for piece in part)
        assert all(len(piece) == micro for piece in part[:-1])


def test_steps_start_anywhere():
    early = list(step_batches(range(0, 6), 10, 1, 3, 2))
    assert early[:2] == [[3, 4], [5]]
    assert list(step_batches(range(4, 6), 10, 1, 3, 2)) == early[8:]


def write_folder(root, number=6):
    for i in range(number):
        write(root / f"{i}.png", np.random.default_rng(i).integers(0, 256, (12, 12, 3), np.uint8))
    return Folder(root)


@pytest.mark.parametrize("memory_limit", [0, 10])
def test_workers_give_what_the_main_process_gives(tmp_path, memory_limit):
    stream = Stream(open_collection(write_folder(tmp_path), Fit(8), memory_limit), flips=True)
    batches = list(step_batches(range(2, 5), 7, 1, 2, 3))
    alone = list(make_loader(stream, batches))
    helped = list(make_loader(stream, batches, workers=2))
    assert [batch["position"].tolist() for batch in alone] == batches
    for one, other in zip(alone, helped, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_one_line_from_any_process(tmp_path, workers):
    stream = Stream(open_collection(write_folder(tmp_path), Fit(8), memory_limit=0))
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[:200])
    with pytest.raises(UserError) as caught:
        list(make_loader(stream, step_batches(range(5), 6), workers=workers))
    assert str(caught.value).startswith(f"{tmp_path / '3.png'}: is damaged or truncated")
    assert "\n" not in str(caught.value)


class Dying:
    """A stream whose worker dies, or stays away, at position 4."""

    def __init__(self, stuck):
        self.stuck = stuck

    def __getitems__(self, positions):
        if 4 in positions:
            time.sleep(60) if self.stuck else os.kill(os.getpid(), 9)
        return {"position": torch.tensor(positions)}


@pytest.mark.parametrize("stuck", [False, True])
def test_a_lost_worker_is_an_error_with_its_cause(stuck, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.3)  # 5 s
    patience = 1.0 if stuck else 60.0
    loader = make_loader(Dying(stuck), step_batches(range(5), 2), workers=1, timeout=patience)
    with refused("timed out" if stuck else "Killed") as caught:
        list(loader)
    assert "data.workers" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_errors_are_no_lost_workers():
    for error in (RuntimeError("shapes differ"), OSError("Caught OSError in DataLoader worker")):
        assert worker_fault(error) is None
    lost = worker_fault(RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. "))
    assert "Killed" in str(lost)

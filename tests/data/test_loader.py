"""Every position of every step once, whatever the split; workers that fail say why."""

import os
import time

import numpy as np
import pytest
import torch
from data_files import write
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_unet.data.folder import Folder
from ddpm_unet.data.image_set import Fit, open_collection
from ddpm_unet.data.loader import StepBatches, make_loader, shares, worker_fault
from ddpm_unet.data.stream import Stream
from ddpm_unet.errors import UserError


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
    early = list(StepBatches(range(0, 6), 10, 1, 3, 2))
    assert early[:2] == [[3, 4], [5]]
    assert list(StepBatches(range(4, 6), 10, 1, 3, 2)) == early[8:]


def write_folder(root, number=6):
    for i in range(number):
        write(root / f"{i}.png", np.random.default_rng(i).integers(0, 256, (12, 12, 3), np.uint8))
    return Folder(root)


@pytest.mark.parametrize("memory_limit", [0, 10])
def test_workers_give_what_the_main_process_gives(tmp_path, memory_limit):
    stream = Stream(open_collection(write_folder(tmp_path), Fit(8), memory_limit), flips=True)
    batches = StepBatches(range(2, 5), 7, 1, 2, 3)
    alone = list(make_loader(stream, batches))
    helped = list(make_loader(stream, batches, workers=2))
    assert [batch["position"].tolist() for batch in alone] == list(batches)
    for one, other in zip(alone, helped, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_one_line_from_any_process(tmp_path, workers):
    stream = Stream(open_collection(write_folder(tmp_path), Fit(8), memory_limit=0))
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[:200])
    with pytest.raises(UserError) as caught:
        list(make_loader(stream, StepBatches(range(5), 6), workers=workers))
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
    loader = make_loader(Dying(stuck), StepBatches(range(5), 2), workers=1, timeout=patience)
    with pytest.raises(UserError, match="timed out" if stuck else "Killed") as caught:
        list(loader)
    assert "data.workers" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_errors_are_no_lost_workers():
    for error in (RuntimeError("shapes differ"), OSError("Caught OSError in DataLoader worker")):
        assert worker_fault(error) is None
    lost = worker_fault(RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. "))
    assert "Killed" in str(lost)

import numpy as np
import pytest
import torch
from scipy import ndimage

from ddpm_unet.evaluation.metrics import OBJECT_SCORES, object_scores


def row(*lengths, size=40):
    """Objects 1, 2, ... of so many pixels in a row, 10 apart."""
    labels = np.zeros((3, size), int)
    for number, length in enumerate(lengths):
        labels[1, 10 * number : 10 * number + length] = number + 1
    return labels


def blobs(seed, shape=(60, 70)):
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.label(ndimage.gaussian_filter(noise, 2) > 0.05)[0]


def test_scores_by_hand():
    true, found = row(8, 8, 8), row(8, 6, 3)
    found[2, 30:34] = 9  # of no true object
    scores = object_scores(found, true)
    ious = [1, 6 / 8, 3 / 8]
    assert [scores[f"ap{t}0"] for t in (5, 6, 7, 8, 9)] == [2 / 5, 2 / 5, 2 / 5, 1 / 6, 1 / 6]
    assert scores["pq"] == pytest.approx(sum(ious[:2]) / (2 + 2 / 2 + 1 / 2))
    assert scores["aji"] == pytest.approx((8 + 6 + 3) / (24 + 4))
    assert scores["count_error"] == 1
    assert scores.keys() == set(OBJECT_SCORES)


def test_numbers_of_objects_do_not_matter():
    true, found = blobs(0), np.roll(blobs(0), 1, axis=1)
    renamed = np.random.default_rng(1).permutation(found.max()) + 5
    assert object_scores(np.where(found > 0, renamed[found - 1], 0), true) == object_scores(
        found, true
    )
    assert object_scores(true, true) == dict.fromkeys(OBJECT_SCORES, 1) | {"count_error": 0}


def test_without_objects():
    none = np.zeros((3, 40), int)
    assert object_scores(none, none) == {"count_error": 0}
    for pair in ((none, row(5, 5)), (row(5, 5), none)):
        assert object_scores(*pair) == dict.fromkeys(OBJECT_SCORES, 0) | {"count_error": 2}
    with pytest.raises(ValueError, match="differ in shape"):
        object_scores(none, none[:2])


def test_one_to_one_at_exactly_a_half():
    """Two halves of an object: only one of them is it."""
    found = row(8)
    found[1, 4:8] = 2
    assert object_scores(found, row(8))["ap50"] == 1 / 2


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_quality_is_that_of_torchmetrics(seed):
    functional = pytest.importorskip("torchmetrics.functional.detection")
    true = blobs(seed)
    found = ndimage.label(ndimage.shift(true > 0, seed, order=0))[0]
    planes = [torch.from_numpy(np.stack([x > 0, x], -1))[None].long() for x in (found, true)]
    pq = functional.panoptic_quality(
        *planes, things={1}, stuffs={0}, return_per_class=True, allow_unknown_preds_category=True
    )
    assert object_scores(found, true)["pq"] == pytest.approx(float(pq[0, 0]))

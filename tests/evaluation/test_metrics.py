import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.ndimage import gaussian_filter

from ddpm_unet.evaluation.metrics import (
    OBJECT_SCORES,
    boundary_f,
    confusion,
    hausdorff,
    mean_over_images,
    object_scores,
    outline,
    overlap,
    scores_of_image,
    shown_scores,
)


def random_classes(seed, shape=(4, 9, 11), classes=3):
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))


def test_counts_by_hand():
    target = torch.tensor([[0, 0, 1], [1, 2, 255]])
    prediction = torch.tensor([[0, 1, 1], [1, 0, 2]])
    counts = confusion(prediction, target, 3, ignore_index=255)
    assert counts.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    scores = overlap(counts)
    assert scores.dice.tolist() == pytest.approx([2 / 4, 4 / 5, 0])
    assert scores.iou.tolist() == pytest.approx([1 / 3, 2 / 3, 0])
    assert scores.mean_dice == pytest.approx(1.3 / 3)
    assert scores.mean_iou == pytest.approx(1 / 3)
    assert scores.pixel_error == pytest.approx(2 / 5)


def test_scores_equal_scikit_learn_and_torchmetrics():
    sklearn = pytest.importorskip("sklearn.metrics")
    segmentation = pytest.importorskip("torchmetrics.functional.segmentation")
    prediction, target = random_classes(1), random_classes(2)
    counts = confusion(prediction, target, 3)
    flat = target.flatten(), prediction.flatten()
    assert (counts.numpy() == sklearn.confusion_matrix(*flat)).all()
    scores = overlap(counts)
    assert scores.iou.numpy() == pytest.approx(sklearn.jaccard_score(*flat, average=None))
    assert scores.dice.numpy() == pytest.approx(sklearn.f1_score(*flat, average=None))
    whole = [x.reshape(1, -1, 11) for x in (prediction, target)]
    ious = segmentation.mean_iou(*whole, num_classes=3, per_class=True, input_format="index")
    assert scores.iou.numpy() == pytest.approx(ious[0].numpy())


def test_absent_classes_do_not_count():
    scores = overlap(confusion(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 4))
    assert scores.dice.isnan().tolist() == [False, False, True, True]
    assert scores.mean_dice == pytest.approx(2 / 3)
    # A class that is only predicted, or only true, is wrong: 0.
    assert overlap(confusion(torch.tensor([0]), torch.tensor([1]), 2)).mean_iou == 0


def test_faults_are_refused():
    with pytest.raises(ValueError, match="target has class 0 to 255"):
        confusion(torch.tensor([0, 1]), torch.tensor([0, 255]), 2)
    with pytest.raises(ValueError, match="prediction has class -1"):
        confusion(torch.tensor([-1]), torch.tensor([0]), 2)
    with pytest.raises(ValueError, match="one shape"):
        confusion(torch.zeros(2, 3).long(), torch.zeros(3, 2).long(), 2)


def square(size, low, high, dims=2):
    region = np.zeros((size,) * dims, dtype=bool)
    region[(slice(low, high),) * dims] = True
    return region


def blob(seed, shape=(14, 17)):
    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2) > 0


@pytest.mark.parametrize(("shape", "spacing"), [((14, 17), (0.5, 3.0)), ((9, 12, 11), (5, 1, 1))])
@pytest.mark.parametrize("percentile", [95, 100])
def test_hausdorff_distance_is_monais_and_that_of_brute_force(shape, spacing, percentile):
    monai = pytest.importorskip("monai.metrics")
    ours, theirs = blob(1, shape), blob(2, shape)
    found = hausdorff(ours, theirs, spacing, percentile)
    p, t = (np.argwhere(outline(x)) * np.array(spacing) for x in (ours, theirs))
    table = np.linalg.norm(p[:, None] - t[None], axis=2)
    directed = (np.percentile(table.min(axis), percentile) for axis in (0, 1))
    assert found == pytest.approx(max(directed))
    a, b = (torch.from_numpy(x)[None, None] for x in (ours, theirs))
    other = monai.compute_hausdorff_distance(
        a, b, include_background=True, percentile=percentile, spacing=spacing
    )
    assert found == pytest.approx(float(other), rel=1e-5)


def test_outlines_of_a_shifted_square():
    a, b = square(40, 10, 30), np.roll(square(40, 10, 30), 3, axis=1)
    assert outline(a).sum() == 76
    assert outline(np.ones((3, 3), bool)).sum() == 8
    assert hausdorff(a, b) == hausdorff(a, b, percentile=100) == 3
    assert hausdorff(a, b, spacing=(1, 2)) == 6
    assert boundary_f(a, a) == boundary_f(a, b, tolerance=3) == 1
    # Of 76 outline pixels within 2: 19 in each of the rows in common, 4 of the near column.
    assert boundary_f(a, b, tolerance=2) == pytest.approx((2 * 19 + 4) / 76)
    assert boundary_f(square(20, 1, 4), square(20, 12, 18)) == 0
    far = a.copy()
    far[0, 0] = True
    assert hausdorff(far, a, percentile=100) == pytest.approx(np.hypot(10, 10))
    assert hausdorff(far, a) == 0


def test_empty_regions_and_faults():
    a, none = square(8, 2, 6), np.zeros((8, 8), bool)
    assert hausdorff(none, none) == 0
    assert hausdorff(a, none) == hausdorff(none, a) == np.inf
    assert boundary_f(none, none) == 1
    assert boundary_f(a, none) == boundary_f(none, a) == 0
    with pytest.raises(ValueError, match="bool"):
        hausdorff(np.zeros((3, 3)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="one shape"):
        boundary_f(np.zeros((3, 3), bool), np.zeros((3, 4), bool))


def test_scores_of_an_image_are_means_over_its_classes():
    truth = torch.from_numpy(square(40, 10, 30).astype(int))
    moved = truth.roll(3, 1)
    dice = 2 * 17 / (20 + 20)
    assert scores_of_image(moved, truth, 2) == pytest.approx(
        {"dice": dice, "iou": 17 / 23, "hd95": 3, "boundary_f": (2 * 19 + 4) / 76}
    )
    both = truth.clone()
    both[0, :5] = 2  # a class that only the truth has has no distance
    found = scores_of_image(moved, both, 3)
    assert found["dice"] == pytest.approx(dice / 2)
    assert found["hd95"] == 3
    both[both == 2] = -1
    assert scores_of_image(moved, both, 3, -1) == scores_of_image(moved, truth, 2)
    assert scores_of_image(0 * truth, 0 * truth, 2) == {}


def test_the_interval_of_a_mean_is_that_of_a_normal_mean():
    values = np.random.default_rng(1).normal(0.8, 0.05, 200)
    rows = [{"dice": v, "iou": v, "boundary_f": v, "hd95": 1.0} for v in values]
    found = mean_over_images([*rows, {}])
    half = 1.96 * values.std() / 200**0.5
    for name in ("image_dice", "image_iou", "boundary_f"):
        assert found[name] == pytest.approx(values.mean())
        assert found[f"{name}_high"] - values.mean() == pytest.approx(half, rel=0.15)
        assert values.mean() - found[f"{name}_low"] == pytest.approx(half, rel=0.15)
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        assert f"{found[name]:.4f}  (95 %: {low:.4f} to {high:.4f})" in shown_scores(found)
    assert found["hd95"] == found["hd95_low"] == found["hd95_high"] == 1
    found = mean_over_images([{"dice": 0.5}, {"dice": 0.7}])
    assert shown_scores({"v_rand": 0.5}).split() == ["v_rand", "0.5000"]
    assert "boundary_f" not in found
    assert mean_over_images([{"dice": 0.5}]) == {"image_dice": 0.5}


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

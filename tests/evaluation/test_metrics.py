import pytest
import torch

from ddpm_unet.evaluation.metrics import confusion, overlap


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


def test_counts_add_up_over_any_batches():
    prediction, target = random_classes(3), random_classes(4)
    target[0, 0] = -1
    whole = confusion(prediction, target, 3, ignore_index=-1)
    parts = [confusion(p, t, 3, -1) for p, t in zip(prediction, target, strict=True)]
    assert torch.equal(sum(parts), whole)
    assert whole.dtype == torch.int64
    assert whole.sum() == target.numel() - 11


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

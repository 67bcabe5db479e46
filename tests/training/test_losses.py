import pytest
import torch
import torch.nn.functional as F

from ddpm_unet.data.masks import IGNORE_INDEX
from ddpm_unet.training.losses import cross_entropy, dice, focal, segmentation_loss

every_loss = pytest.mark.parametrize(
    "name", ["cross_entropy", "dice", "cross_entropy+dice", "focal", "border"]
)


@pytest.fixture
def example():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, 4, 9, 11, generator=generator)
    masks = torch.randint(0, 4, (3, 9, 11), generator=generator)
    masks[0, :4] = IGNORE_INDEX
    masks[2][masks[2] == 1] = 3
    return logits, masks


def loss_of(name, logits, masks, **kwargs):
    if name == "border":
        kwargs["pixel_weights"] = torch.full(masks.shape, 1.5)
    return segmentation_loss(name, logits, masks, **kwargs)


def test_cross_entropy_of_each_image_is_torchs(example):
    logits, masks = example
    wanted = [F.cross_entropy(logits[i : i + 1], masks[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(cross_entropy(logits, masks), torch.stack(wanted))


def test_weights_multiply_and_the_divisor_is_the_number_of_labelled_pixels(example):
    logits, masks = example
    class_weights, pixel_weights = torch.tensor([0.5, 2.0, 1.0, 3.0]), torch.rand(masks.shape)
    wanted = torch.zeros(3)
    logs = logits.log_softmax(1)
    for i in range(3):
        places = (masks[i] != IGNORE_INDEX).nonzero().tolist()
        for y, x in places:
            c = int(masks[i, y, x])
            wanted[i] -= class_weights[c] * pixel_weights[i, y, x] * logs[i, c, y, x] / len(places)
    got = cross_entropy(logits, masks, class_weights, pixel_weights)
    torch.testing.assert_close(got, wanted)


def test_border_is_cross_entropy_under_its_maps_and_insists_on_them(example):
    logits, masks = example
    maps = torch.rand(masks.shape)
    got = segmentation_loss("border", logits, masks, pixel_weights=maps)
    torch.testing.assert_close(got, cross_entropy(logits, masks, pixel_weights=maps))
    with pytest.raises(ValueError, match="needs the batch's weight maps"):
        segmentation_loss("border", logits, masks)


@pytest.mark.parametrize("class_weights", [None, torch.tensor([0.5, 2.0, 1.0, 3.0])])
def test_dice_is_its_formula_over_the_classes_present(example, class_weights):
    logits, masks = example
    wanted = []
    for scores, mask in zip(logits.softmax(1), masks, strict=True):
        labelled = mask != IGNORE_INDEX
        top = bottom = 0.0
        for c in mask[labelled].unique().tolist():
            p, g = scores[c][labelled], (mask[labelled] == c).float()
            weight = 1.0 if class_weights is None else float(class_weights[c])
            top += weight * (1 - 2 * (p * g).sum() / (p.sum() + g.sum()))
            bottom += weight
        wanted.append(top / bottom)
    torch.testing.assert_close(dice(logits, masks, class_weights), torch.stack(wanted))


def test_focal_is_lins_formula_and_at_gamma_0_cross_entropy(example):
    logits, masks = example
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0])
    torch.testing.assert_close(focal(logits, masks, gamma=0.0), cross_entropy(logits, masks))
    torch.testing.assert_close(
        focal(logits, masks, weights, gamma=0.0), cross_entropy(logits, masks, weights)
    )
    z = torch.tensor(1.3)
    p = z.sigmoid()
    got = focal(z.view(1, 1, 1, 1), torch.ones(1, 1, 1, dtype=torch.long), gamma=2.0)
    torch.testing.assert_close(got[0], -((1 - p) ** 2) * p.log())


@every_loss
def test_one_channel_means_two_classes(name):
    logits, masks = torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 8, 8))
    two = torch.cat([torch.zeros_like(logits), logits], 1)
    torch.testing.assert_close(loss_of(name, logits, masks), loss_of(name, two, masks))


def test_the_default_is_the_sum(example):
    both = segmentation_loss("cross_entropy+dice", *example)
    torch.testing.assert_close(both, cross_entropy(*example) + dice(*example))


@every_loss
def test_unlabelled_pixels_have_no_part(name, example):
    logits, masks = example
    logits = logits.clone().requires_grad_()
    loss = loss_of(name, logits, masks)
    loss.sum().backward()
    ignored = (masks == IGNORE_INDEX).unsqueeze(1).expand_as(logits)
    assert (logits.grad[ignored] == 0).all()
    assert (logits.grad[~ignored] != 0).any()
    changed = torch.where(ignored, logits.detach() + 5, logits.detach())
    torch.testing.assert_close(loss_of(name, changed, masks), loss.detach())


@every_loss
def test_an_unlabelled_image_has_loss_and_gradient_0(name):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = loss_of(name, logits, torch.full((1, 4, 4), IGNORE_INDEX))
    loss.sum().backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@every_loss
def test_an_images_loss_does_not_depend_on_its_batch(name, example):
    logits, masks = example
    whole = loss_of(name, logits, masks)
    assert whole.shape == (3,)
    alone = torch.cat([loss_of(name, logits[i : i + 1], masks[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(whole, alone, rtol=1e-6, atol=0)


@every_loss
def test_low_precision_logits_are_computed_in_float32(name, example):
    logits, masks = example
    low = logits.bfloat16()
    loss = loss_of(name, low, masks)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_of(name, low.float(), masks))


@every_loss
def test_extreme_logits_stay_finite(name):
    logits = torch.tensor([[[[1e4, -1e4]], [[-1e4, 1e4]]]]).requires_grad_()
    for mask in ([[[0, 1]]], [[[1, 0]]]):
        loss = loss_of(name, logits, torch.tensor(mask))
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


def test_volumes():
    logits, masks = torch.randn(2, 3, 4, 5, 6), torch.randint(0, 3, (2, 4, 5, 6))
    flat = segmentation_loss("cross_entropy+dice", logits.flatten(3), masks.flatten(2))
    torch.testing.assert_close(segmentation_loss("cross_entropy+dice", logits, masks), flat)


def test_shapes_that_do_not_fit_and_unknown_names_are_refused(example):
    logits, masks = example
    with pytest.raises(ValueError, match=r"masks \[3, 1, 9, 11\] do not fit"):
        cross_entropy(logits, masks.unsqueeze(1))
    with pytest.raises(ValueError, match="'iou' is not one of cross_entropy, dice"):
        segmentation_loss("iou", logits, masks)

import math

import numpy as np
import pytest
import torch

from ddpm_unet.evaluation.image_quality import image_scores, spectral_scores, ssim
from ddpm_unet.training.losses import image_loss

functional = pytest.importorskip("torchmetrics.functional.image")
metrics = pytest.importorskip("skimage.metrics")


@pytest.fixture
def noisy():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 24, 20, generator=generator) * 1.6 - 0.8
    return truth + 0.1 * torch.randn(3, 24, 20, generator=generator), truth


def test_scores_equal_scikit_image_and_closed_forms(noisy):
    picture, truth = noisy
    scores = image_scores(picture, truth)
    a, b = picture.numpy(), truth.numpy()
    assert scores["psnr"] == pytest.approx(metrics.peak_signal_noise_ratio(b, a, data_range=2))
    assert scores["mae"] == pytest.approx(np.abs(a - b).mean() / 2)
    similar, full = metrics.structural_similarity(
        (b + 1) / 2, (a + 1) / 2, data_range=1, channel_axis=0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    inner = functional.structural_similarity_index_measure(
        (picture[None] + 1) / 2, (truth[None] + 1) / 2, data_range=1.0
    )
    assert scores["ssim"] == pytest.approx(float(inner), abs=1e-6)
    assert scores["ssim"] == pytest.approx(float(full.mean()), abs=0.01)
    assert scores["ssim"] == pytest.approx(float(similar), abs=0.01)


def test_equal_pictures_are_perfect(noisy):
    scores = image_scores(noisy[1], noisy[1])
    assert scores == {"psnr": math.inf, "ssim": pytest.approx(1), "mae": 0}


def test_colours_of_half_the_brightness_keep_their_angle(noisy):
    truth = noisy[1]
    dark = (truth + 1) / 2 - 1
    scores = spectral_scores(dark, truth, ratio=4)
    assert scores["sam"] == pytest.approx(0, abs=0.05)
    share = ((truth + 1) / 2).flatten(1)
    bands = (share.square().mean(1).sqrt() / 2) / share.mean(1)
    assert scores["ergas"] == pytest.approx(25 * float(bands.square().mean().sqrt()), rel=1e-5)
    turned = spectral_scores(truth[[1, 2, 0]], truth, ratio=4)
    flat = share.T.numpy()
    norms = np.linalg.norm(flat, axis=1) ** 2
    angles = np.degrees(np.arccos((flat * flat[:, [1, 2, 0]]).sum(1) / norms))
    assert turned["sam"] == pytest.approx(angles.mean(), rel=1e-4)


def test_losses_are_their_formulas_and_add_up_over_a_batch(noisy):
    pictures = torch.stack([noisy[0], 0.5 * noisy[0]]).requires_grad_()
    truth = torch.stack([noisy[1], noisy[1]])
    error = (pictures - truth).abs()
    delta = 0.15
    huber = torch.where(error <= delta, error**2 / 2, delta * (error - delta / 2))
    expected = {
        "l1": error.flatten(1).mean(1),
        "l2": error.square().flatten(1).mean(1),
        "huber": huber.flatten(1).mean(1),
        "ssim": 1
        - torch.cat([ssim(p[None], t[None]) for p, t in zip(pictures, truth, strict=True)]),
    }
    for name, losses in expected.items():
        found = image_loss(name, pictures, truth, delta)
        torch.testing.assert_close(found, losses)
        assert found.sum().backward(retain_graph=True) is None
        assert pictures.grad.isfinite().all()
    with pytest.raises(ValueError, match="do not fit"):
        image_loss("l1", pictures[:, :1], truth)

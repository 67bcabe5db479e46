"""Guidance of denoisers whose guided result is known, and what it costs."""

import numpy as np
import pytest
import torch
from ddpm_unet.diffusion.guidance import beside_another, guided, told_nothing
from oracles import Mixture, Oracle, gaussian_flow

from ddpm_unet.config import DiffusionConfig
from ddpm_unet.diffusion.samplers import make_scheduler
from ddpm_unet.diffusion.sampling import Noise, sample

NULL = 3
MEANS = [[-0.4, 0.0], [0.2, 0.3], [0.1, -0.5], [0.0, 0.1]]  # of the classes; the last is the null
COVARIANCE = [[0.03, 0.01], [0.01, 0.02]]


def gaussian(mean):
    return Mixture([1.0], [mean], [COVARIANCE])


class Classes:
    """The best denoiser of a Gaussian for each class, with a record of its evaluations."""

    def __init__(self, config):
        self.oracles = [Oracle(gaussian(mean), config) for mean in MEANS]
        self.seen = []

    def __call__(self, x, t, class_labels):
        self.seen.append((int(t[0]), class_labels.tolist()))
        rows = [
            self.oracles[label](row[None], t[:1])
            for row, label in zip(x, class_labels.tolist(), strict=True)
        ]
        return torch.cat(rows)


def shifted(scale, label):
    """Guidance between Gaussians of one covariance moves the mean: the score is linear in it."""
    null, mean = np.array(MEANS[NULL]), np.array(MEANS[label])
    return null + scale * (mean - null)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, -1.0])
def test_guided_gaussians_are_gaussians_with_moved_means(prediction_type, scale):
    config = DiffusionConfig(prediction_type=prediction_type)
    denoiser = Classes(config)
    guide = Oracle(gaussian(MEANS[NULL]), config)
    x = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2])
    for t in (3, 400, 999):
        times = torch.full((2,), t)
        known = torch.cat(
            [
                Oracle(gaussian(shifted(scale, label)), config)(row[None], times)
                for row, label in zip(x, labels.tolist(), strict=True)
            ]
        )
        for pair in (
            told_nothing(denoiser, NULL),
            beside_another(denoiser, lambda x, t, class_labels: guide(x, t)),
        ):
            found = guided(denoiser, pair, scale)(x, times, class_labels=labels)
            torch.testing.assert_close(found.double(), known, rtol=1e-3, atol=2e-4)


def test_sampling_with_guidance_ends_at_the_moved_mean():
    config = DiffusionConfig()
    denoiser = Classes(config)
    with_guidance = guided(denoiser, told_nothing(denoiser, NULL), 3.0)
    images = sample(
        lambda x, t: with_guidance(x, t, class_labels=torch.tensor([1])),
        make_scheduler(
            "ddim",
            config,
        ),
        (2, 40, 40),
        seed=0,
        indices=[0],
        steps=200,
    )
    start = Noise(0, [0], (2, 40, 40), "cpu").draw(1.0)[0].flatten(1).T.double().numpy()
    abar = float(Oracle(gaussian(MEANS[1]), config).table[-1])
    known = gaussian_flow(gaussian(shifted(3.0, 1)), start, abar)
    found = images[0].flatten(1).T.double().numpy()
    inside = (np.abs(known) < 0.95).all(1)  # the scheduler clips
    assert inside.mean() > 0.4
    np.testing.assert_allclose(found[inside], known[inside], atol=0.03)
    plain = gaussian_flow(gaussian(MEANS[1]), start, abar)
    assert np.abs(plain - known).max() > 0.3


def test_scale_one_is_the_denoiser_itself_at_one_evaluation():
    denoiser = Classes(DiffusionConfig())
    x, t, labels = torch.randn(2, 2, 3, 3), torch.tensor([500, 500]), torch.tensor([2, 1])
    plain = denoiser(x, t, labels)
    denoiser.seen.clear()
    same = guided(denoiser, told_nothing(denoiser, NULL), 1.0)(x, t, class_labels=labels)
    assert torch.equal(same, plain)
    assert denoiser.seen == [(500, [2, 1])]


def test_both_predictions_are_one_evaluation_of_twice_the_batch():
    denoiser = Classes(DiffusionConfig())
    x, t = torch.randn(2, 2, 3, 3), torch.tensor([500, 500])
    guided(denoiser, told_nothing(denoiser, NULL), 2.0)(x, t, class_labels=torch.tensor([2, 1]))
    assert denoiser.seen == [(500, [NULL, NULL, 2, 1])]


def test_outside_the_interval_there_is_one_evaluation():
    denoiser = Classes(DiffusionConfig())
    with_guidance = guided(denoiser, told_nothing(denoiser, NULL), 2.0, (200, 599))
    sample(
        lambda x, t: with_guidance(x, t, class_labels=torch.tensor([1])),
        make_scheduler("ddim", DiffusionConfig()),
        (2, 3, 3),
        seed=0,
        indices=[0],
        steps=10,
    )
    twice = [t for t, labels in denoiser.seen if len(labels) == 2]
    assert len(denoiser.seen) == 10
    assert twice == [t for t, _ in denoiser.seen if 200 <= t <= 599]
    assert len(twice) == 4


def test_the_ends_of_the_interval_belong_to_it():
    denoiser = Classes(DiffusionConfig())
    with_guidance = guided(denoiser, told_nothing(denoiser, NULL), 2.0, (200, 300))
    for t in (199, 200, 300, 301):
        with_guidance(torch.zeros(1, 2, 2, 2), torch.tensor([t]), class_labels=torch.tensor([0]))
    assert [len(labels) for _, labels in denoiser.seen] == [1, 2, 2, 1]
